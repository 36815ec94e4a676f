"""A model within a budget: of bytes, or of what it may lose.

Two things make a packed model smaller: fewer bits for each weight that is kept, and fewer weights. Fewer bits come
first. Where it was measured 8 bits cost next to nothing, and 4 bits far less than the weights that would have to go for
as many bytes (docs/quantization.md). So a size is reached by bits alone if that will do, and else by 4 bits and as few
weights as must go. Those go anywhere, which costs least: a mask takes one bit per weight in any pattern.

What a model loses only runs tell. Bits are tried first, the fewest that keep within the loss; then a bisection finds
the most weights that may go besides, all runs on the same calibration samples and judged on the same held-out text.
"""

import math
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from secateur.checkpoint import outline
from secateur.checkpoint.destination import check_destination
from secateur.checkpoint.sparse import packed_bytes
from secateur.errors import InputError
from secateur.evaluation.evaluate import evaluate
from secateur.models.blocks import blocks_of, family_of
from secateur.options import WalkOptions
from secateur.packing import pack
from secateur.patterns import Unstructured, count_kept
from secateur.progress import Progress
from secateur.pruning.folder import prune
from secateur.pruning.prepare import leave_out_skipped
from secateur.quantizing import quantize, select
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.scores import SCORES
from secateur.sizes import parse_size, show_size

# Bits of a weight, what costs least first; the first are those of a weight that stays as it is.
PLAIN, BITS = 16, (16, 8, 4)
# Columns that share a scale: the most of these that fit all widths.
GROUPS = (128, 64, 32)
# Per cent of the weights that may go at most, and how near a bisection comes to what may go.
MOST, NEAR = 90, 3


@dataclass(frozen=True)
class Way:
    """One way to make a model smaller.

    Attributes:
        bits: of each weight that is kept in the linears; 16 where they stay as they are stored.
        sparsity: the share of the linears' weights that go.
        size: bytes of all tensors, packed: at most, since weights that are rounded to zero go as well.
        loss: the rise of the perplexity over the dense model's, as a share of it; None where it was not measured.
    """

    bits: int
    sparsity: float
    size: int
    loss: float | None = None

    def __str__(self) -> str:
        values = "weights as they are" if self.bits == PLAIN else f"{self.bits} bits"
        return f"{self.sparsity:.0%} pruned, {values}" if self.sparsity else f"dense, {values}"


@dataclass(frozen=True)
class Compression:
    """What a budget came to.

    Attributes:
        model: the model, as it was named.
        dense: what it takes as it is.
        ways: what was considered, or tried; the first was written.
        reason: why that, in words.
        size: bytes of all tensors that were written.
    """

    model: str
    dense: int
    ways: list[Way]
    reason: str
    size: int


# Bytes of all tensors, packed, by the bits of a weight and the per cent of the weights that go.
Size = Callable[[int, int], int]


def compress(
    model: str | Path,
    out: str | Path,
    *,
    target_size: str | None = None,
    max_loss: str | None = None,
    recipe: Recipe | None = None,
    data: str = "wikitext2",
    window: int | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Compression:
    """Write ``model`` packed, within a budget: in at most so many bytes, or as small as a loss allows.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        out: the folder to write; :func:`secateur.load` runs it, :func:`secateur.unpack` makes a plain one of it.
        target_size: bytes of all tensors, such as ``4GB``: what is done follows from shapes, without a try.
        max_loss: the rise of the perplexity that is allowed, such as ``5%``: every try is a run.
        recipe: how to prune, but for sparsity and pattern, and which samples to calibrate on.
        data: the text that a loss is measured on; nothing should be calibrated on it.
        window: tokens per window of it; by default the model's context, at most 2048.
        limit: use only so many windows of it.
        force: replace a model folder that Secateur wrote.
        progress: is told how far each run is.

    Raises:
        InputError: when something given cannot be used, the budget asks for nothing, or it cannot be kept.
    """
    recipe, out = recipe or Recipe(), Path(out)
    if (target_size is None) == (max_loss is None):
        raise InputError("give one budget: --target-size, such as 4GB, or --max-loss, such as 5%")
    if recipe.sparsity is not None or recipe.pattern is not None:
        raise InputError("a budget finds the sparsity: give no --sparsity, and no --pattern")
    target = parse_size(target_size) if target_size is not None else 0
    allowed = _parse_loss(max_loss) if max_loss is not None else 0.0
    check_destination(out, force)
    skeleton = outline(str(model))
    rounding = _rounding(skeleton, recipe)
    size = _sizes(skeleton, recipe, rounding.group_size)
    ways, reason = _by_size(size, target) if target else ([], "")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as home:
        workshop = _Workshop(str(model), recipe, rounding, Path(home), progress)
        if allowed:

            def perplexity(folder: str) -> float:
                (found,) = evaluate(
                    folder,
                    data,
                    window=window,
                    limit=limit,
                    device=recipe.device,
                    memory=recipe.memory,
                    progress=progress,
                )
                return found.perplexity

            dense = perplexity(str(model))
            ways, reason = _by_loss(
                size, allowed, lambda way: perplexity(str(workshop.folder(way))) / dense - 1, workshop.forget
            )
        packing = pack(workshop.folder(ways[0]), out, force=force, progress=progress)
    return Compression(str(model), size(PLAIN, 0), ways, reason, packing.total_packed_bytes)


def _parse_loss(text: str) -> float:
    """``5%``, or 0.05. Raises :class:`InputError` for what is no share above 0."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{0,9})?)\s*(%?)\s*", text, re.ASCII)
    if match is None or not float(match[1]):
        raise InputError(f"a loss of {text!r} makes no sense: give a rise of the perplexity above 0, such as 5%")
    return float(match[1]) / (100 if match[2] else 1)


# ---------------------------------------------------------------- by size


def _rounding(model: PreTrainedModel, recipe: Recipe) -> QuantizationRecipe:
    """How weights come onto fewer bits, on the same samples, in the largest groups that all widths allow.

    Raises:
        InputError: when a model cannot be quantized.
    """
    shared = {field.name: getattr(recipe, field.name) for field in fields(WalkOptions)}
    blocks, _ = leave_out_skipped(blocks_of(model, family_of(model)), recipe)
    widths = math.gcd(*(block.weight(linear).shape[1] for block in blocks for linear in block.linears))
    rounding = QuantizationRecipe(
        **shared, group_size=next((each for each in GROUPS if widths % each == 0), GROUPS[-1])
    )
    select(model, rounding)
    return rounding


def _sizes(model: PreTrainedModel, recipe: Recipe, group: int) -> Size:
    """What says how many bytes the tensors of ``model`` take at most."""
    itemsize = (model.config.dtype or torch.float32).itemsize
    blocks, _ = leave_out_skipped(blocks_of(model, family_of(model)), recipe)
    shapes = [block.weight(linear).shape for block in blocks for linear in block.linears]
    outside = sum(parameter.numel() for parameter in model.parameters()) - sum(
        rows * columns for rows, columns in shapes
    )
    scope = recipe.scope or SCORES[recipe.score].scope

    def size(bits: int, percent: int) -> int:
        pattern, value = Unstructured(percent / 100, scope), 8 * itemsize if bits == PLAIN else bits
        packed = 0
        for rows, columns in shapes:
            taken = packed_bytes(rows, columns, count_kept(rows, columns, pattern), value, group)
            packed += min(rows * columns * itemsize, taken)
        return outside * itemsize + packed

    return size


def _by_size(size: Size, target: int) -> tuple[list[Way], str]:
    """Ways to ``target`` bytes, the best one first, and why it is."""
    if size(PLAIN, 0) <= target:
        raise InputError(f"the model takes {show_size(size(PLAIN, 0))} as it is, which is within {show_size(target)}")
    least = {bits: next((at for at in range(MOST + 1) if size(bits, at) <= target), None) for bits in BITS}
    ways = [Way(bits, at / 100, size(bits, at)) for bits, at in least.items() if at is not None]
    if not ways:
        smallest = size(BITS[-1], MOST)
        raise InputError(
            f"{show_size(target)} cannot be reached: with {MOST} % of the weights gone and {BITS[-1]} bits for the "
            f"others it takes {show_size(smallest)}"
        )
    if dense := [way for way in ways if not way.sparsity]:
        others = " or ".join(f"{way.sparsity:.0%} of them" for way in ways if way.sparsity)
        return [dense[0], *(way for way in ways if way != dense[0])], (
            f"{dense[0].bits} bits for all weights are enough, and cost far less than it would to remove {others}"
        )
    return ways[::-1], f"even at {BITS[-1]} bits all weights would take {show_size(size(BITS[-1], 0))}"


# ---------------------------------------------------------------- by loss


def _by_loss(
    size: Size, allowed: float, loss: Callable[[Way], float], forget: Callable[[Way], None]
) -> tuple[list[Way], str]:
    """What was tried, the smallest that keeps within the loss first, and why it is.

    Args:
        size: of what is tried.
        allowed: the loss that is.
        loss: makes what is to be tried, and measures it.
        forget: is told of what was made and will not be the best.
    """
    tried: list[Way] = []
    best = Way(PLAIN, 0, size(PLAIN, 0), 0.0)

    def keeps(bits: int, percent: int) -> bool:
        """Whether a try keeps within the loss; it is the best one then."""
        nonlocal best
        way = Way(bits, percent / 100, size(bits, percent))
        found = loss(way)
        way = replace(way, loss=found)
        tried.append(way)
        within = found <= allowed
        forget(best if within else way)
        best = way if within else best
        return within

    bits = next((bits for bits in BITS[:0:-1] if keeps(bits, 0)), PLAIN)
    # A mask pays only where that many weights go.
    fewest = next(at for at in range(MOST + 1) if size(bits, at) < size(bits, 0))
    good, bad = fewest - 1, MOST + 1
    while bad - good > NEAR:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if keeps(bits, middle) else (good, middle)
    if best not in tried:
        least = min(tried, key=lambda way: way.loss or 0.0)
        raise InputError(
            f"nothing keeps within {allowed:.3g}: {least} costs {least.loss:.1%}, the least that was tried"
        )
    fewer = f"{bits} bits cost less than is allowed" if bits != PLAIN else "8 bits cost more than is allowed"
    more = "more weights would cost more" if best.sparsity else "no weights can go besides that a mask would pay for"
    return [best, *(way for way in tried if way != best)], f"{fewer}, and {more}"


class _Workshop:
    """Makes models in a folder of its own."""

    def __init__(
        self, model: str, recipe: Recipe, rounding: QuantizationRecipe, home: Path, progress: Progress | None
    ) -> None:
        self._model, self._recipe, self._rounding = model, recipe, rounding
        self._home, self._progress = home, progress

    def folder(self, way: Way) -> Path:
        """The model made so, not packed yet; made if it is not there."""
        made, pruned = self._place(way), self._home / "pruned"
        if made.exists():
            return made
        source: str | Path = self._model
        if way.sparsity:
            source = made if way.bits == PLAIN else pruned
            prune(self._model, source, replace(self._recipe, sparsity=way.sparsity), progress=self._progress)
        if way.bits != PLAIN:
            gptq = self._rounding
            rounding = gptq if way.bits == gptq.bits else replace(gptq, bits=8, method="rtn")
            quantize(source, made, rounding, progress=self._progress)
            shutil.rmtree(pruned, ignore_errors=True)
        return made

    def forget(self, way: Way) -> None:
        """Remove what was made."""
        shutil.rmtree(self._place(way), ignore_errors=True)

    def _place(self, way: Way) -> Path:
        return self._home / f"{way.bits}-{way.sparsity:g}"
