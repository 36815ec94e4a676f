"""A model that is larger than memory: each of its blocks is read when it runs, and freed afterwards.

Whatever calls the model works, slowly: a forward pass reads the model once, however few tokens it is of. So the more
tokens a pass takes the better. Where all tokens are known from the start, :meth:`Offloaded.block` lets them all pass a
block while it is there.

While one block runs a thread reads the next, so that both take as long as the slower, and not as long as their sum.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.checkpoint import Source, load_into, resident
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.gather import attach_orders


class Offloaded:
    """The blocks of a model, on disk.

    Attributes:
        blocks: in the order in which they run.
        nbytes: what they take on the device, as many as are there at once.
    """

    def __init__(self, source: Source, blocks: Sequence[Block], device: torch.device) -> None:
        """Let ``blocks``, without weights, be read out of ``source`` to ``device`` when they run."""
        self.blocks, self.nbytes = blocks, _bytes_at_once(blocks, device)
        self._source, self._device = source, device
        self._reader = ThreadPoolExecutor(1)
        self._coming: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._held: int | None = None
        for index, block in enumerate(blocks):
            block.module.forward = self._reading(index, block.module.forward)

    @contextmanager
    def block(self, index: int, following: int | None = None) -> Iterator[None]:
        """Block ``index`` is in memory for as long as the context is open, however often it runs.

        Args:
            following: the block that is read meanwhile, if there is one of that number; by default the next.
        """
        tensors = self._take(index)
        following = index + 1 if following is None else following
        if following < len(self.blocks):
            self._coming = following, self._reader.submit(self._read, following)
        block = self.blocks[index]
        self._held = index
        try:
            with resident(block.module, tensors, block.prefix, self._device):
                yield
        finally:
            self._held = None

    def _reading(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """``forward`` of a block, which reads it unless it is in memory."""

        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            if index == self._held:
                return forward(*args, **kwargs)
            with self.block(index, (index + 1) % len(self.blocks)):  # the next pass begins with the first
                return forward(*args, **kwargs)

        return run

    def _take(self, index: int) -> dict[str, Tensor]:
        coming, self._coming = self._coming, None
        return coming[1].result() if coming and coming[0] == index else self._read(index)

    def _read(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block as its module has them, in memory: those that are read are only mapped as yet."""
        block = self.blocks[index]
        dtypes = {block.prefix + name: weight.dtype for name, weight in block.module.named_parameters()}
        # int8 values times their scales are rounded once, as where they run packed.
        tensors = self._source.read(self._source.names(block.prefix), sparse_as=next(iter(dtypes.values())))
        return {name: tensor.to(dtypes.get(name, tensor.dtype), copy=True) for name, tensor in tensors.items()}


def offload(source: Source, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model whose blocks stay on disk; ``offloaded`` of the model has them. All else of it is on ``device``.

    Packed weights are expanded as they are read.

    Raises:
        InputError: when it has no repeated blocks.
    """
    model = source.skeleton(dtype, device).requires_grad_(False)
    blocks = blocks_of(model, family_of(model))
    outer = source.read(source.names_outside([block.prefix for block in blocks]))
    load_into(model, outer, "", device)
    model.tie_weights()
    attach_orders(model, outer)
    model.offloaded = Offloaded(source, blocks, device)
    return model


def offloaded_bytes(source: Source, dtype: torch.dtype, device: torch.device) -> int:
    """What the weights of an offloaded model take on ``device``: those outside the blocks, and blocks as they run."""
    model = source.skeleton(dtype, "meta")
    blocks = blocks_of(model, family_of(model))
    inside = sum(_bytes(block.module) for block in blocks)
    return _bytes(model) - inside + _bytes_at_once(blocks, device)


def _bytes_at_once(blocks: Sequence[Block], device: torch.device) -> int:
    """What the largest of some blocks takes; where that is the host, the one that is being read as well."""
    return (1 if device.type == "cuda" else 2) * max(_bytes(block.module) for block in blocks)


def _bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())
