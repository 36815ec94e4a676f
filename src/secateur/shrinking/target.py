"""What a shrunk model will be, and what its config has to say: settled before any long work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from secateur.checkpoint import Source
from secateur.checkpoint.config import empty_model
from secateur.errors import InputError
from secateur.files import read_object
from secateur.importance import METHODS
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.spaces import Family
from secateur.shrinkage import Shrinkage
from secateur.shrinking.widths import Shapes, Widths, changes, weights_of, widths_for


@dataclass(frozen=True)
class Target:
    """What is to become of a model.

    Attributes:
        open: the numbers of the blocks that may change: all but those at either end that stay whole.
        widths: what each of these is to have.
        depth: how many blocks stay.
        changes: what its config says otherwise; where blocks go, this is known when it is known which.
        weights: of the blocks' linears that stay; the same.
        dense_weights: of the blocks' linears now.
    """

    open: range
    widths: Widths
    depth: int
    changes: dict[str, Any]
    weights: int
    dense_weights: int


def settle(source: Source, blocks: Sequence[Block], family: Family, options: Shrinkage) -> Target:
    """Decide how wide and how deep the model of ``source`` is to be.

    Raises:
        InputError: when so much cannot go, the channels of its family are not known, or no config can say what would
            stay.
    """
    number, whole = len(blocks), weights_of(blocks, family)
    unlocked = range(options.keep_first, number - options.keep_last)
    if not unlocked:
        raise InputError(f"of {number} blocks the first {options.keep_first} and the last {options.keep_last} are all")
    shapes = Shapes([blocks[index] for index in unlocked], family)
    if METHODS[options.method].removes == "blocks":
        depth = number - round(options.sparsity * number)
        if depth < max(1, number - len(unlocked)):
            raise InputError(
                f"{options.sparsity:.1%} of {number} blocks are {number - depth}, and at most "
                f"{min(number - 1, len(unlocked))} can go"
            )
        first = changes_of_depth(source.config, blocks, range(depth))
        _check(source, first, weights_of(blocks[:depth], family))
        return Target(unlocked, shapes.whole, depth, {}, whole, whole)
    if not family.rules:
        raise InputError(
            f"nothing is known of the channels of a {source.config.model_type} model (docs/families.md): --method "
            "depth removes whole blocks of it"
        )
    if options.sparsity and not (family.sizes or options.in_place):
        raise InputError(
            f"no config of a {source.config.model_type} model can say that its blocks are narrower: --method depth "
            "removes whole blocks, and --in-place writes zeros"
        )
    heads, channels = (options.in_place or space in family.sizes for space in ("query", family.inner[0]))

    def is_allowed(widths: Widths) -> bool:
        return options.in_place or _config(source, changes(widths, shapes.whole, family)) is not None

    before = shapes.weights(shapes.whole)
    widths = widths_for(shapes, before - options.sparsity * whole, is_allowed, heads=heads, channels=channels)
    kept = whole - before + shapes.weights(widths)
    changed = {} if options.in_place else changes(widths, shapes.whole, family)
    if changed:
        _check(source, changed, kept)
    return Target(unlocked, widths, number, changed, kept, whole)


def changes_of_depth(config: PreTrainedConfig, blocks: Sequence[Block], kept: Sequence[int]) -> dict[str, Any]:
    """What a config has to say otherwise of a model that keeps the ``blocks`` of these numbers, ascending.

    Raises:
        InputError: when what a block computes depends on its number.
    """
    if len(kept) == len(blocks):
        return {}
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise InputError("the attention of this model is scaled by the number of the block, so that none can go")
    said = config.to_dict()
    changed: dict[str, Any] = {type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(kept)}
    for name, value in said.items():
        if "layer" in name and isinstance(value, list) and len(value) == len(blocks):  # such as layer_types
            changed[name] = [value[index] for index in kept]
    if "mlp_only_layers" in said:
        has_experts = [any(linear.stack for linear in blocks[index].linears) for index in kept]
        changed["mlp_only_layers"] = [index for index, has in enumerate(has_experts) if not has]
        changed["decoder_sparse_step"] = 1
    return changed


def _config(source: Source, changed: dict[str, Any]) -> PreTrainedConfig | None:
    """What transformers makes of the config with changes; None where it refuses them."""
    try:
        return AutoConfig.for_model(**read_object(source.folder / "config.json") | changed)
    except Exception:  # whatever checks of an architecture raise
        return None


def _check(source: Source, changed: dict[str, Any], weights: int) -> None:
    """Raise :class:`InputError` unless the config with changes is of a model of so many weights in its blocks."""
    if (config := _config(source, changed)) is not None:
        model = empty_model(config, torch.float32)
        family = family_of(model)
        shapes = Shapes(blocks_of(model, family), family)
        if shapes.weights(shapes.whole) == weights:
            return
    said = ", ".join(f"{name} = {value}" for name, value in changed.items())
    raise InputError(f"transformers builds no such {source.config.model_type} model of a config with {said}")
