"""Quantize a model folder: from a checkpoint to a checkpoint, with one block in memory."""

import dataclasses
import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from secateur import __version__
from secateur.calibrate.stream import Rooms
from secateur.checkpoint import Source, Writer, check_unchanged, load_into, manifest_of, read_orders
from secateur.checkpoint.quantized import Scheme, as_tensors, check_held, config_of
from secateur.devices import threads
from secateur.errors import InputError, Notice
from secateur.models.blocks import blocks_of, family_of, left_dense
from secateur.models.scale import scalable, scale_readers, shared
from secateur.models.spaces import Family, Linear, reader_groups
from secateur.progress import Clock, Progress
from secateur.pruning.footprint import quantizing
from secateur.pruning.job import Job, opened, settle
from secateur.pruning.journal import Journal, command_of
from secateur.pruning.linear import relative_error
from secateur.pruning.prepare import Selection, check_each, leave_out_skipped
from secateur.pruning.result import QuantizedLayer, Results, versions
from secateur.pruning.store import FolderStore, finished_blocks, unpruned_digests
from secateur.pruning.visit import Visit
from secateur.quantization.awq import find_scales
from secateur.quantization.grid import Grid, QuantizedWeight, check_group
from secateur.quantization.methods import QUANTIZATIONS, Unquantized
from secateur.ranks import Ranks
from secateur.recipe import QuantizationRecipe
from secateur.stats.inputs import InputStats


def quantize(
    model: str | Path,
    out: str | Path,
    recipe: QuantizationRecipe | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantize ``model``, pruned or not, and write the result to ``out``, a Hugging Face folder.

    Its linears are written in compressed-tensors' format ``pack-quantized``. What is zero before is zero after: a
    pruned model keeps its mask. Blocks are quantized in the order in which they run, each calibrated on what the
    quantized blocks before it make of the calibration samples. Only the outer parts of the model, one block and the
    hidden states are in memory.

    What lies in the blocks and is no linear stays as it is, and the manifest says which. Models with experts are
    refused: transformers loads none whose experts are dense where other linears are quantized.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        out: the folder to write; it appears only when it is complete.
        recipe: what to do; by default GPTQ at 4 bits in groups of 128, calibrated on C4.
        force: replace a model folder that Secateur wrote.
        resume: go on after the last block that a run to ``out`` had finished when it was cut short, if there was one:
            the bytes are those of a run that was not.
        progress: is told how far it is.

    Returns:
        the content of ``secateur.json``, which is part of what is written: what it said of a pruned model, and
        ``quantization``.

    Raises:
        InputError: when something given cannot be used; nothing is written then.
        OSError: when the disk is full or fails; what was finished can be resumed, as after any other interruption.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("one process quantizes a model: start it without torchrun")
    recipe, progress, clock, ranks = recipe or QuantizationRecipe(), progress or Progress(), Clock(), Ranks()
    with progress, opened(model, out, force, resume, ranks) as (work, folder):
        source = Source(folder)
        source.refuse_gathers("quantized")
        if source.scheme:
            raise InputError(f"{model} is quantized already: give the model that it was made of")
        if source.called.renamed:
            raise InputError(
                f"{model} keeps its tensors under other names than transformers has ("
                f"{next(iter(source.called.renamed))} for one): such a model cannot be quantized yet"
            )
        check_unchanged(folder)
        setting = settle(source, recipe, work, ranks)
        with threads(setting.threads):
            with clock("load"):
                job = Job.load(source, recipe, setting, ranks, partial(select, recipe=recipe), quantizing, progress)
            job.begin(work, command_of(model, out, recipe, force, "quantize"))
            scheme = Scheme(recipe.bits, recipe.group_size, recipe.evenly)
            writer = Writer(work, 1 + len(job.task.blocks))
            with job.rooms(work) as rooms:
                results = _run(job, recipe, scheme, writer, Journal(work), rooms, progress, clock)
        earlier = _manifest(folder, {f"{layer.name}.weight" for layer in results.quantized})
        kept = earlier.get("unpruned_sha256", results.unpruned)  # a pruned weight has its digest in its layer
        manifest = {
            "secateur": __version__,
            "model": str(model),
            "family": job.task.family.name,
            **earlier,
            "quantization": {
                "secateur": __version__,
                "model": str(model),
                "method": recipe.summary(),
                "recipe": recipe.to_dict(),
                "calibration": job.samples.origin,
                "computed_in": setting.dtype,
                "skipped": job.task.skipped,
                "left_dense": left_dense(job.task.blocks, job.task.skipped),
                **_sizes(source, results.quantized),
                "layers": [dataclasses.asdict(layer) for layer in results.quantized],
                "seconds": clock.seconds(),
                "versions": versions(),
            },
            "unpruned_sha256": {name: digest for name, digest in results.unpruned.items() if name in kept},
        }
        config = source.base | {"quantization_config": config_of(scheme, _ignored(job))}
        writer.finish(model, folder, manifest, read_orders(folder, whole=False), config=config)
        return manifest


def _manifest(folder: Path, quantized: Collection[str]) -> dict[str, Any]:
    """What is recorded of the model so far and holds of it still, now that tensors of these names are quantized."""
    found = manifest_of(folder)
    found.pop("files", None)
    if rounded := found.pop("rounded", None):
        still = {name: digest for name, digest in rounded["sha256"].items() if name not in quantized}
        found |= {"rounded": rounded | {"sha256": still}} if still else {}
    return found


def select(model: PreTrainedModel, recipe: QuantizationRecipe) -> Selection:
    """The linears of ``model``, which has no weights, that are quantized.

    Raises:
        InputError: when there are none, a skip names no layer, or groups do not fit.
    """
    family = family_of(model)
    blocks = blocks_of(model, family)
    for linear in (linear for block in blocks for linear in block.linears):
        if linear.stack:
            raise InputError(f"models with experts ({linear.stack}) cannot be quantized yet")
        if linear.transposed:
            raise InputError(
                f"a {family.name} model holds its linears transposed (Conv1D), and the format of quantized folders, "
                "pack-quantized, has no place for that"
            )
    blocks, skipped = leave_out_skipped(blocks, recipe)
    check_each(
        blocks,
        lambda block, linear: check_group(block.weight(linear).shape[1], recipe.group_size),
        "Choose another --group-size, or leave these layers as they are",
    )
    few = [
        block.full_name(linear)
        for block in blocks
        for linear in block.linears
        if len(weight := block.weight(linear)) * recipe.bits <= 32 and weight.shape[1] > recipe.group_size
    ]
    if few and not recipe.evenly:
        warnings.warn(
            f"{few[0]} has so few rows that compressed-tensors, and with it plain transformers, fails to read its "
            "zero-points: --symmetric has none (Secateur reads them)",
            Notice,
            stacklevel=4,
        )
    return Selection(recipe, family, blocks, skipped)


def _ignored(job: Job[Selection]) -> list[str]:
    """The names of the linears that are not quantized, as the config lists them."""
    quantized = {block.full_name(linear) for block in job.task.blocks for linear in block.linears}
    linears = [name for name, module in job.skeleton.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linears if name not in quantized]


def _sizes(source: Source, layers: list[QuantizedLayer]) -> dict[str, Any]:
    """Bytes before and after, of the quantized linears and of all tensors."""
    weights = sum(prod(layer.shape) for layer in layers)
    after = sum(layer.nbytes for layer in layers)
    before = sum(prod(layer.shape) * source.dtype(f"{layer.name}.weight").itemsize for layer in layers)
    whole = sum(prod(source.shape(name)) * source.dtype(name).itemsize for name in source.names())
    return {
        "bits_per_weight": 8 * after / weights,
        "zeros_before": sum(layer.zeros_before for layer in layers) / weights,
        "zeros": sum(layer.zeros for layer in layers) / weights,
        "bytes": {"linears": [before, after], "all": [whole, whole - before + after]},
    }


def _run(
    job: Job[Selection],
    recipe: QuantizationRecipe,
    scheme: Scheme,
    writer: Writer,
    journal: Journal,
    rooms: Rooms,
    progress: Progress,
    clock: Clock,
) -> Results:
    """Quantize and write all tensors of the model; what was done."""
    blocks = job.task.blocks
    finished = finished_blocks(blocks, journal, writer)
    load_into(job.skeleton, job.outer, "", job.device)
    progress.start(recipe.summary(), *job.ahead(finished, rooms.statistics.left))
    with FolderStore(blocks, job.source, writer, job.device, journal, clock, scheme=scheme) as store:
        with clock("write"):
            writer.add(job.source.stacks.split(job.outer))
            results = [Results(unpruned=unpruned_digests(job.outer))]
        work = Quantize(recipe, job.task.family, store, progress, clock, results)
        job.write_blocks(store, rooms, progress, clock, work, finished)
    return Results.of(results)


@dataclass(frozen=True)
class Quantize:
    """The work of the walk that quantizes: bring the linears of a block onto their grids, and write it.

    Attributes:
        results: of each block so far.
    """

    recipe: QuantizationRecipe
    family: Family
    store: FolderStore
    progress: Progress
    clock: Clock
    results: list[Results]

    def __call__(self, visit: Visit) -> None:
        """Quantize and write a block; one that an earlier run has finished comes back as it was written."""
        self.progress.at(visit.where)
        if visit.finished:
            with self.clock("read"):
                self.store.restore(visit)
        else:
            if QUANTIZATIONS[self.recipe.method].scales:
                with self.clock("scale"):
                    self._scale(visit)
            for group in reader_groups(visit.block.linears):
                self.progress.at(f"{visit.where} · {' + '.join(linear.name for linear in group)}")
                with self.clock("quantize"):
                    stats = [visit.stats.pop(linear.name, None) for linear in group]  # one object; free after its group
                    for linear, seen in zip(group, stats, strict=True):
                        self._quantize(visit, linear, seen)
            with self.clock("write"):
                self.store.write(visit)
        self.results.append(visit.results)

    def _scale(self, visit: Visit) -> None:
        """Scale the channels at all places of a block where that is exact, and changes no linear that is skipped."""
        block, recipe = visit.block, self.recipe
        for group in reader_groups(block.linears):
            reader, stats = group[0], visit.stats[group[0].name]
            gram = stats.gram
            if gram is None or not scalable(self.family, reader, block.linears):
                continue
            self.progress.at(f"{visit.where} · scales of {' + '.join(linear.name for linear in group)}")
            weights = [block.stored(linear, visit.tensors).to(block.device).float() for linear in group]
            sizes = shared(stats.square_sum, self.family, reader).sqrt().float()
            scales = find_scales(weights, gram, sizes, recipe.bits, recipe.group_size, recipe.evenly)
            scale_readers(visit.tensors, block.prefix, self.family, reader, scales.cpu())
            visit.stats |= dict.fromkeys((linear.name for linear in group), stats.divided(scales))
        self.store.load(block, visit.tensors)

    def _quantize(self, visit: Visit, linear: Linear, stats: InputStats | None) -> None:
        block, name = visit.block, visit.block.full_name(linear)
        stored, recipe = block.stored(linear, visit.tensors), self.recipe
        weight = stored.to(block.device).float()
        given = Unquantized(weight, weight != 0, stats, recipe.bits, recipe.group_size, recipe.evenly, stored.dtype)
        found = QUANTIZATIONS[recipe.method].quantize(given)
        quantized = _on_host(found)
        check_held(name, quantized)
        dense = found.dense()
        parts = as_tensors(f"{name}.weight", quantized, recipe.evenly)
        visit.results.quantized.append(
            QuantizedLayer(
                name=name,
                shape=(weight.shape[0], weight.shape[1]),
                zeros_before=int((~given.mask).sum()),
                zeros=int((dense == 0).sum()),
                relative_error=relative_error(weight, dense.float(), stats) if stats and stats.tokens else None,
                tokens=stats.tokens if stats else None,
                nbytes=sum(part.nbytes for part in parts.values()),
            )
        )
        visit.quantized[f"{name}.weight"] = parts
        stored.copy_(dense)
        block.weight(linear).copy_(dense)


def _on_host(weight: QuantizedWeight) -> QuantizedWeight:
    grid = Grid(weight.grid.bits, weight.grid.group, weight.grid.scales.cpu(), weight.grid.zeros.cpu())
    return QuantizedWeight(grid, weight.codes.cpu(), weight.dtype)
