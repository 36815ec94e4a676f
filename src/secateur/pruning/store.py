"""Blocks out of a checkpoint and into another, read and written while the walk computes.

While a block is computed with, the next one is read by one thread and the one before is written by another: to check,
hash and copy bytes takes about as long as a GPU takes for its part. So three blocks are in memory; no more, since each
thread is waited for before it is given the next.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise, takewhile
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor, nn

from secateur.checkpoint import Source, Writer, check_finite, load_into
from secateur.checkpoint.experts import Stacks
from secateur.checkpoint.quantized import Scheme, decoded
from secateur.devices import return_freed_memory
from secateur.digests import bytes_digest, nonzeros_digest, tensors_digest
from secateur.models.blocks import Block
from secateur.models.gather import attach_orders
from secateur.progress import Clock
from secateur.pruning.journal import Journal
from secateur.pruning.result import LayerResult, QuantizedLayer
from secateur.pruning.visit import Visit

L = TypeVar("L", LayerResult, QuantizedLayer)


class FolderStore:
    """The :class:`~secateur.pruning.walk.Store` of what makes one folder of another.

    A context manager: what was given to be written is written when it is left, whatever happened.

    Raises:
        InputError: from :meth:`read`, when a file is damaged or a weight is not finite.
        OSError: from :meth:`write` or :meth:`finish`, when the disk was full for this block or the one before.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        source: Source,
        writer: Writer,
        device: torch.device,
        journal: Journal,
        clock: Clock,
        fold: Callable[[Block, dict[str, Tensor]], None] | None = None,
        scheme: Scheme | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            blocks: in the order in which they will be asked for.
            source: where they come from.
            writer: where they go.
            device: of the modules in memory.
            journal: gets a record of each block that is written.
            clock: of the run.
            fold: folds the orders that all blocks share into the tensors of one, as it is read.
            scheme: of what an earlier run has written quantized.
        """
        self._source, self._writer, self._fold, self._scheme = source, writer, fold, scheme
        self._device, self._journal, self._clock = device, journal, clock
        self._following = {block.prefix: after for block, after in pairwise(blocks)}
        self._reader, self._writing, self._hashing = (
            ThreadPoolExecutor(number) for number in (1, 1, min(8, os.cpu_count() or 1))
        )
        self._ahead: dict[str, Future[tuple[dict[str, Tensor], str]]] = {}
        self._behind: Future[None] | None = None
        self._dense: dict[str, str] = {}  # digests of blocks as they were read
        self._norms: dict[str, nn.Module] = {}  # of the block in memory, where they gather for now

    def __enter__(self) -> "FolderStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._reader, self._writing, self._hashing):
            pool.shutdown(cancel_futures=pool is self._reader)

    # ---------------------------------------------------------------- blocks in

    def read(self, block: Block) -> dict[str, Tensor]:
        """As stored, with the model-wide orders folded in."""
        tensors, self._dense[block.prefix] = self._read_ahead(block).result()
        if after := self._following.get(block.prefix):
            self._ahead[after.prefix] = self._read_ahead(after)
        if self._fold:
            self._fold(block, tensors)
        self.load(block, tensors)
        return tensors

    def _read_ahead(self, block: Block) -> Future[tuple[dict[str, Tensor], str]]:
        return self._ahead.pop(block.prefix, None) or self._reader.submit(self._read, block)

    def _read(self, block: Block) -> tuple[dict[str, Tensor], str]:
        """Its tensors, and their digest: on the way to a GPU in memory that the GPU reads by itself."""
        tensors = self._source.read(self._source.names(block.prefix))
        check_finite(tensors, self._source.folder)
        if self._device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return tensors, tensors_digest(tensors)

    def load(self, block: Block, tensors: dict[str, Tensor]) -> None:
        """Weights to the module, and gather orders to its norms."""
        load_into(block.module, tensors, block.prefix, self._device)
        self._norms.update(attach_orders(block.module, tensors, block.prefix))

    def release(self, block: Block) -> None:
        """The skeleton is empty again."""
        for name, norm in self._norms.items():
            block.module.set_submodule(name, norm)
        self._norms.clear()
        block.module.to("meta")
        return_freed_memory()

    # ---------------------------------------------------------------- blocks out

    def write(self, visit: Visit) -> None:
        """Begin to write a shard of the checkpoint to come, and a record of the results, which get their digests."""
        if self._writer.elsewhere:
            return
        self.finish()
        self._behind = self._writing.submit(self._write, visit, visit.block.pruned, self._clock.seconds())

    def finish(self) -> None:
        """Wait until all is written."""
        behind, self._behind = self._behind, None
        if behind:
            behind.result()

    def _write(self, visit: Visit, pruned: Collection[str], seconds: Mapping[str, float]) -> None:
        visit.results.layers[:] = self._with_digests(visit.results.layers, visit)
        visit.results.quantized[:] = self._with_digests(visit.results.quantized, visit)
        visit.results.unpruned |= unpruned_digests(visit.tensors, pruned)
        tensors = self._source.stacks.split(visit.tensors)
        for name, parts in visit.quantized.items():
            del tensors[name]
            tensors |= parts
        self._writer.add(tensors)
        self._journal.keep(visit.block, self._dense.pop(visit.block.prefix), visit.results, seconds)

    def _with_digests(self, layers: Sequence[L], visit: Visit) -> list[L]:
        """The results of linears, with what proves their weights."""
        linears = {visit.block.full_name(linear): linear for linear in visit.block.linears}
        weights = [visit.block.stored(linears[layer.name], visit.tensors) for layer in layers]
        zeros, values = self._hashing.map(nonzeros_digest, weights), self._hashing.map(bytes_digest, weights)
        return [
            replace(layer, nonzeros_sha256=zero, weight_sha256=value)
            for layer, zero, value in zip(layers, zeros, values, strict=True)
        ]

    def restore(self, visit: Visit) -> None:
        """From the shard and the record of an earlier run."""
        visit.results = self._journal.recall(visit.block, self._dense.pop(visit.block.prefix), self._clock)
        written = self._writer.again()
        if self._scheme:
            written = decoded(written, self._scheme)
        stacks = Stacks(written, self._source.config.model_type)
        for name in stacks.names:
            tensor = stacks.join(name, written)
            # Into the memory that the block had when it was pruned: kernels may round by where a weight begins.
            visit.tensors[name] = visit.tensors[name].copy_(tensor) if name in visit.tensors else tensor
        visit.results.unpruned |= unpruned_digests(visit.tensors, visit.block.pruned)
        self.load(visit.block, visit.tensors)


def finished_blocks(blocks: Sequence[Block], journal: Journal, writer: Writer) -> int:
    """How many of the first blocks an earlier run has finished."""
    shards = enumerate(blocks, 1)  # the first is what lies outside the blocks
    return sum(1 for _ in takewhile(lambda x: journal.has(x[1]) and writer.has(x[0]), shards))


def unpruned_digests(tensors: Mapping[str, Tensor], pruned: Collection[str] = ()) -> dict[str, str]:
    """What proves of tensors that are not pruned that nobody changed them."""
    return {name: bytes_digest(tensor) for name, tensor in tensors.items() if name not in pruned}
