"""A linear that holds its weight in several forms, of which the number of tokens decides."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.runtime.choosing import DENSE, nearest
from secateur.runtime.semi_structured import SemiStructuredLinear
from secateur.runtime.sparse_linear import SparseLinear

Form = nn.Linear | SemiStructuredLinear | SparseLinear


def form_bytes(form: Form) -> int:
    """What the weight takes in memory in one form."""
    if isinstance(form, SparseLinear):
        return form.nbytes
    return form.packed.nbytes if isinstance(form, SemiStructuredLinear) else form.weight.nbytes


class DispatchedLinear(nn.Module):
    """``nn.Linear`` whose weight is held in one or more forms, each of them a linear.

    Its state dict is that of the ``nn.Linear`` it stands for. Moved to another device or type it is dense from
    then on.

    Args:
        forms: linears with the same weight ``(O, I)`` and the same bias, under the name of each form.
        plan: by number of tokens, the form to use; the nearest number decides.
        dtype: of the weight.
    """

    def __init__(self, forms: Mapping[str, Form], plan: Mapping[int, str], dtype: torch.dtype) -> None:
        super().__init__()
        first = next(iter(forms.values()))
        self.out_features, self.in_features, self.bias = first.out_features, first.in_features, first.bias
        # In a dict they are no submodules: what walks through a model sees one linear.
        self.forms, self.plan, self.dtype = dict(forms), dict(plan), dtype
        self._buckets = tuple(plan)

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(O, I)``, made anew where it is not kept."""
        return self.forms.get(DENSE, next(iter(self.forms.values()))).weight

    @property
    def nbytes(self) -> int:
        """What the weight takes in memory, in all forms together."""
        return sum(map(form_bytes, self.forms.values()))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., I)`` → ``(..., O)``."""
        tokens = inputs.numel() // self.in_features or 1
        return self.forms[self.plan[nearest(self._buckets, tokens)]].forward(inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DispatchedLinear":
        super()._apply(fn, recurse)
        first = next(iter(self.forms.values()))
        old = next(tensor for tensor in (*first.buffers(), *first.parameters()) if tensor is not self.bias)
        new = fn(torch.empty(0, dtype=self.dtype, device=old.device))
        if (new.dtype, new.device) != (self.dtype, old.device):
            dense = dense_linear(fn(self.weight), self.bias)
            self.forms, self.plan, self.dtype = {DENSE: dense}, dict.fromkeys(self.plan, DENSE), new.dtype
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.detach()

    def extra_repr(self) -> str:
        """Like that of ``nn.Linear``."""
        plan = ", ".join(f"{form} at {tokens}" for tokens, form in self.plan.items())
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"tokens: {plan}"
        )


def dense_linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """``nn.Linear`` with this very weight ``(O, I)`` and bias, not to be trained."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", bias)
    return linear
