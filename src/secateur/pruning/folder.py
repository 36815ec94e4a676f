"""Prune a model folder: from a checkpoint to a checkpoint, with one block in memory."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from secateur import __version__
from secateur.calibrate.calibration import Calibration
from secateur.calibrate.stream import Rooms
from secateur.checkpoint import Source, Workspace, Writer, check_apart, check_finite, load_into, local_folder
from secateur.checkpoint.workspace import Journal as WorkspaceJournal
from secateur.checkpoint.workspace import differences
from secateur.devices import DTYPES, choose_device, threads
from secateur.digests import tensors_digest
from secateur.errors import InputError
from secateur.memory import Room
from secateur.models.blocks import left_dense
from secateur.models.fold import fold_outer
from secateur.progress import Clock, Progress
from secateur.pruning.footprint import Places, footprint, places
from secateur.pruning.journal import Journal, Setting, command_of
from secateur.pruning.order import Orderer
from secateur.pruning.prepare import Samples, Task, draw_samples, observations, passes, prepare
from secateur.pruning.result import Results
from secateur.pruning.store import FolderStore, finished_blocks, unpruned_digests
from secateur.pruning.walk import Prune, Survey, walk
from secateur.ranks import Ranks, joined
from secateur.recipe import Recipe
from secateur.scores import SCORES


def prune(
    model: str | Path,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prune ``model`` by ``recipe`` and write the result to ``out``, a plain Hugging Face folder.

    Blocks are pruned in the order in which they run. Unless the recipe says one-shot, each is calibrated
    on what the pruned blocks before it make of the calibration samples. Only the outer parts of the
    model, one block and the hidden states are in memory.

    Processes that torchrun has started do this together: see docs/processes.md. The first writes.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        out: the folder to write; it appears only when it is complete.
        recipe: what to do; by default RIA at 50 %, calibrated on C4.
        force: replace a model folder that Secateur wrote.
        resume: go on after the last block that a run to ``out`` had finished when it was cut short, if there was one:
            the bytes are those of a run that was not.
        progress: is told how far it is.

    Returns:
        the content of ``secateur.json``, which is part of what is written.

    Raises:
        InputError: when something given cannot be used; nothing is written then.
        OSError: when the disk is full or fails; what was finished can be resumed, as after any other interruption.
        RankError: when another of the processes that work together failed.
        SystemExit: in a process that leaves it to another one to say what has failed.
    """
    recipe, progress, clock = recipe or Recipe(), progress or Progress(), Clock()
    with progress, joined() as ranks, _opened(model, out, force, resume, ranks) as (work, folder):
        source = Source(folder)
        source.refuse_gathers("pruned again")
        setting = _setting(source, recipe, work, ranks)
        with threads(setting.threads):
            with clock("load"):
                job = _load(source, recipe, setting, ranks)
            _begin(work, _identity(job, setting), command_of(model, out, recipe, force), ranks)
            writer = Writer(work, 1 + len(job.task.blocks), elsewhere=not ranks.first)
            with Room(job.places[0], work.folder) as states, Room(job.places[1], work.folder) as statistics:
                rooms = Rooms(states, statistics)
                results, orders = _run(job, writer, Journal(work), rooms, progress, clock)
        manifest = {
            "secateur": __version__,
            "model": str(model),
            "family": job.task.family.name,
            "method": recipe.summary(),
            "recipe": recipe.to_dict(),
            "calibration": job.samples.origin,
            "computed_in": setting.dtype,
            "processes": ranks.size,
            "skipped": job.task.skipped,
            "left_dense": left_dense(job.task.blocks, job.task.skipped),
            **results.report(clock),
            "unpruned_sha256": results.unpruned,
        }
        if ranks.first:
            writer.finish(folder, manifest, orders, gathers=recipe.orders_channels and recipe.fold == "gather")
        return ranks.tell(manifest, dict[str, Any])


@contextmanager
def _opened(
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


def _setting(source: Source, recipe: Recipe, work: Workspace, ranks: Ranks) -> Setting:
    """One for all ranks."""
    stored = source.config.dtype or torch.float32
    return ranks.tell(Setting.choose(recipe, stored, work.journal.run) if ranks.first else None, Setting)


def _begin(work: Workspace, run: dict[str, Any], command: Sequence[str], ranks: Ranks) -> None:
    """Begin in the first rank, and let the others know what it has found finished.

    Raises:
        InputError: in a rank that is about to do something else.
    """
    if ranks.first:
        work.begin(run, command)
    work.journal = ranks.tell(work.journal, WorkspaceJournal)
    if others := list(differences(work.journal.run, run)):
        raise InputError(f"the processes do not all do the same: in rank 0 {'; '.join(others[:3])}")


@dataclass(frozen=True)
class _Job:
    """All that is loaded before the first block is read."""

    source: Source
    skeleton: PreTrainedModel
    device: torch.device
    ranks: Ranks
    task: Task
    samples: Samples
    outer: dict[str, Tensor]  # embedding, last norm, output head
    places: tuple[Places, Places]  # for hidden states, and for what else waits


def _load(source: Source, recipe: Recipe, setting: Setting, ranks: Ranks) -> _Job:
    device = choose_device(ranks.own(setting.device))
    skeleton = source.skeleton(DTYPES[setting.dtype], device)
    task = prepare(skeleton, recipe)
    samples = draw_samples(source, recipe, setting.batch, device)
    room = places(footprint(task, source, skeleton, samples, device), task, device, ranks.beside)
    inside = tuple(block.prefix for block in task.blocks)
    outer = source.read([name for name in source.names() if not name.startswith(inside)])
    check_finite(outer, source.folder)
    return _Job(source, skeleton, device, ranks, task, samples, outer, room)


def _identity(job: _Job, setting: Setting) -> dict[str, Any]:
    """All that the bytes of the result depend on, as plain data. Blocks are told apart one by one, as they are read."""
    recipe = msgspec.json.decode(msgspec.json.encode(job.task.recipe))  # with lists for tuples, as it is kept
    del recipe["memory"]  # a run may go on with more or less of it
    return {
        "recipe": recipe,
        "model": {"files": job.source.fingerprint(), "outer": tensors_digest(job.outer)},
        "calibration": job.samples.origin,
        "setting": dataclasses.asdict(setting),
        "versions": {
            "secateur": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }


def _run(
    job: _Job, writer: Writer, journal: Journal, rooms: Rooms, progress: Progress, clock: Clock
) -> tuple[Results, dict[str, Tensor]]:
    """Prune and write all tensors of the model; what was done, and all orders, by the names of their spaces."""
    task, recipe, samples = job.task, job.task.recipe, job.samples
    ranks, orderer = job.ranks, Orderer(task, job.ranks)
    shared = journal.orders()
    finished = ranks.tell(finished_blocks(task.blocks, journal, writer) if ranks.first else None, int)
    surveys = orderer.needs_survey and shared is None
    load_into(job.skeleton, job.outer, "", job.device)
    progress.start(recipe.summary(), *_work(task, samples.share(ranks), surveys, finished, rooms.statistics.left))
    with FolderStore(task.blocks, job.source, writer, orderer, job.device, journal, clock) as store:
        if surveys:
            shared = _survey(job, store, orderer, rooms, progress, clock)
            if ranks.first:
                journal.keep_orders(shared)
        if shared:
            orderer.shared = shared
            for space, order in shared.items():
                fold_outer(job.outer, task.family, space, order)
            load_into(job.skeleton, job.outer, "", job.device)
        with clock("write"):
            writer.add(job.source.stacks.split(job.outer))
            results = [Results(unpruned=unpruned_digests(job.outer))]
        calibration = Calibration(
            job.skeleton,
            task.blocks,
            samples.batches if finished < len(task.blocks) else (),  # after the last block nobody asks for them
            held_out=samples.held_out,
            gram=recipe.needs_gram,
            one_shot=recipe.one_shot,
            progress=progress,
            rooms=rooms,
            ranks=ranks,
        )
        work = Prune(task, orderer, store, progress, clock, results, ranks)
        walk(task.blocks, store, calibration, clock, work, finished)
        with clock("write"):
            store.finish()
    whole = Results.of(results)
    return whole, orderer.shared | whole.orders


def _survey(
    job: _Job, store: FolderStore, orderer: Orderer, rooms: Rooms, progress: Progress, clock: Clock
) -> dict[str, Tensor]:
    """Find the model-wide orders, by a walk over the dense model on the samples that statistics may see."""
    score = SCORES[job.task.recipe.score]
    seen = job.samples.batches[: len(job.samples.batches) - job.samples.held_out] if score.needs_inputs else ()
    calibration = Calibration(
        job.skeleton,
        job.task.blocks,
        seen,
        gram=score.needs_gram,
        one_shot=True,
        progress=progress,
        rooms=rooms,
        ranks=job.ranks,
    )
    walk(job.task.blocks, store, calibration, clock, Survey(orderer, progress, clock))
    with clock("order"):
        orderer.settle_shared()
    return orderer.shared


def _work(task: Task, samples: Samples, surveys: bool, finished: int, room: float) -> tuple[int, str]:
    """How much there is to do, and in which unit: tokens that a block processes, or blocks.

    Args:
        surveys: whether there is a survey before.
        finished: so many blocks have been pruned by an earlier run.
        room: bytes of Gram matrices that are gathered at once.
    """
    blocks, score = len(task.blocks), SCORES[task.recipe.score]
    if not samples.batches or finished == blocks:
        return blocks * (1 + surveys), "blocks"
    work = sum(passes(task, samples, index, finished, room).tokens for index in range(blocks))
    if surveys and score.needs_inputs:
        work += samples.seen_tokens * sum(observations(task, i, True, score.needs_gram, room) for i in range(blocks))
    elif surveys:
        work += blocks  # a survey without samples counts its blocks
    return work, "tokens"
