"""Calibration samples on their way through a model, a block at a time.

The model's own forward pass is run once per batch with its blocks stubbed out, to record the arguments
that it passes to each block. From then on each block is called by itself, with the recorded arguments,
on hidden states that are kept here: no signature of any transformers version is assumed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.errors import InputError
from secateur.models.blocks import Block
from secateur.models.spaces import reader_groups
from secateur.progress import Progress
from secateur.stats.inputs import InputStats

Batch = Tensor | Mapping[str, Any]


class Stream:
    """Hidden states of all calibration batches, now before block 0 and moved on block by block.

    Attributes:
        hidden: per batch, what enters the next block: ``(B, L, H)``.
        tokens: the number of tokens that statistics are gathered on.
        held_out: the number of the first batch that no statistic sees.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        batches: Sequence[Batch],
        progress: Progress | None = None,
        *,
        held_out: int = 0,
    ) -> None:
        """Embed the batches and record how the model calls its blocks.

        Args:
            model: with everything but its blocks, and with its first block, in memory.
            batches: token ids, ``(B, L)`` int64 each; or what else the model is called with, by name.
            held_out: so many of the last batches move along but count in no statistic.
        """
        self.blocks = blocks
        self.progress = progress or Progress()
        self.held_out = len(batches) - held_out
        self.hidden, self._calls = _record(model, blocks, batches)
        self.tokens = sum(states[..., 0].numel() for states in self.hidden[: self.held_out])

    def observe(
        self, index: int, stride: int = 1, keep_output: bool = False, gram: bool = False
    ) -> dict[str, InputStats]:
        """Statistics of what enters the linears of block ``index``, by their names in the block.

        Linears that read at the same place share one :class:`InputStats`, gathered once.

        Args:
            stride: keep every ``stride``-th input row as a sample.
            keep_output: move the hidden states on through the block in the same pass. Without, the pass
                ends as soon as every linear has seen its input: nobody reads the last one's output.
            gram: gather Gram matrices as well.
        """
        block = self.blocks[index]
        stats = _empty_stats(block, stride, gram)
        with _Watch(block, stats, stop_early=not keep_output) as watch:
            for i in range(self.held_out):
                watch.begin()
                try:
                    output = self.run(index, i)
                except _StopForward:
                    continue
                if keep_output:
                    self.hidden[i] = output
        if keep_output:
            self._advance(index, self.held_out)
        return stats

    def advance(self, index: int) -> None:
        """Move the hidden states on through block ``index`` as it is now."""
        self._advance(index, 0)

    def _advance(self, index: int, first: int) -> None:
        for i in range(first, len(self.hidden)):
            self.hidden[i] = self.run(index, i)

    @torch.no_grad()
    def run(self, index: int, batch: int, states: Tensor | None = None) -> Tensor:
        """What block ``index`` as it is now makes of a batch, ``(B, L, H)``: of ``states``, or its hidden states."""
        states, call = self.hidden[batch] if states is None else states, self._calls[index][batch]
        try:
            output = self.blocks[index].module(states, *call.args, **call.kwargs)
        finally:
            self.progress.advance(states.shape[0] * states.shape[1])
        return output[0] if isinstance(output, tuple) else output


class _StopForward(Exception):
    """Thrown to leave a forward pass whose rest nobody needs."""


class _Watch(TorchFunctionMode):
    """While open, sees every product of inputs with a weight that is watched, wherever in a module it is done.

    It knows a weight by where it lies in memory: so a linear may be a module, or one layer of a stack of
    experts that some module multiplies with by itself.
    """

    def __init__(self, block: Block, stats: dict[str, InputStats], stop_early: bool) -> None:
        super().__init__()
        self._stats, self._stop_early = stats, stop_early
        self._linears = {block.weight(linear).data_ptr(): linear.name for linear in block.linears}
        self._gathers = {group[0].name for group in reader_groups(block.linears)}
        self._seen: set[str] = set()

    def begin(self) -> None:
        """A new pass begins: an expert that the last one did not run must not end this one early."""
        self._seen.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        place = _PRODUCTS.get(func)
        if place is not None and len(args) > max(place) and (name := self._linears.get(args[place[1]].data_ptr())):
            self._saw(name, args[place[0]])
        return func(*args, **kwargs or {})

    def _saw(self, name: str, inputs: Tensor) -> None:
        if name in self._gathers:
            self._stats[name].update(inputs)
        self._seen.add(name)
        if self._stop_early and len(self._seen) == len(self._linears):
            raise _StopForward


# Where the functions that modules multiply with take their inputs and their weight.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    nn.functional.linear: (0, 1),
    torch.addmm: (1, 2),
    torch.matmul: (0, 1),
    Tensor.matmul: (0, 1),
    Tensor.__matmul__: (0, 1),
}


def _empty_stats(block: Block, stride: int, gram: bool) -> dict[str, InputStats]:
    """By the names of the linears of ``block``, statistics to fill: one object for each place where they read."""
    stats: dict[str, InputStats] = {}
    for group in reader_groups(block.linears):
        weight = block.weight(group[0])
        shared = InputStats(weight.shape[1], stride, weight.device, gram)
        stats |= dict.fromkeys((linear.name for linear in group), shared)
    return stats


# ---------------------------------------------------------------- how a model calls its blocks


@dataclass(frozen=True)
class _Call:
    """What a model passes to a block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@torch.no_grad()
def _record(
    model: nn.Module, blocks: Sequence[Block], batches: Sequence[Batch]
) -> tuple[list[Tensor], list[list[_Call]]]:
    """The hidden states that enter the first block, per batch, and the calls, by block and batch.

    Calls that do not differ between batches are one object: masks and positions are kept once.
    """
    hidden: list[Tensor] = []
    calls: list[list[_Call]] = [[] for _ in blocks]
    first_output: Any = None

    def stub_of(index: int) -> Callable[..., Any]:
        genuine = blocks[index].module.forward

        def stub(*args: Any, **kwargs: Any) -> Any:
            nonlocal first_output
            states, call = _part(args, kwargs)
            if index == 0:
                hidden.append(states)
                if first_output is None:  # a tensor, or a tuple that begins with one? The stubs answer alike.
                    first_output = genuine(*args, **kwargs)
            previous = calls[index][-1] if calls[index] else None
            calls[index].append(previous if previous is not None and _same(previous, call) else call)
            if index == len(blocks) - 1:
                raise _StopForward
            return (states, *first_output[1:]) if isinstance(first_output, tuple) else states

        return stub

    with _without_cache(model), _forwards({block.module: stub_of(i) for i, block in enumerate(blocks)}):
        for batch in batches:
            try:
                if isinstance(batch, Tensor):
                    model(batch)
                else:
                    model(**batch)
            except _StopForward:
                continue
            raise InputError(f"{type(model).__name__} did not run its last block, {blocks[-1].prefix[:-1]}")
    return hidden, calls


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Let a model of transformers pass no cache to its blocks: each later run of a block would add to it."""
    config = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before  # type: ignore[union-attr]


@contextmanager
def _forwards(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forward functions for a while."""
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward  # the class's own shows again
            if module in own:
                module.forward = own[module]


def _part(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, _Call]:
    """Part the hidden states, a block's first argument, from the rest."""
    if args:
        return args[0], _Call(args[1:], kwargs)
    return kwargs["hidden_states"], _Call((), {k: v for k, v in kwargs.items() if k != "hidden_states"})


def _same(a: Any, b: Any) -> bool:
    """Whether two recorded values are equal, tensors included."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, _Call) and isinstance(b, _Call):
        return _same(a.args, b.args) and _same(a.kwargs, b.kwargs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or bool(a == b)
