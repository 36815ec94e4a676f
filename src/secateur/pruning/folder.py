"""Prune a model folder: from a checkpoint to a checkpoint, with one block in memory."""

import dataclasses
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
from secateur.devices import DTYPES, choose_device, threads
from secateur.digests import tensors_digest
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
    """
    recipe, progress, clock = recipe or Recipe(), progress or Progress(), Clock()
    with (
        progress,
        Workspace(out, model, force=force, resume=resume) as work,
        local_folder(str(model), work.folder) as folder,
    ):
        check_apart(work.out, folder)
        source = Source(folder)
        source.refuse_gathers("pruned again")
        setting = Setting.choose(recipe, source.config.dtype or torch.float32, work.journal.run)
        with threads(setting.threads):
            with clock("load"):
                job = _load(source, recipe, setting)
            work.begin(_identity(job, setting), command_of(model, out, recipe, force))
            writer = Writer(work, 1 + len(job.task.blocks))
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
            "skipped": job.task.skipped,
            "left_dense": left_dense(job.task.blocks, job.task.skipped),
            **results.report(clock),
            "unpruned_sha256": results.unpruned,
        }
        writer.finish(folder, manifest, orders, gathers=recipe.orders_channels and recipe.fold == "gather")
    return manifest


@dataclass(frozen=True)
class _Job:
    """All that is loaded before the first block is read."""

    source: Source
    skeleton: PreTrainedModel
    device: torch.device
    task: Task
    samples: Samples
    outer: dict[str, Tensor]  # embedding, last norm, output head
    places: tuple[Places, Places]  # for hidden states, and for what else waits


def _load(source: Source, recipe: Recipe, setting: Setting) -> _Job:
    device = choose_device(setting.device)
    skeleton = source.skeleton(DTYPES[setting.dtype], device)
    task = prepare(skeleton, recipe)
    samples = draw_samples(source, recipe, setting.batch, device)
    room = places(footprint(task, source, skeleton, samples, device), task, device)
    inside = tuple(block.prefix for block in task.blocks)
    outer = source.read([name for name in source.names() if not name.startswith(inside)])
    check_finite(outer, source.folder)
    return _Job(source, skeleton, device, task, samples, outer, room)


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
    orderer = Orderer(task)
    shared, finished = journal.orders(), finished_blocks(task.blocks, journal, writer)
    surveys = orderer.needs_survey and shared is None
    load_into(job.skeleton, job.outer, "", job.device)
    progress.start(recipe.summary(), *_work(task, samples, surveys, finished, rooms.statistics.left))
    with FolderStore(task.blocks, job.source, writer, orderer, job.device, journal, clock) as store:
        if surveys:
            shared = _survey(job, store, orderer, rooms, progress, clock)
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
        )
        work = Prune(task, orderer, store, progress, clock, results)
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
        job.skeleton, job.task.blocks, seen, gram=score.needs_gram, one_shot=True, progress=progress, rooms=rooms
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
        work += samples.seen_tokens * sum(observations(block, score.needs_gram, room) for block in task.blocks)
    elif surveys:
        work += blocks  # a survey without samples counts its blocks
    return work, "tokens"
