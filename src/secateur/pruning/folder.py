"""Prune a model folder: from a checkpoint to a checkpoint, with one block in memory."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur import __version__
from secateur.calibrate.calibration import Calibration
from secateur.calibrate.divergence import HeldOut
from secateur.calibrate.stream import Rooms
from secateur.checkpoint import Source, Writer, load_into
from secateur.devices import threads
from secateur.models.blocks import left_dense, weights_in
from secateur.models.fold import fold_outer
from secateur.patterns import spell
from secateur.progress import Clock, Progress
from secateur.pruning.allocation import find_allocation, probed
from secateur.pruning.footprint import pruning
from secateur.pruning.job import Job, opened, settle
from secateur.pruning.journal import Journal, command_of
from secateur.pruning.order import Orderer
from secateur.pruning.prepare import Task, observations, prepare
from secateur.pruning.result import Results
from secateur.pruning.store import FolderStore, finished_blocks, unpruned_digests
from secateur.pruning.walk import Prune, Survey, walk
from secateur.ranks import joined
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
    with progress, joined() as ranks, opened(model, out, force, resume, ranks) as (work, folder):
        source = Source(folder)
        source.refuse_gathers("pruned again")
        setting = settle(source, recipe, work, ranks)
        with threads(setting.threads):
            with clock("load"):
                job = Job.load(source, recipe, setting, ranks, partial(prepare, recipe=recipe), pruning, progress)
            job.begin(work, command_of(model, out, recipe, force))
            writer = Writer(work, 1 + len(job.task.blocks), elsewhere=not ranks.first)
            with job.rooms(work) as rooms:
                job, results, orders, held_out = _run(job, writer, Journal(work), rooms, progress, clock)
        manifest = {
            "secateur": __version__,
            "model": str(model),
            "family": job.task.family.name,
            "method": recipe.summary(),
            "recipe": job.task.recipe.to_dict(),
            "allocated": recipe.allocate,
            "calibration": job.samples.origin,
            "computed_in": setting.dtype,
            "processes": ranks.size,
            "skipped": job.task.skipped,
            "left_dense": left_dense(job.task.blocks, job.task.skipped),
            **results.report(clock, weights_in(job.task.blocks)),
            "held_out": held_out and asdict(held_out),
            "unpruned_sha256": results.unpruned,
        }
        if ranks.first:
            gathers = recipe.orders_channels and recipe.fold == "gather"
            writer.finish(model, folder, manifest, orders, gathers, source.base if source.decodes else None)
        return ranks.tell(manifest, dict[str, Any])


def _run(
    job: Job[Task], writer: Writer, journal: Journal, rooms: Rooms, progress: Progress, clock: Clock
) -> tuple[Job[Task], Results, dict[str, Tensor], HeldOut | None]:
    """Prune and write all tensors of the model; the job with what was allocated, what was done, all orders, by the
    names of their spaces, and how far the guard's samples find it from the dense one.
    """
    task, recipe = job.task, job.task.recipe
    ranks, orderer = job.ranks, Orderer(task, job.ranks)
    shared, sparsities = journal.orders(), journal.allocation()
    finished = ranks.tell(finished_blocks(task.blocks, journal, writer) if ranks.first else None, int)
    surveys = orderer.needs_survey and shared is None
    allocates = recipe.allocate and sparsities is None
    load_into(job.skeleton, job.outer, "", job.device)
    progress.start(recipe.summary(), *_work(job, surveys, allocates, finished, rooms.statistics.left))
    if recipe.allocate:
        with clock("allocate"):
            recipe = replace(recipe, allocate=False, sparsity=sparsities or _allocate(job, journal, rooms, progress))
        job = replace(job, task=(task := prepare(job.skeleton, recipe)))
    with FolderStore(task.blocks, job.source, writer, job.device, journal, clock, orderer.fold_shared) as store:
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
        work = Prune(task, orderer, store, progress, clock, results, ranks)
        held_out = job.write_blocks(store, rooms, progress, clock, work, finished)
    whole = Results.of(results)
    return job, whole, orderer.shared | whole.orders, held_out


def _survey(
    job: Job[Task], store: FolderStore, orderer: Orderer, rooms: Rooms, progress: Progress, clock: Clock
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


def _allocate(job: Job[Task], journal: Journal, rooms: Rooms, progress: Progress) -> str:
    """Find a sparsity for each linear, as a recipe spells them; the first rank does, and tells the others."""
    if not job.ranks.first:
        return job.ranks.tell(None, str)
    found = find_allocation(job.source, job.skeleton, job.task, job.samples, rooms, progress)
    journal.keep_allocation(spell(found))
    return job.ranks.tell(spell(found), str)


def _work(job: Job[Task], surveys: bool, allocates: bool, finished: int, room: float) -> tuple[int, str]:
    """How much there is to do, and in which unit: see :meth:`~secateur.pruning.job.Job.ahead`.

    Args:
        surveys: whether there is a survey before.
        allocates: whether sparsities of layers are found before.
        finished: so many blocks have been pruned by an earlier run.
        room: bytes of Gram matrices that are gathered at once.
    """
    task, blocks, score = job.task, len(job.task.blocks), SCORES[job.task.recipe.score]
    work, unit = job.ahead(finished, room)
    if allocates:
        work += sum(probed(task, job.samples, index) for index in range(blocks))
    if surveys and unit == "tokens" and score.needs_inputs:
        seen = job.samples.share(job.ranks).seen_tokens
        work += seen * sum(observations(task, index, True, score.needs_gram, room) for index in range(blocks))
    elif surveys:
        work += blocks  # a survey without samples counts its blocks
    return work, unit
