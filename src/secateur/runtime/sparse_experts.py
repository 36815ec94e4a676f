"""The weights of experts, which transformers stacks in one tensor, kept packed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.checkpoint.sparse import SparseWeight
from secateur.runtime.sparse_linear import SparseLinear


class SparseExperts(nn.Module):
    """Stands for a parameter ``(E, O, I)`` of which a module multiplies with one layer at a time.

    transformers runs experts by ``functional.linear(inputs, stack[expert])``, and indexing gives what answers that
    call with a packed product. Its state dict is that of the parameter.

    Args:
        weights: of the E experts, ``(O, I)`` each.

    Attributes:
        linears: what multiplies with each expert's weight.
    """

    def __init__(self, weights: Sequence[SparseWeight]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(map(SparseLinear, weights))

    def __getitem__(self, expert: Tensor | int) -> "_Layer":
        return _Layer(self.linears[int(expert)])

    @property
    def weight(self) -> Tensor:
        """The dense weights ``(E, O, I)``, made anew."""
        return torch.stack([linear.weight for linear in self.linears])  # type: ignore[misc]

    def state_dict(self, *, destination: dict[str, Any], prefix: str, keep_vars: bool = False) -> dict[str, Any]:  # type: ignore[override]
        """Only ever called as a part of its module's."""
        destination[prefix.removesuffix(".")] = self.weight
        return destination


def keep_experts(owner: nn.Module, attribute: str, weights: Sequence[SparseWeight]) -> None:
    """Let ``weights`` stand for the parameter of ``owner`` that is so called."""
    delattr(owner, attribute)
    setattr(owner, attribute, SparseExperts(weights))


class _Layer:
    """The weight of one expert, as far as :func:`torch.nn.functional.linear` is concerned."""

    def __init__(self, linear: nn.Module) -> None:
        self.linear = linear

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not nn.functional.linear or kwargs or len(args) != 2:
            return NotImplemented
        inputs, layer = args
        return layer.linear(inputs)
