"""A linear whose 2:4 weight is multiplied by sparse tensor cores, through torch's semi-structured tensors.

Not yet measured on a GPU. torch has two backends for these tensors, cuSPARSELt and CUTLASS; both take the sparse
weight from the left and pad the tokens to a multiple of 8. Which of them there is depends on the GPU and on
how torch was built: torch's CUTLASS kernels are for compute capability 8.x, and cuSPARSELt knows the GPUs of
its own version. So both are tried, and what they give is compared, before either is used.

cuSPARSELt runs its default algorithm. The search for a faster one is deprecated in torch, and some of those that it
would try gave wrong products on an A100 (https://github.com/pytorch/pytorch/issues/155333).
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor

from secateur.masks import obeys
from secateur.patterns import NM
from secateur.runtime.choosing import DENSE, nearest

BACKENDS = {
    "cusparselt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    "cutlass": torch.sparse.SparseSemiStructuredTensorCUTLASS,
}


def is_2of4(weight: Tensor) -> bool:
    """Whether ``weight`` (O, I) can have a sparse form at all: 2:4 as stored, of 16 bits, and finite.

    A sparse form shows its weight by a product, in which one NaN would spoil a whole column. In float32
    the hardware has 1:2 only.
    """
    sixteen = weight.dtype in (torch.float16, torch.bfloat16)
    return sixteen and obeys(weight, NM(2, 4)) and bool(weight.isfinite().all())


def compress(weight: Tensor, backend: str) -> SparseSemiStructuredTensor:
    """``weight`` (O, I) in the form of one of :data:`BACKENDS`; on a CUDA device, 2:4 and contiguous.

    Raises:
        RuntimeError: when the backend is not there, has no kernels for this shape, type or GPU, or does not give the
            same weight back; −0.0 may come back as 0.0.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*prototype")
        form = BACKENDS[backend].from_dense(weight.detach())
    if not torch.equal(form.to_dense(), weight):
        raise RuntimeError("it does not give back the weight that was compressed")
    return form


def form_bytes(form: Tensor) -> int:
    """What a dense weight or a sparse form takes in memory."""
    if isinstance(form, SparseSemiStructuredTensor):
        return sum(part.nbytes for part in (form.packed, form.meta) if part is not None)
    return form.nbytes


def multiply(rows: Tensor, form: Tensor, bias: Tensor | None) -> Tensor:
    """``(T, I)``, T > 0, times a weight ``(O, I)`` in any form, as contiguous ``(T, O)``.

    Both ends are made contiguous: torch's sparse products want to view their input, and in some versions give
    the transpose of what they computed.
    """
    return nn.functional.linear(rows.contiguous(), form, bias).contiguous()


class SemiStructuredLinear(nn.Module):
    """``nn.Linear`` with a 2:4 weight in one or more forms, of which the number of tokens decides.

    Its state dict is that of the ``nn.Linear`` it stands for. Moved to another device or type it is dense from
    then on, and so it is where gradients are asked for.

    Args:
        forms: the weight ``(O, I)``, dense or compressed, under the name of each form.
        plan: by number of tokens, the form to use.
        bias: ``(O,)``, or None.
    """

    def __init__(self, forms: Mapping[str, Tensor], plan: Mapping[int, str], bias: nn.Parameter | None = None) -> None:
        super().__init__()
        first = next(iter(forms.values()))
        self.out_features, self.in_features = first.shape
        # No buffers: most of what is done to buffers cannot be done to torch's sparse tensors.
        self.forms, self.plan, self.bias = dict(forms), dict(plan), bias

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(O, I)``, made anew where it is not kept."""
        if DENSE in self.forms:
            return self.forms[DENSE]
        return next(iter(self.forms.values())).to_dense()

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., I)`` → ``(..., O)``."""
        if not inputs.numel() or (torch.is_grad_enabled() and inputs.requires_grad):
            return nn.functional.linear(inputs, self.weight, self.bias)
        rows = inputs.reshape(-1, self.in_features)
        form = self.forms[self.plan[nearest(self.plan, len(rows))]]
        return multiply(rows, form, self.bias).view(*inputs.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SemiStructuredLinear":
        super()._apply(fn, recurse)
        old = next(iter(self.forms.values()))
        new = fn(torch.empty(0, dtype=old.dtype, device=old.device))
        if (new.dtype, new.device) != (old.dtype, old.device):
            self.forms = {DENSE: fn(self.weight)}
            self.plan = dict.fromkeys(self.plan, DENSE)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def extra_repr(self) -> str:
        """Like that of ``nn.Linear``."""
        plan = ", ".join(f"{form} at {tokens}" for tokens, form in self.plan.items())
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"tokens: {plan}"
        )
