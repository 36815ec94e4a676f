"""The walk over a model's blocks: the whole method, a block at a time.

    for every block, in the order in which they run:
        read        its tensors
        observe     what the calibration samples, as the blocks before made them, put into its linears
        order       the channels of its spaces so that N:M retains more of the score; fold the orders
        prune       the linears that share their inputs: score, mask, then steps that change mask and weights
        tune        all that is left of the block, so that it gives what the dense block gives
        write       the block, and what was done to it
        advance     the samples through the block as it is now

:func:`walk` is the only loop over blocks in this package. The survey, which looks for the one order that all blocks
share, is the same walk with other work in the middle. The walk is given where blocks come from and go to (a
:class:`Store`), how samples move (:class:`~secateur.calibrate.calibration.Calibration`) and what is done to a block.

Memory: one block, and what is needed of its statistics at a time. Hidden states and the rest of the statistics wait
where there is room (docs/memory.md). What a visit holds is free before the next one begins, but for what is written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from secateur.calibrate.calibration import Calibration
from secateur.devices import full_precision
from secateur.models.blocks import Block
from secateur.models.spaces import judged_together, reader_groups
from secateur.progress import Clock, Progress
from secateur.pruning.group import prune_groups
from secateur.pruning.order import Orderer
from secateur.pruning.prepare import Task
from secateur.pruning.result import LayerResult, Results
from secateur.pruning.tuning import tune
from secateur.pruning.visit import Visit
from secateur.ranks import Ranks


class Store(Protocol):
    """Where blocks are read from, and where they go."""

    def read(self, block: Block) -> dict[str, Tensor]:
        """The tensors of ``block`` by full name, as stored, which its module has as well afterwards."""

    def load(self, block: Block, tensors: dict[str, Tensor]) -> None:
        """Give the module of ``block`` its tensors as they are now."""

    def write(self, visit: Visit) -> None:
        """Keep the block and its results, which may be complete only when the store is finished."""

    def restore(self, visit: Visit) -> None:
        """Make the block, its module and its results what an earlier run wrote."""

    def release(self, block: Block) -> None:
        """Free what ``block`` has in memory."""


@full_precision()
def walk(
    blocks: Sequence[Block],
    store: Store,
    calibration: Calibration,
    clock: Clock,
    work: Callable[[Visit], None],
    finished: int = 0,
) -> None:
    """Visit all ``blocks`` in order, and do ``work`` at each, between its observation and the samples' advance.

    An earlier run has ``finished`` the first of them: they are visited too, since the samples have to pass them.
    """
    for index, block in enumerate(blocks):
        with clock("read"):
            tensors = store.read(block)
        with clock("calibrate"):
            seen = calibration.observe(index, finished=index < finished)
        where = f"block {index + 1}/{len(blocks)}"
        work(Visit(where, block, tensors, seen.stats, seen.guard, seen.lesson, finished=index < finished))
        with clock("calibrate"):
            calibration.advance(index)
        del tensors, seen
        store.release(block)


@dataclass(frozen=True)
class Survey:
    """The work of the first walk: note the scores of all who read a space that has one order for the whole model."""

    orderer: Orderer
    progress: Progress
    clock: Clock

    def __call__(self, visit: Visit) -> None:
        """Look at the scores of a block; it stays as it is."""
        self.progress.at(f"survey of {visit.where}")
        with self.clock("order"):
            self.orderer.survey(visit)


@dataclass(frozen=True)
class Prune:
    """The work of the walk that prunes: order, prune and write a block.

    Attributes:
        results: of each block so far.
    """

    task: Task
    orderer: Orderer
    store: Store
    progress: Progress
    clock: Clock
    results: list[Results]
    ranks: Ranks = field(default_factory=Ranks)

    def __call__(self, visit: Visit) -> None:
        """Order, prune and write a block; one that an earlier run has finished comes back as it was written."""
        block = visit.block
        self.progress.at(visit.where)
        if visit.finished:
            with self.clock("read"):
                self.store.restore(visit)
            self.results.append(visit.results)
            return
        with self.clock("order"):
            shares = self.orderer.compare(visit) if self.task.recipe.compare_folds else {}
            if self.orderer.order(visit):
                self.store.load(block, visit.tensors)
        groups = (judged_together if visit.guard else reader_groups)(block.linears)
        # One process has the Gram matrices of one group to deal with at a time; several have work for all.
        for some in [[group] for group in groups] if self.ranks.size == 1 else [groups]:
            names = dict.fromkeys(linear.stack or linear.name for group in some for linear in group)
            self.progress.at(f"{visit.where} · {' + '.join(names)}")
            with self.clock("prune"):
                prune_groups(visit, some, self.task, self.ranks)
        for number, layer in enumerate(visit.results.layers):
            visit.results.layers[number] = self._with_folds(layer, shares.get(layer.name))
        if visit.lesson:
            self.progress.at(f"{visit.where} · tune")
            with self.clock("tune"):
                tune(visit, self.task)
        visit.guard = visit.lesson = None  # what they hold is not kept until the block is written
        with self.clock("write"):
            self.store.write(visit)
        self.results.append(visit.results)

    def _with_folds(self, layer: LayerResult, shares: dict[str, float] | None) -> LayerResult:
        """Readers of spaces inside the block retain with gather what they do as folded now."""
        fold = self.task.recipe.fold
        return replace(layer, folds={"gather": layer.retained} | shares | {fold: layer.retained}) if shares else layer
