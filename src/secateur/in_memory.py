"""Prune a model that is in memory: any module with repeated blocks of linears, on a user's own batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.errors import InputError
from secateur.groups import calibrate, prune_group
from secateur.layers import LayerResult
from secateur.models.blocks import blocks_of, family_of
from secateur.models.guard import Trial
from secateur.models.spaces import reader_groups
from secateur.models.stream import Batch, Stream
from secateur.pipeline import Clock, account
from secateur.preparation import check_pattern, leave_out_skipped
from secateur.progress import Progress
from secateur.recipe import Recipe
from secateur.stats import InputStats


def prune_module(
    model: nn.Module, batches: Sequence[Batch] = (), recipe: Recipe | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Prune ``model`` in place: a vision transformer, an encoder, or whatever has a list of blocks with linears.

    Weights keep their device, dtype and the order of their channels: ``permute`` and what tells where text
    comes from have no meaning here. A block is called as the model itself calls it, on the first argument that it
    gets, and must return that argument's successor, or a tuple that begins with it. What ``nn.MultiheadAttention``
    multiplies by its ``out_proj`` inside torch cannot be seen: such a linear is pruned by its weights alone, and its
    result says so.

    Args:
        model: in eval mode.
        batches: what to calibrate on: mappings of keyword arguments of ``model``, or token ids for a language
            model of transformers. Needed unless the recipe looks at weights alone. The guard holds out the last
            eighth of them, and at least one.
        recipe: what to do; by default RIA at 50 %.
        progress: hears how the work goes.

    Returns:
        what ``secateur.json`` says of a written model's layers.

    Raises:
        InputError: when the model has no such blocks, or there are too few batches; nothing is changed then.
    """
    recipe, progress, clock = replace(recipe or Recipe(), permute="none"), progress or Progress(), Clock()
    blocks, skipped = leave_out_skipped(blocks_of(model, family_of(model)), recipe)
    check_pattern(blocks, recipe)
    held_out = max(1, len(batches) // 8) if recipe.held_out else 0
    if recipe.needs_inputs and len(batches) <= held_out:
        raise InputError(
            f"{recipe.summary()} needs at least {held_out + 1} batches to calibrate on, not {len(batches)}"
        )
    layers: list[LayerResult] = []
    trials: list[Trial] = []
    with progress, _experts_one_by_one(model):
        progress.start(recipe.summary(), len(blocks), "blocks")
        stream = Stream(model, blocks, batches, held_out=held_out) if recipe.needs_inputs else None
        for index, block in enumerate(blocks):
            last = index + 1 == len(blocks)
            tensors = {block.prefix + name: parameter.data for name, parameter in block.module.named_parameters()}
            device = next(iter(tensors.values())).device
            stats: dict[str, InputStats] = {}
            guard = None
            if stream is not None:
                with clock("calibrate"):
                    stats, guard = calibrate(stream, index, recipe)
            for group in reader_groups(block.linears):
                with clock("prune"):
                    results, tried = prune_group(block, group, tensors, stats, recipe, {}, guard, device)
                layers += results
                trials += tried
            if stream is not None and not recipe.one_shot and not last:
                with clock("calibrate"):
                    stream.advance(index)
            progress.advance(1)
    return {
        "method": recipe.summary(),
        "recipe": recipe.to_dict(),
        "skipped": skipped,
        **account(layers, trials, clock),
    }


@contextmanager
def _experts_one_by_one(model: nn.Module) -> Iterator[None]:
    """Let transformers multiply with each expert's weight by itself for a while, so that its inputs can be seen."""
    config = getattr(model, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is not None:
        config._experts_implementation = "eager"  # type: ignore[union-attr]
    try:
        yield
    finally:
        if before is not None:
            config._experts_implementation = before  # type: ignore[union-attr]
