"""Prune a model: the one place that knows the order of things."""

import ctypes
import dataclasses
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import Tensor

from secateur import __version__
from secateur.checkpoint import Source, Writer, check_destination, load_into, local_folder
from secateur.errors import InputError
from secateur.groups import calibrate, prune_group
from secateur.layers import LayerResult
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.fold import fold_outer
from secateur.models.guard import Trial
from secateur.models.spaces import reader_groups
from secateur.models.stream import Stream
from secateur.ordering import Orderer
from secateur.preparation import check_pattern, draw_batches, leave_out_skipped
from secateur.progress import Progress
from secateur.recipe import Recipe, choose_device, choose_dtype
from secateur.runtime.gather import gathered
from secateur.scores import SCORES
from secateur.stats import InputStats


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
        progress: hears how the work goes.

    Returns:
        the content of ``secateur.json``, which is part of what is written.

    Raises:
        InputError: when something given cannot be used; nothing is written then.
    """
    recipe, progress, out = recipe or Recipe(), progress or Progress(), Path(out)
    check_destination(out, force)
    device = choose_device(recipe.device)
    out.parent.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    with progress, local_folder(str(model), out.parent) as folder, Writer(out, force) as writer:
        with clock("load"):
            source = Source(folder)
            source.refuse_gathers("pruned again")
            dtype = choose_dtype(recipe.dtype, source.config.dtype or torch.float32, device)
            skeleton = source.skeleton(dtype, device)
            family = family_of(skeleton)
            all_blocks = blocks_of(skeleton, family)
            blocks, skipped = leave_out_skipped(all_blocks, recipe)
            check_pattern(blocks, recipe)
            if recipe.orders_channels and recipe.fold == "gather" and not (family.rules and family.gathers):
                raise InputError(f"--fold gather needs a norm before every reader, and a {family.name} model has not")
            batches, held_out, calibration = draw_batches(source, recipe, device)
            inside = tuple(block.prefix for block in blocks)
            outer = source.read([name for name in source.names() if not name.startswith(inside)])
            load_into(skeleton, outer, "", device)

        job = _Job(recipe, source, blocks, held_out, device, progress, clock)
        orderer = None
        if recipe.orders_channels and recipe.fold != "none":
            orderer = Orderer(recipe, family, device)
        surveys = orderer is not None and recipe.fold == "exact" and "model" in family.rules.values()
        job.announce(batches, surveys)
        if orderer is not None and surveys:
            job.survey(orderer, skeleton, batches)
            for space, order in orderer.orders.items():
                fold_outer(outer, family, space, order)
            load_into(skeleton, outer, "", device)
        with clock("write"):
            writer.add(source.stacks.apart(outer))
        layers, trials, orders = job.prune_blocks(orderer, skeleton, batches, writer)

        manifest = {
            "secateur": __version__,
            "model": str(model),
            "family": family.name,
            "method": recipe.summary(),
            "recipe": recipe.to_dict(),
            "calibration": calibration,
            "computed_in": str(dtype).removeprefix("torch."),
            "skipped": skipped,
            **account(layers, trials, clock),
        }
        writer.finish(folder, manifest, orders, gathers=orderer is not None and recipe.fold == "gather")
    return manifest


@dataclasses.dataclass(frozen=True)
class _Job:
    """The blocks of one model on their way through one recipe."""

    recipe: Recipe
    source: Source
    blocks: Sequence[Block]
    held_out: int
    device: torch.device
    progress: Progress
    clock: "Clock"

    def announce(self, batches: Sequence[Tensor], surveys: bool) -> None:
        """Tell the progress how much there is to do."""
        blocks = len(self.blocks)
        passes = blocks if self.recipe.one_shot else 2 * blocks - 1  # the last block is not run again
        tokens = sum(batch.numel() for batch in batches)
        if batches:
            held_out = sum(batch.numel() for batch in batches[len(batches) - self.held_out :])
            groups = sum(len(reader_groups(block.linears)) for block in self.blocks)
            judged = blocks + groups * (1 + len(self.recipe.steps)) if self.held_out else 0
            self.progress.start(self.recipe.summary(), (passes + blocks * surveys) * tokens + judged * held_out)
        else:
            self.progress.start(self.recipe.summary(), blocks * (1 + surveys), "blocks")

    def survey(self, orderer: Orderer, skeleton: torch.nn.Module, batches: Sequence[Tensor]) -> None:
        """Find the model-wide orders, from the scores of the dense model."""
        stream: Stream | None = None
        for index, block in enumerate(self.blocks):
            self.progress.at(f"survey of block {index + 1}/{len(self.blocks)}")
            tensors = self._read(block)
            stats: dict[str, InputStats] = {}
            if batches:
                with self.clock("calibrate"):
                    stream = stream or Stream(skeleton, self.blocks, batches, self.progress, held_out=self.held_out)
                    more = index + 1 < len(self.blocks)
                    stats = stream.observe(index, stream.tokens, more, SCORES[self.recipe.score].needs_gram)
            else:
                self.progress.advance(1)
            with self.clock("order"):
                orderer.survey(block, len(self.blocks), tensors, stats)
            del tensors, stats
            self._release(block)
        with self.clock("order"):
            orderer.settle_shared()

    def prune_blocks(
        self, orderer: Orderer | None, skeleton: torch.nn.Module, batches: Sequence[Tensor], writer: Writer
    ) -> tuple[list[LayerResult], list[Trial], dict[str, Tensor]]:
        """Order, prune and write block after block; what became of the linears, what the guard said, every order."""
        recipe, stream = self.recipe, None
        layers: list[LayerResult] = []
        trials: list[Trial] = []
        orders: dict[str, Tensor] = orderer.orders if orderer else {}
        for index, block in enumerate(self.blocks):
            here, last = f"block {index + 1}/{len(self.blocks)}", index + 1 == len(self.blocks)
            self.progress.at(here)
            tensors = self._read(block, orderer)
            stats: dict[str, InputStats] = {}
            guard = None
            if batches:
                with self.clock("calibrate"):
                    stream = stream or Stream(skeleton, self.blocks, batches, self.progress, held_out=self.held_out)
                    stats, guard = calibrate(stream, index, recipe)
            folds: dict[str, dict[str, float]] = {}
            if orderer is not None:
                with self.clock("order"):
                    folds = orderer.compare(block, tensors, stats) if recipe.compare_folds else {}
                    orderer.order_block(block, tensors, stats)
                    load_into(block.module, tensors, block.prefix, self.device)
            with gathered(block.module, tensors, block.prefix):
                for group in reader_groups(block.linears):
                    self.progress.at(f"{here} · {' + '.join(linear.name for linear in group)}")
                    with self.clock("prune"):
                        results, tried = prune_group(block, group, tensors, stats, recipe, orders, guard, self.device)
                    trials += tried
                    layers += [
                        replace(result, folds=self._shares(result, folds.get(linear.name)))
                        for linear, result in zip(group, results, strict=True)
                    ]
                with self.clock("write"):
                    writer.add(self.source.stacks.apart(tensors))
                if stream is None:
                    self.progress.advance(1)
                elif not recipe.one_shot and not last:
                    with self.clock("calibrate"):
                        stream.advance(index)
            del tensors, stats, guard
            self._release(block)
        return layers, trials, orders

    def _shares(self, result: LayerResult, compared: dict[str, float] | None) -> dict[str, float]:
        """What each fold mode retains: readers of other spaces retain with gather what they do as folded now."""
        return {"gather": result.retained} | compared | {self.recipe.fold: result.retained} if compared else {}

    def _read(self, block: Block, orderer: Orderer | None = None) -> dict[str, Tensor]:
        """The tensors of a block, with the model-wide orders folded in, given to its module as well."""
        with self.clock("read"):
            tensors = self.source.read(self.source.names(block.prefix))
            if orderer is not None:
                orderer.fold_shared(block, tensors)
            load_into(block.module, tensors, block.prefix, self.device)
        return tensors

    def _release(self, block: Block) -> None:
        block.module.to("meta")
        _return_freed_memory()


def account(layers: Sequence[LayerResult], trials: Sequence[Trial], clock: "Clock") -> dict[str, Any]:
    """The part of the manifest that tells how it went, and with which versions."""
    sizes = [layer.shape[0] * layer.shape[1] for layer in layers]
    zeros = sum(layer.sparsity * size for layer, size in zip(layers, sizes, strict=True))
    return {
        "sparsity": zeros / max(1, sum(sizes)),
        "layers": [dataclasses.asdict(layer) for layer in layers],
        "guard": [dataclasses.asdict(trial) for trial in trials],
        "seconds": clock.seconds(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors.__version__,
        },
    }


def _return_freed_memory() -> None:
    """Give what was freed back to the system.

    glibc keeps freed activations in its heap, so fragmented that each block would need fresh memory: on
    SmolLM2 the process grew by 35 MB a block.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Clock:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Count what is done in this context as ``kind``."""
        began = time.perf_counter()
        yield
        self._spent[kind] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds by kind, to the millisecond."""
        return {kind: round(spent, 3) for kind, spent in self._spent.items()}
