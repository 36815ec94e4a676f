"""Prune a model: the one place that knows the order of things."""

import ctypes
import dataclasses
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from secateur import __version__, data
from secateur.checkpoint import Source, Writer, check_destination, load_into, local_folder
from secateur.errors import InputError
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.stream import Stream
from secateur.progress import Progress
from secateur.recipe import Recipe, choose_device, choose_dtype
from secateur.scores import SCORES, check_finite
from secateur.sparsity import check_fits, retained, select, sparsity_of
from secateur.stats import InputStats

# A forward pass takes as many samples at a time as make about this many tokens.
TOKENS_PER_BATCH = 2048
# Output errors are measured on about this many input rows of each linear, spread over all samples.
ERROR_ROWS = 256


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
    clock = _Clock()
    with progress, local_folder(str(model), out.parent) as folder, Writer(out, force) as writer:
        with clock("load"):
            source = Source(folder)
            dtype = choose_dtype(recipe.dtype, source.config.dtype or torch.float32, device)
            skeleton = source.skeleton(dtype, device)
            family = family_of(skeleton)
            blocks, skipped = _leave_out_skipped(blocks_of(skeleton, family), recipe)
            _check_pattern(blocks, recipe)
            batches, calibration = _draw_batches(source, recipe, device)
            inside = tuple(block.prefix for block in blocks)
            outer = source.read([name for name in source.names() if not name.startswith(inside)])
            load_into(skeleton, outer, "", device)
        with clock("write"):
            writer.add(outer)

        stream: Stream | None = None
        stats: dict[str, InputStats] = {}
        layers: list[LayerResult] = []
        _announce(progress, recipe, batches, len(blocks))
        for index, block in enumerate(blocks):
            here, last = f"block {index + 1}/{len(blocks)}", index == len(blocks) - 1
            progress.at(here)
            with clock("read"):
                tensors = source.read(source.names(block.prefix))
                load_into(block.module, tensors, block.prefix, device)
            if batches:
                with clock("calibrate"):
                    stream = stream or Stream(skeleton, blocks, batches, progress)
                    stride = max(1, stream.tokens // ERROR_ROWS)
                    stats = stream.observe(index, stride, keep_output=recipe.one_shot and not last)
            for linear in block.linears:
                progress.at(f"{here} · {linear.name}")
                name = block.full_name(linear)
                with clock("prune"):
                    layers.append(
                        _prune_linear(name, tensors[f"{name}.weight"], stats.get(linear.name), recipe, device)
                    )
            with clock("write"):
                writer.add(tensors)
            if stream is None:
                progress.advance(1)
            elif not recipe.one_shot and not last:
                with clock("calibrate"):
                    load_into(block.module, tensors, block.prefix, device)
                    stream.advance(index)
            block.module.to("meta")
            _return_freed_memory()

        manifest = {
            "secateur": __version__,
            "model": str(model),
            "family": family.name,
            "method": recipe.summary(),
            "recipe": recipe.to_dict(),
            "calibration": calibration,
            "computed_in": str(dtype).removeprefix("torch."),
            "sparsity": _overall_sparsity(layers),
            "skipped": skipped,
            "layers": [dataclasses.asdict(layer) for layer in layers],
            "seconds": clock.seconds(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "safetensors": safetensors.__version__,
            },
        }
        writer.finish(folder, manifest)
    return manifest


# ---------------------------------------------------------------- one linear


@dataclass(frozen=True)
class LayerResult:
    """What became of one linear.

    Attributes:
        name: its full name.
        shape: ``(O, I)``.
        sparsity: the share of its weights that are zero now.
        retained: the share of the total score that its kept weights hold.
        relative_error: ‖X(W − W′)ᵀ‖ / ‖XWᵀ‖ in the Frobenius norm, over a sample X of its calibration
            inputs; None when it was scored without inputs.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    retained: float
    relative_error: float | None


def _prune_linear(
    name: str, weight: Tensor, stats: InputStats | None, recipe: Recipe, device: torch.device
) -> LayerResult:
    """Prune ``weight`` (O, I) in place, as stored, and say how it went."""
    dense = weight.to(device)
    check_finite(dense, stats, name)
    score = SCORES[recipe.score].function(dense, stats, recipe.alpha)
    mask = select(score, recipe.target)
    error = _relative_error(dense, mask, stats) if stats else None
    weight.masked_fill_(~mask.to(weight.device), 0)
    return LayerResult(name, (weight.shape[0], weight.shape[1]), sparsity_of(weight), retained(score, mask), error)


def _relative_error(weight: Tensor, mask: Tensor, stats: InputStats) -> float:
    """See :class:`LayerResult`; 0 for a linear whose outputs are all zero."""
    inputs, weight = stats.sample.float(), weight.float()
    size = (inputs @ weight.T).norm()
    lost = (inputs @ weight.masked_fill(mask, 0).T).norm()
    return (lost / size).item() if size > 0 else 0.0


def _overall_sparsity(layers: Sequence[LayerResult]) -> float:
    """The share of zeros among all weights that were pruned."""
    sizes = [layer.shape[0] * layer.shape[1] for layer in layers]
    return sum(layer.sparsity * size for layer, size in zip(layers, sizes, strict=True)) / max(1, sum(sizes))


# ---------------------------------------------------------------- before the work


def _leave_out_skipped(blocks: Sequence[Block], recipe: Recipe) -> tuple[list[Block], list[str]]:
    """The blocks without the linears that the recipe skips, and the names of those."""
    skipped = [name for b in blocks for x in b.linears if recipe.skips(name := b.full_name(x))]
    for pattern in recipe.skip:
        if not any(replace(recipe, skip=(pattern,)).skips(name) for name in skipped):
            raise InputError(f"--skip {pattern} names no layer; `secateur inspect` lists them")
    kept = [replace(b, linears=tuple(x for x in b.linears if not recipe.skips(b.full_name(x)))) for b in blocks]
    if not any(block.linears for block in kept):
        raise InputError("every layer is skipped: there is nothing to prune")
    return kept, skipped


def _check_pattern(blocks: Sequence[Block], recipe: Recipe) -> None:
    """Refuse before any work when a linear cannot have the pattern."""
    misfits = {}
    for block in blocks:
        for linear in block.linears:
            try:
                check_fits(recipe.target, block.weight(linear).shape[1])
            except InputError as error:
                misfits[linear.name] = f"{block.full_name(linear)}: {error}"
    if misfits:
        skips = " ".join(f"--skip '*.{name}'" for name in misfits)
        raise InputError(
            "; ".join(misfits.values()) + f". Choose another pattern, or leave these layers dense: {skips}"
        )


def _draw_batches(source: Source, recipe: Recipe, device: torch.device) -> tuple[list[Tensor], dict[str, Any] | None]:
    """The calibration samples as batches of token ids (B, L), and where they come from; none if no score needs them."""
    if not SCORES[recipe.score].needs_inputs:
        return [], None
    longest = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and recipe.length > longest:
        raise InputError(f"samples of {recipe.length} tokens exceed the model's context of {longest} (--length)")
    text = data.load_text(recipe.calibration, "calibration", recipe.samples * recipe.length)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    samples = data.calibration_samples(text, tokenizer, recipe.samples, recipe.length, recipe.seed)
    origin = {
        "source": recipe.calibration,
        "samples": recipe.samples,
        "length": recipe.length,
        "seed": recipe.seed,
        "token_ids_sha256": data.digest(samples),
    }
    return list(samples.to(device).split(max(1, TOKENS_PER_BATCH // recipe.length))), origin


def _announce(progress: Progress, recipe: Recipe, batches: Sequence[Tensor], blocks: int) -> None:
    """Tell the progress how much there is to do."""
    if not batches:
        return progress.start(recipe.summary(), blocks, "blocks")
    passes = blocks if recipe.one_shot else 2 * blocks - 1  # the last block is not run again
    return progress.start(recipe.summary(), passes * sum(batch.numel() for batch in batches))


def _return_freed_memory() -> None:
    """Give what was freed back to the system.

    glibc keeps freed activations in its heap, so fragmented that each block would need fresh memory: on
    SmolLM2 the process grew by 35 MB a block.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class _Clock:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._spent[kind] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds by kind, to the millisecond."""
        return {kind: round(spent, 3) for kind, spent in self._spent.items()}
