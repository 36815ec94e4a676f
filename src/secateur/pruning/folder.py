"""Prune a model folder: from a checkpoint to a checkpoint, with one block in memory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import __version__
from secateur.calibrate.calibration import Calibration
from secateur.checkpoint import Source, Writer, check_destination, load_into, local_folder
from secateur.devices import choose_device, choose_dtype, return_freed_memory
from secateur.models.blocks import Block
from secateur.models.fold import fold_outer
from secateur.models.gather import attach_orders
from secateur.models.spaces import reader_groups
from secateur.progress import Clock, Progress
from secateur.pruning.order import Orderer
from secateur.pruning.prepare import Samples, Task, draw_samples, prepare
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
        force: replace a model folder that is already there.
        progress: is told how far it is.

    Returns:
        the content of ``secateur.json``, which is part of what is written.

    Raises:
        InputError: when something given cannot be used; nothing is written then.
    """
    recipe, progress, out = recipe or Recipe(), progress or Progress(), Path(out)
    check_destination(out, force)
    device = choose_device(recipe.device)
    out.parent.mkdir(parents=True, exist_ok=True)
    clock, results = Clock(), Results()
    with progress, local_folder(str(model), out.parent) as folder, Writer(out, force) as writer:
        with clock("load"):
            source = Source(folder)
            source.refuse_gathers("pruned again")
            dtype = choose_dtype(recipe.dtype, source.config.dtype or torch.float32, device)
            skeleton = source.skeleton(dtype, device)
            task = prepare(skeleton, recipe)
            samples = draw_samples(source, recipe, device)
            outer = _read_outer(source, task)
            load_into(skeleton, outer, "", device)

        orderer = Orderer(task)
        store = FolderStore(source, writer, orderer, device)
        progress.start(recipe.summary(), *_work(task, samples, orderer.needs_survey))
        if orderer.needs_survey:
            _survey(skeleton, task, samples, store, orderer, progress, clock)
            for space, order in orderer.shared.items():
                fold_outer(outer, task.family, space, order)
            load_into(skeleton, outer, "", device)
        with clock("write"):
            writer.add(source.stacks.split(outer))
        calibration = Calibration(
            skeleton,
            task.blocks,
            samples.batches,
            held_out=samples.held_out,
            gram=recipe.needs_gram,
            one_shot=recipe.one_shot,
            progress=progress,
        )
        walk(task.blocks, store, calibration, clock, Prune(task, orderer, store, progress, clock, results))

        manifest = {
            "secateur": __version__,
            "model": str(model),
            "family": task.family.name,
            "method": recipe.summary(),
            "recipe": recipe.to_dict(),
            "calibration": samples.origin,
            "computed_in": str(dtype).removeprefix("torch."),
            "skipped": task.skipped,
            **results.report(clock),
        }
        gathers = recipe.orders_channels and recipe.fold == "gather"
        writer.finish(folder, manifest, orderer.shared | results.orders, gathers=gathers)
    return manifest


def _survey(
    skeleton: nn.Module,
    task: Task,
    samples: Samples,
    store: "FolderStore",
    orderer: Orderer,
    progress: Progress,
    clock: Clock,
) -> None:
    """Find the model-wide orders, by a walk over the dense model on the samples that statistics may see."""
    seen = samples.batches[: len(samples.batches) - samples.held_out]
    gram = SCORES[task.recipe.score].needs_gram
    calibration = Calibration(skeleton, task.blocks, seen, gram=gram, one_shot=True, progress=progress)
    walk(task.blocks, store, calibration, clock, Survey(orderer, progress, clock))
    with clock("order"):
        orderer.settle_shared()


def _read_outer(source: Source, task: Task) -> dict[str, Tensor]:
    """What lies outside the blocks: embedding, last norm, output head."""
    inside = tuple(block.prefix for block in task.blocks)
    return source.read([name for name in source.names() if not name.startswith(inside)])


def _work(task: Task, samples: Samples, surveys: bool) -> tuple[int, str]:
    """How much there is to do, and in which unit: tokens that a block processes, or blocks."""
    blocks = len(task.blocks)
    if not samples.batches:
        return blocks * (1 + surveys), "blocks"
    passes = blocks if task.recipe.one_shot else 2 * blocks - 1  # the last block is not run again
    groups = sum(len(reader_groups(block.linears)) for block in task.blocks)
    judged = blocks + groups * (1 + len(task.recipe.steps)) if samples.held_out else 0
    surveyed = blocks * (samples.tokens - samples.held_out_tokens) if surveys else 0
    return passes * samples.tokens + judged * samples.held_out_tokens + surveyed, "tokens"


@dataclass(frozen=True)
class FolderStore:
    """Blocks out of a checkpoint, into another: the :class:`~secateur.pruning.walk.Store` of :func:`prune`."""

    source: Source
    writer: Writer
    orderer: Orderer
    device: torch.device
    _norms: dict[str, nn.Module] = field(default_factory=dict)  # of the block in memory, where they gather for now

    def read(self, block: Block) -> dict[str, Tensor]:
        """As stored, with the model-wide orders folded in."""
        tensors = self.source.read(self.source.names(block.prefix))
        self.orderer.fold_shared(block, tensors)
        self.load(block, tensors)
        return tensors

    def load(self, block: Block, tensors: dict[str, Tensor]) -> None:
        """Weights to the module, and gather orders to its norms."""
        load_into(block.module, tensors, block.prefix, self.device)
        self._norms.update(attach_orders(block.module, tensors, block.prefix))

    def write(self, visit: Visit) -> None:
        """A shard of the checkpoint to come."""
        self.writer.add(self.source.stacks.split(visit.tensors))

    def release(self, block: Block) -> None:
        """The skeleton is empty again."""
        for name, norm in self._norms.items():
            block.module.set_submodule(name, norm)
        self._norms.clear()
        block.module.to("meta")
        return_freed_memory()
