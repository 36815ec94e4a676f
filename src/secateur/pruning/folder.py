"""Prune a model folder: from a checkpoint to a checkpoint, with one block in memory."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from torch import Tensor, nn

from secateur import __version__
from secateur.calibrate.calibration import Calibration
from secateur.checkpoint import Source, Workspace, Writer, check_apart, check_finite, load_into, local_folder
from secateur.checkpoint.experts import Stacks
from secateur.devices import DTYPES, choose_device, return_freed_memory, threads
from secateur.digests import bytes_digest, tensors_digest
from secateur.models.blocks import Block, left_dense
from secateur.models.fold import fold_outer
from secateur.models.gather import attach_orders
from secateur.progress import Clock, Progress
from secateur.pruning.journal import Journal, Setting, command_of
from secateur.pruning.order import Orderer
from secateur.pruning.prepare import Samples, Task, draw_samples, passes, prepare
from secateur.pruning.result import Results
from secateur.pruning.visit import Visit
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
            writer, results = Writer(work, 1 + len(job.task.blocks)), Results()
            orders = _run(job, writer, Journal(work), results, progress, clock)
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
    skeleton: nn.Module
    device: torch.device
    task: Task
    samples: Samples
    outer: dict[str, Tensor]  # embedding, last norm, output head


def _load(source: Source, recipe: Recipe, setting: Setting) -> _Job:
    device = choose_device(setting.device)
    skeleton = source.skeleton(DTYPES[setting.dtype], device)
    task = prepare(skeleton, recipe)
    samples = draw_samples(source, recipe, setting.batch, device)
    inside = tuple(block.prefix for block in task.blocks)
    outer = source.read([name for name in source.names() if not name.startswith(inside)])
    check_finite(outer, source.folder)
    return _Job(source, skeleton, device, task, samples, outer)


def _identity(job: _Job, setting: Setting) -> dict[str, Any]:
    """All that the bytes of the result depend on, as plain data. Blocks are told apart one by one, as they are read."""
    return {
        "recipe": msgspec.json.decode(msgspec.json.encode(job.task.recipe)),  # with lists for tuples, as it is kept
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
    job: _Job, writer: Writer, journal: Journal, results: Results, progress: Progress, clock: Clock
) -> dict[str, Tensor]:
    """Prune and write all tensors of the model; the orders that were found, by the names of their spaces."""
    task, recipe, samples = job.task, job.task.recipe, job.samples
    orderer = Orderer(task)
    store = FolderStore(job.source, writer, orderer, job.device, journal, clock)
    shared, finished = journal.orders(), store.finished(task.blocks)
    surveys = orderer.needs_survey and shared is None
    load_into(job.skeleton, job.outer, "", job.device)
    progress.start(recipe.summary(), *_work(task, samples, surveys, finished))
    if surveys:
        shared = _survey(job, store, orderer, progress, clock)
        journal.keep_orders(shared)
    if shared:
        orderer.shared = shared
        for space, order in shared.items():
            fold_outer(job.outer, task.family, space, order)
        load_into(job.skeleton, job.outer, "", job.device)
    with clock("write"):
        writer.add(job.source.stacks.split(job.outer))
        results.unpruned |= _digests(job.outer)
    calibration = Calibration(
        job.skeleton,
        task.blocks,
        samples.batches if finished < len(task.blocks) else (),  # after the last block nobody asks for them
        held_out=samples.held_out,
        gram=recipe.needs_gram,
        one_shot=recipe.one_shot,
        progress=progress,
    )
    work = Prune(task, orderer, store, progress, clock, results)
    walk(task.blocks, store, calibration, clock, work, finished)
    return orderer.shared | results.orders


def _survey(job: _Job, store: "FolderStore", orderer: Orderer, progress: Progress, clock: Clock) -> dict[str, Tensor]:
    """Find the model-wide orders, by a walk over the dense model on the samples that statistics may see."""
    seen = job.samples.batches[: len(job.samples.batches) - job.samples.held_out]
    gram = SCORES[job.task.recipe.score].needs_gram
    calibration = Calibration(job.skeleton, job.task.blocks, seen, gram=gram, one_shot=True, progress=progress)
    walk(job.task.blocks, store, calibration, clock, Survey(orderer, progress, clock))
    with clock("order"):
        orderer.settle_shared()
    return orderer.shared


def _digests(tensors: Mapping[str, Tensor], pruned: Collection[str] = ()) -> dict[str, str]:
    """What proves of tensors that are not pruned that nobody changed them."""
    return {name: bytes_digest(tensor) for name, tensor in tensors.items() if name not in pruned}


def _work(task: Task, samples: Samples, surveys: bool, finished: int) -> tuple[int, str]:
    """How much there is to do, and in which unit: tokens that a block processes, or blocks."""
    blocks = len(task.blocks)
    if not samples.batches or finished == blocks:
        return blocks * (1 + surveys), "blocks"
    surveyed = blocks * samples.seen_tokens if surveys else 0
    return surveyed + sum(passes(task, samples, index, finished).tokens for index in range(blocks)), "tokens"


@dataclass(frozen=True)
class FolderStore:
    """Blocks out of a checkpoint, into another: the :class:`~secateur.pruning.walk.Store` of :func:`prune`."""

    source: Source
    writer: Writer
    orderer: Orderer
    device: torch.device
    journal: Journal
    clock: Clock
    _norms: dict[str, nn.Module] = field(default_factory=dict)  # of the block in memory, where they gather for now
    _dense: dict[str, str] = field(default_factory=dict)  # digests of blocks as they were read

    def finished(self, blocks: Sequence[Block]) -> int:
        """How many of the first blocks an earlier run has finished."""
        shards = enumerate(blocks, 1)  # the first is what lies outside the blocks
        return sum(1 for _ in takewhile(lambda x: self.journal.has(x[1]) and self.writer.has(x[0]), shards))

    def read(self, block: Block) -> dict[str, Tensor]:
        """As stored, with the model-wide orders folded in."""
        tensors = self.source.read(self.source.names(block.prefix))
        check_finite(tensors, self.source.folder)
        self._dense[block.prefix] = tensors_digest(tensors)
        self.orderer.fold_shared(block, tensors)
        self.load(block, tensors)
        return tensors

    def load(self, block: Block, tensors: dict[str, Tensor]) -> None:
        """Weights to the module, and gather orders to its norms."""
        load_into(block.module, tensors, block.prefix, self.device)
        self._norms.update(attach_orders(block.module, tensors, block.prefix))

    def write(self, visit: Visit) -> None:
        """A shard of the checkpoint to come, and a record of the results."""
        visit.results.unpruned |= _digests(visit.tensors, visit.block.pruned)
        self.writer.add(self.source.stacks.split(visit.tensors))
        self.journal.keep(visit.block, self._dense[visit.block.prefix], visit.results, self.clock)

    def restore(self, visit: Visit) -> None:
        """From the shard and the record."""
        visit.results = self.journal.recall(visit.block, self._dense[visit.block.prefix], self.clock)
        written = self.writer.again()
        stacks = Stacks(written)
        for name in stacks.names:
            tensor = stacks.join(name, written)
            # Into the memory that the block had when it was pruned: kernels may round by where a weight begins.
            visit.tensors[name] = visit.tensors[name].copy_(tensor) if name in visit.tensors else tensor
        visit.results.unpruned |= _digests(visit.tensors, visit.block.pruned)
        self.load(visit.block, visit.tensors)

    def release(self, block: Block) -> None:
        """The skeleton is empty again."""
        for name, norm in self._norms.items():
            block.module.set_submodule(name, norm)
        self._norms.clear()
        block.module.to("meta")
        return_freed_memory()
