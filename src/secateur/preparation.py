"""What is settled before any long work: which linears, which pattern, which samples."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur import data
from secateur.checkpoint import Source, context_of
from secateur.errors import InputError
from secateur.models.blocks import Block
from secateur.recipe import Recipe
from secateur.sparsity import check_fits

# A forward pass takes as many samples at a time as make about this many tokens.
TOKENS_PER_BATCH = 2048


def leave_out_skipped(blocks: Sequence[Block], recipe: Recipe) -> tuple[list[Block], list[str]]:
    """The blocks without the linears that the recipe skips, and the names of those.

    Raises:
        InputError: when a skip names no layer, or nothing is left.
    """
    skipped = [name for b in blocks for x in b.linears if recipe.skips(name := b.full_name(x))]
    for pattern in recipe.skip:
        if not any(replace(recipe, skip=(pattern,)).skips(name) for name in skipped):
            raise InputError(f"--skip {pattern} names no layer; `secateur inspect` lists them")
    kept = [replace(b, linears=tuple(x for x in b.linears if not recipe.skips(b.full_name(x)))) for b in blocks]
    if not any(block.linears for block in kept):
        raise InputError("every layer is skipped: there is nothing to prune")
    return kept, skipped


def check_pattern(blocks: Sequence[Block], recipe: Recipe) -> None:
    """Raise :class:`InputError` when a linear cannot have the pattern."""
    misfits = {}
    for block in blocks:
        for linear in block.linears:
            try:
                check_fits(recipe.target, block.weight(linear).shape[1])
            except InputError as error:
                misfits[linear.name] = f"{block.full_name(linear)}: {error}"
    if misfits:
        skips = " ".join(f"--skip '*.{name}'" for name in misfits)
        listed = "; ".join(misfits.values())
        raise InputError(f"{listed}. Choose another pattern, or leave these layers dense: {skips}")


def draw_batches(
    source: Source, recipe: Recipe, device: torch.device
) -> tuple[list[Tensor], int, dict[str, Any] | None]:
    """The calibration samples as batches of token ids (B, L), and where they come from; none if nothing needs them.

    The number between the two says how many of the last batches are held out, for the guard.

    Raises:
        InputError: when the text cannot be had or is too short, or the samples are too long for the model.
    """
    if not recipe.needs_inputs:
        return [], 0, None
    longest = context_of(source.config)
    if longest is not None and recipe.length > longest:
        raise InputError(f"samples of {recipe.length} tokens exceed the model's context of {longest} (--length)")
    text = data.load_text(recipe.calibration, "calibration", recipe.samples * recipe.length)
    samples = data.calibration_samples(text, source.tokenizer(), recipe.samples, recipe.length, recipe.seed)
    origin = {
        "source": recipe.calibration,
        "samples": recipe.samples,
        "held_out": recipe.held_out,
        "length": recipe.length,
        "seed": recipe.seed,
        "token_ids_sha256": data.digest(samples),
    }
    batch = max(1, TOKENS_PER_BATCH // recipe.length)
    seen, held_out = samples.to(device).tensor_split([recipe.samples - recipe.held_out])
    judges = held_out.split(batch) if recipe.held_out else ()
    return [*seen.split(batch), *judges], len(judges), origin
