"""What a shrunk model will be, and what its config has to say: settled before any long work."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from secateur.checkpoint.config import empty_model, is_wrapper
from secateur.errors import InputError
from secateur.importance import METHODS
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.spaces import Family
from secateur.shrinkage import Shrinkage
from secateur.shrinking.experts import Experts, experts_of
from secateur.shrinking.widths import Shapes, Widths, changes, weights_of, widths_for


@dataclass(frozen=True)
class Target:
    """What is to become of a model.

    Attributes:
        open: the numbers of the blocks that may change: all but those at either end that stay whole.
        widths: what each of these is to have.
        depth: how many blocks stay.
        changes: what its config says otherwise; where blocks go, this is known when it is known which.
        weights: of the blocks' linears that stay; the same. Where experts go, of all that is a matrix in the blocks.
        dense_weights: of the blocks' linears now, or as above.
        experts: of the blocks that lose some, by number.
    """

    open: range
    widths: Widths
    depth: int
    changes: dict[str, Any]
    weights: int
    dense_weights: int
    experts: Mapping[int, Experts] = field(default_factory=dict)


# What configs call the number of experts in a block, and of those that a token is routed to.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ROUTED = ("num_experts_per_tok", "top_k_experts", "moe_topk")


def settle(
    config: PreTrainedConfig, base: Mapping[str, Any], blocks: Sequence[Block], family: Family, options: Shrinkage
) -> Target:
    """Decide how wide and how deep a model is to be.

    Args:
        config: the model's.
        base: what it is made of, as plain data.
        blocks: the model's, which may have no weights.
        family: the model's.
        options: how much of it goes, and what.

    Raises:
        InputError: when so much cannot go, the channels of its family are not known, or no config can say what would
            stay.
    """
    if is_wrapper(config):
        raise InputError(f"a {config.model_type} model has a language model as a part: shrink takes one by itself")
    if options.experts is not None:
        return _settle_experts(config, base, blocks, family, options.experts)
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
        first = changes_of_depth(config, blocks, range(depth))
        _check(base, first, weights_of(blocks[:depth], family))
        return Target(unlocked, shapes.whole, depth, {}, whole, whole)
    if "value" not in family.rules:
        raise InputError(
            f"nothing is known of the channels of a {config.model_type} model (docs/families.md): --method "
            "depth removes whole blocks of it"
        )
    if options.sparsity and not (family.sizes or options.in_place):
        raise InputError(
            f"no config of a {config.model_type} model can say that its blocks are narrower: --method depth "
            "removes whole blocks, and --in-place writes zeros"
        )
    if len(shapes.inner) > 1:
        several = " and ".join(map(str, sorted(shapes.inner)))
        raise InputError(
            f"the MLPs of this {config.model_type} model have {several} channels, and only such as have one width are "
            "narrowed: --method depth removes whole blocks"
        )
    heads, channels = (options.in_place or space in family.sizes for space in ("query", family.inner[0]))

    def is_allowed(widths: Widths) -> bool:
        return options.in_place or _config(base, changes(widths, shapes.whole, family)) is not None

    before = shapes.weights(shapes.whole)
    widths = widths_for(shapes, before - options.sparsity * whole, is_allowed, heads=heads, channels=channels)
    kept = whole - before + shapes.weights(widths)
    changed = {} if options.in_place else changes(widths, shapes.whole, family)
    if changed:
        _check(base, changed, kept)
    return Target(unlocked, widths, number, changed, kept, whole)


def _settle_experts(
    config: PreTrainedConfig, base: Mapping[str, Any], blocks: Sequence[Block], family: Family, share: float
) -> Target:
    """The same where ``share`` of each block's experts go."""
    counts = _numbers(config, base, _EXPERTS)
    if len({*counts.values()}) != 1:
        raise InputError(f"the config of this {config.model_type} model names no one number of experts: none can go")
    (count,) = {*counts.values()}
    stay = count - round(share * count)
    groups = getattr(config, "n_group", None) or 1
    _check_experts(config, base, count, stay, groups, share)
    changed = dict.fromkeys(counts, stay)
    less = _config(base, changed)
    model = empty_model(less, torch.float32) if less is not None else None
    smaller = blocks_of(model, family_of(model)) if model is not None else []
    experts = experts_of(blocks, smaller, groups) if smaller else {}
    if not experts:
        raise InputError(f"transformers builds no {config.model_type} model of {stay} experts instead of {count}")
    shapes = Shapes(blocks, family)
    weights, dense = matrices_of(smaller), matrices_of(blocks)
    return Target(range(len(blocks)), shapes.whole, len(blocks), changed, weights, dense, experts)


def _check_experts(
    config: PreTrainedConfig, base: Mapping[str, Any], count: int, stay: int, groups: int, share: float
) -> None:
    """Raise :class:`InputError` unless ``stay`` of ``count`` experts are enough for the router, and fewer."""
    if stay == count:
        raise InputError(f"{share:.1%} of {count} experts are less than half of one: at least {1 / count:.1%} can go")
    if count % groups or (count - stay) % groups:
        raise InputError(
            f"{count - stay} of {count} experts were to go, and as many must of each of {groups} groups (n_group): "
            f"give a multiple of {groups / count:.4g}"
        )
    routed = _numbers(config, base, _ROUTED)
    if not routed:
        raise InputError(f"the config of this {config.model_type} model does not say how many experts a token has")
    name, most = max(routed.items(), key=lambda item: item[1])
    within = (getattr(config, "topk_group", None) or groups) * (stay // groups)
    if most > within:
        of = f"{within} in the groups that it may choose" if within < stay else f"{stay}"
        raise InputError(f"a token is routed to {most} experts ({name}), and of {count} there would be {of}")
    if groups > 1 and stay < 2 * groups:
        raise InputError(f"the router compares groups by their best two experts, and {stay // groups} would be left")


def _numbers(config: PreTrainedConfig, base: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """What ``config`` says under any of ``names``, by the names under which it or ``base`` is written."""
    found = {name: getattr(config, name, None) for name in names}
    written = {type(config).attribute_map.get(name, name): number for name, number in found.items()}
    both = written | {name: number for name, number in found.items() if name in base}
    return {name: number for name, number in both.items() if isinstance(number, int)}


def matrices_of(blocks: Sequence[Block]) -> int:
    """The weights of ``blocks`` that lie in matrices, or stacks of these, whether they are of linears or not."""
    return sum(weight.numel() for block in blocks for weight in block.module.parameters() if weight.ndim > 1)


def remainder(model: PreTrainedModel, options: Shrinkage) -> PreTrainedModel:
    """What ``shrink`` would leave of ``model``, both without weights; which of like blocks go is known only then.

    Raises:
        InputError: as :func:`settle` does.
    """
    family, base = family_of(model), json.loads(model.config.to_json_string(use_diff=False))
    blocks = blocks_of(model, family)
    target = settle(model.config, base, blocks, family, options)
    config = _config(base, target.changes or changes_of_depth(model.config, blocks, range(target.depth)))
    assert config is not None  # which was tried
    return empty_model(config, torch.float32)


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
        names = [[name for name, _ in blocks[index].module.named_parameters()] for index in kept]
        has_experts = [any("experts." in name for name in some) for some in names]
        changed["mlp_only_layers"] = [index for index, has in enumerate(has_experts) if not has]
        changed["decoder_sparse_step"] = 1
    return changed


def check_blocks(
    base: Mapping[str, Any], changed: dict[str, Any], blocks: Sequence[Block], kept: Sequence[int]
) -> None:
    """Compare blocks that stay with those that a model of the changed config has in their new places.

    Some configs count kinds of blocks from the first, and some blocks compute by their number.

    Args:
        base: the config of the dense model, as plain data.
        changed: what the config says otherwise.
        blocks: of the dense model.
        kept: the numbers of those that stay, ascending.

    Raises:
        InputError: when one of them would be another.
    """
    config = _config(base, changed)
    assert config is not None  # the same was tried with other blocks
    model = empty_model(config, torch.float32)
    for now, (index, new) in enumerate(zip(kept, blocks_of(model, family_of(model)), strict=True)):
        if what := _difference(blocks[index].module, new.module, (index, now)):
            raise InputError(
                f"block {index} would be block {now}, and there {base['model_type']} models have another kind of "
                f"block ({what}): no config can say otherwise; let it keep its place (--keep-first)"
            )


def _difference(old: nn.Module, new: nn.Module, numbers: tuple[int, int]) -> str | None:
    """In what two blocks differ, weights apart: names and shapes, kinds of modules, and numbers and words in these."""
    ours, theirs = ({name: part.shape for name, part in one.named_parameters()} for one in (old, new))
    if ours != theirs:
        return f"{min(name for name, _ in ours.items() ^ theirs.items())} is not the same in both"
    for (path, one), (_, other) in zip(old.named_modules(), new.named_modules(), strict=False):
        if type(one) is not type(other):
            return f"{path or 'it'} is a {type(one).__name__} and a {type(other).__name__}"
        for name, value in vars(one).items():
            found = vars(other).get(name)
            if isinstance(value, int | float | str) and value != found and (value, found) != numbers:
                return f"{f'{path}.{name}'.lstrip('.')} is {value} and {found}"
    return None


def _config(base: Mapping[str, Any], changed: Mapping[str, Any]) -> PreTrainedConfig | None:
    """What transformers makes of the config with changes; None where it refuses them."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({**base, **changed}), encoding="utf-8")
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception:  # whatever checks of an architecture raise
            return None


def _check(base: Mapping[str, Any], changed: dict[str, Any], weights: int) -> None:
    """Raise :class:`InputError` unless the config with changes is of a model of so many weights in its blocks."""
    if (config := _config(base, changed)) is not None:
        model = empty_model(config, torch.float32)
        family = family_of(model)
        shapes = Shapes(blocks_of(model, family), family)
        if shapes.weights(shapes.whole) == weights:
            return
    said = ", ".join(f"{name} = {value}" for name, value in changed.items())
    raise InputError(f"transformers builds no such {base['model_type']} model of a config with {said}")
