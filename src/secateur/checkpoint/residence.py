"""Parts of a model that are in memory only while they are needed; the rest of it is on the meta device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.checkpoint.config import load_into
from secateur.devices import return_freed_memory
from secateur.models.gather import gathered


@contextmanager
def resident(module: nn.Module, tensors: dict[str, Tensor], prefix: str, device: torch.device) -> Iterator[None]:
    """For a while ``module`` has its weights, and its norms gather by the orders among them.

    Args:
        module: a block, or a whole model, of which ``tensors`` may be a part.
        tensors: as they are stored, by full name.
        prefix: what the names begin with that belong to ``module``.
        device: where the weights are to be.
    """
    load_into(module, tensors, prefix, device)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()
    try:
        with gathered(module, tensors, prefix):
            yield
    finally:
        _evict(module)


def _evict(module: nn.Module) -> None:
    """Free all weights; buffers, which no file holds, stay."""
    weights = module.named_parameters(remove_duplicate=False)  # once for each name, where they are tied
    module.load_state_dict({name: weight.to("meta") for name, weight in weights}, strict=False, assign=True)
    return_freed_memory()
