"""One checkpoint made of another, block by block, whatever is done to a block: what pruning and quantizing share."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from secateur import __version__
from secateur.calibrate.calibration import Calibration
from secateur.calibrate.divergence import HeldOut
from secateur.calibrate.stream import Rooms
from secateur.checkpoint import Source, Workspace, check_apart, check_finite, local_folder
from secateur.checkpoint.workspace import Journal as WorkspaceJournal
from secateur.checkpoint.workspace import differences
from secateur.devices import DTYPES, choose_device, full_precision
from secateur.digests import tensors_digest
from secateur.errors import InputError
from secateur.memory import Room
from secateur.models.blocks import Block
from secateur.options import WalkOptions
from secateur.progress import Clock, Progress
from secateur.pruning.footprint import Places, footprint, places
from secateur.pruning.journal import Setting
from secateur.pruning.prepare import Samples, Selection, draw_samples, passes, samples_to_come
from secateur.pruning.store import FolderStore
from secateur.pruning.visit import Visit
from secateur.pruning.walk import walk
from secateur.ranks import Ranks

S = TypeVar("S", bound=Selection)


@contextmanager
def opened(
    model: str | Path, out: str | Path, force: bool, resume: bool, ranks: Ranks
) -> Iterator[tuple[Workspace, Path]]:
    """The workspace, and the folder of the model, which may lie in it. The first rank makes both; the others read."""
    work = Workspace(out, model, force=force, resume=resume)
    if not ranks.first:
        yield work, Path(ranks.tell(None, str))
        return
    with work, local_folder(str(model), work.folder) as folder:
        check_apart(work.out, folder)
        ranks.tell(str(folder.absolute()), str)
        yield work, folder


def settle(source: Source, recipe: WalkOptions, work: Workspace, ranks: Ranks) -> Setting:
    """One setting for all ranks."""
    stored = source.config.dtype or torch.float32
    return ranks.tell(Setting.choose(recipe, stored, work.journal.run) if ranks.first else None, Setting)


@dataclass(frozen=True)
class Job(Generic[S]):
    """All that is loaded before the first block is read."""

    source: Source
    skeleton: PreTrainedModel
    setting: Setting
    device: torch.device
    ranks: Ranks
    task: S
    samples: Samples
    outer: dict[str, Tensor]  # embedding, last norm, output head
    places: tuple[Places, Places]  # for hidden states, and for what else waits

    @classmethod
    def load(
        cls,
        source: Source,
        recipe: WalkOptions,
        setting: Setting,
        ranks: Ranks,
        prepare: Callable[[PreTrainedModel], S],
        work: Callable[[S, PreTrainedModel, Block], int],
        progress: Progress,
    ) -> "Job[S]":
        """Load it.

        Args:
            source: the model.
            recipe: what is to be done.
            setting: how to compute.
            ranks: who does it.
            prepare: finds the linears that are meant in the model without its weights.
            work: bytes that what is done to a block needs beside it.
            progress: is told how far samples are that have to be written.
        """
        device = choose_device(ranks.own(setting.device))
        skeleton = source.skeleton(DTYPES[setting.dtype], device)
        task = prepare(skeleton)
        to_come = samples_to_come(recipe, source.config, setting.batch)
        takes = footprint(task, source, skeleton, to_come, device, lambda block: work(task, skeleton, block))
        room = places(takes, recipe.memory, device, ranks.beside)
        samples = draw_samples(source, recipe, setting.batch, device, progress)
        outer = source.read(source.names_outside([block.prefix for block in task.blocks]))
        check_finite(outer, source.folder)
        return cls(source, skeleton, setting, device, ranks, task, samples, outer, room)

    def begin(self, work: Workspace, command: Sequence[str]) -> None:
        """Begin in the first rank, and let the others know what it has found finished.

        Raises:
            InputError: in a rank that is about to do something else.
        """
        run, ranks = self._identity(), self.ranks
        if ranks.first:
            work.begin(run, command)
        work.journal = ranks.tell(work.journal, WorkspaceJournal)
        if others := list(differences(work.journal.run, run)):
            raise InputError(f"the processes do not all do the same: in rank 0 {'; '.join(others[:3])}")

    def _identity(self) -> dict[str, Any]:
        """All that the bytes of the result depend on, as plain data. Blocks are told apart as they are read."""
        recipe = msgspec.json.decode(msgspec.json.encode(self.task.recipe))  # with lists for tuples, as it is kept
        del recipe["memory"]  # a run may go on with more or less of it
        return {
            "recipe": recipe,
            "model": {"files": self.source.fingerprint(), "outer": tensors_digest(self.outer)},
            "calibration": self.samples.origin,
            "setting": dataclasses.asdict(self.setting),
            "versions": {
                "secateur": __version__,
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
            },
        }

    @contextmanager
    def rooms(self, work: Workspace) -> Iterator[Rooms]:
        """Where things wait, beside the model to come if they must."""
        with Room(self.places[0], work.folder) as states, Room(self.places[1], work.folder) as statistics:
            yield Rooms(states, statistics)

    def ahead(self, finished: int, room: float) -> tuple[int, str]:
        """How much there is to do, and in which unit: tokens that a block processes, or blocks.

        Args:
            finished: so many blocks were finished by an earlier run.
            room: bytes of Gram matrices that are gathered at once.
        """
        blocks = len(self.task.blocks)
        samples = self.samples.needed(finished < blocks).share(self.ranks)
        if not samples.batches:
            return blocks, "blocks"
        return sum(passes(self.task, samples, index, finished, room).tokens for index in range(blocks)), "tokens"

    def write_blocks(
        self,
        store: FolderStore,
        rooms: Rooms,
        progress: Progress,
        clock: Clock,
        work: Callable[[Visit], None],
        finished: int,
    ) -> HeldOut | None:
        """Do ``work`` at every block but the ``finished`` ones, until all are written; what the guard's samples say."""
        recipe, blocks = self.task.recipe, self.task.blocks
        samples = self.samples.needed(finished < len(blocks))
        calibration = Calibration(
            self.skeleton,
            blocks,
            samples.batches,
            held_out=samples.held_out,
            gram=recipe.needs_gram,
            one_shot=recipe.one_shot,
            corrects=recipe.corrects,
            compares=True,
            progress=progress,
            rooms=rooms,
            ranks=self.ranks,
        )
        walk(blocks, store, calibration, clock, work, finished)
        self.skeleton.tie_weights()  # blocks need no head
        with clock("calibrate"), full_precision():
            held_out = calibration.compare()
        with clock("write"):
            store.finish()
        return held_out
