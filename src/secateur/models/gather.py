"""A norm whose output channels are put in another order: what ``--fold gather`` needs.

Each place that reads the residual space may then have its own order of channels. On a GPU the gather is
part of the norm's own kernel (for RMSNorm, :mod:`secateur.models.triton_norm`) and costs no further pass
over memory; elsewhere an index_select follows the norm.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ORDER = ".order"  # what the names of the tensors that hold such orders end with


class GatheredNorm(nn.Module):
    """``norm`` with channel ``order[p]`` of its output at position p.

    Args:
        norm: maps ``(..., H)`` to ``(..., H)``.
        order: integer ``(H,)``.
    """

    order: Tensor

    def __init__(self, norm: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("order", order, persistent=False)
        self._fused = _fused_kernel() if _is_rms_norm(norm) else None

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., H)`` → ``(..., H)``."""
        if self._fused is not None and hidden.is_cuda and not torch.is_grad_enabled():
            return self._fused(hidden, self.norm.weight, self.order, self.norm.variance_epsilon)
        return self.norm(hidden).index_select(-1, self.order)


@contextmanager
def gathered(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> Iterator[None]:
    """For a while, the norms inside ``module`` gather by the orders among ``tensors``, named from ``prefix`` on."""
    genuine = attach_orders(module, tensors, prefix)
    try:
        yield
    finally:
        for name, norm in genuine.items():
            module.set_submodule(name, norm)


def attach_orders(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, nn.Module]:
    """Replace norms inside ``module`` by gathering ones; those that were there, by their names in it.

    Args:
        module: a block, or a whole model.
        tensors: ``{prefix}{name of a norm}.order``, integer ``(H,)``; other tensors are passed over.
        prefix: what the names begin with that belong to ``module``.
    """
    genuine = {}
    for full, order in tensors.items():
        if full.startswith(prefix) and full.endswith(ORDER):
            name = full.removeprefix(prefix).removesuffix(ORDER)
            genuine[name] = norm = module.get_submodule(name)
            device = next(norm.parameters(), order).device  # a norm may have none
            module.set_submodule(name, GatheredNorm(norm, order.to(device, torch.int32)))
    return genuine


def stored_name(module: nn.Module, name: str) -> str:
    """What a parameter of ``module`` is called where it is stored: there a norm that gathers is like any other."""
    path, _, own = name.rpartition(".")
    gathers = isinstance(module.get_submodule(path.rpartition(".")[0]), GatheredNorm)
    return f"{path.rpartition('.')[0]}.{own}" if gathers else name


def _is_rms_norm(norm: nn.Module) -> bool:
    """Whether ``norm`` computes x / rms(x) · weight, as LLaMA's does (and not, say, Gemma's 1 + weight)."""
    return type(norm).__name__ in ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


def _fused_kernel():  # type: ignore[no-untyped-def]
    try:
        from secateur.models.triton_norm import rms_norm_gather
    except ImportError:
        return None
    return rms_norm_gather
