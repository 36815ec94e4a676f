"""Which heads and channels of a block stay, and what that selects."""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.models.fold import channels_of
from secateur.models.spaces import Family
from secateur.shrinking.experts import Experts
from secateur.shrinking.widths import Widths

# The numbers of the blocks that stay, where whole blocks go.
BLOCKS = "blocks"
HEADS = "heads"
EXPERTS = "experts"
# What stays in one block, ascending: query heads under the name HEADS, channels under that of their space; or experts
# under the name EXPERTS.
Kept = dict[str, Tensor]


def choose(family: Family, widths: Widths, importance: Mapping[str, Tensor]) -> Kept:
    """What stays of a block of ``family``: the most important; among equals the first.

    Args:
        widths: what it is to have.
        importance: of the channels of each space that any is known of, by its name. Those that the readers of ``value``
            read are ``query``'s: there are more of them where heads share.
    """
    queries, keys, width = family.heads
    kept: Kept = {}
    of_queries = importance["query"].view(keys, queries // keys, width).sum(2)
    best = _largest(of_queries, widths.queries // widths.keys)
    of_keys = of_queries.gather(1, best).sum(1)
    for space in importance.keys() & {"key", "value"}:
        of_keys = of_keys + importance[space].view(keys, width).sum(1)
    stay = _largest(of_keys[None], widths.keys)[0]
    kept[HEADS] = (best[stay] + stay[:, None] * (queries // keys)).flatten()
    for space in family.inner:
        if space in importance:
            kept[space] = _largest(importance[space][None], widths.channels)[0]
    return kept


def choose_experts(experts: Experts, importance: Tensor) -> Kept:
    """The most important experts of a block, as many of each group; among equals the first.

    Args:
        experts: of the block.
        importance: of each, ``(count,)``.
    """
    groups = importance.view(experts.groups, -1)
    best = _largest(groups, experts.stay // experts.groups)
    return {EXPERTS: (best + groups.shape[1] * torch.arange(experts.groups)[:, None]).flatten()}


def _largest(rows: Tensor, count: int) -> Tensor:
    """The places of the ``count`` largest of each row, ascending: ``(R, count)``."""
    return rows.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values


def selection(kept: Kept, family: Family) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same as channels by space: those that writers have, and those that readers have."""
    queries, keys, width = family.heads
    written = {space: channels for space, channels in kept.items() if space != HEADS}
    read = dict(written)
    if HEADS in kept:
        groups = channels_of((kept[HEADS] // (queries // keys)).unique(), width)
        written |= {"query": channels_of(kept[HEADS], width), "key": groups, "value": groups}
        read["value"] = written["query"]
    return written, read


def named(kept: Mapping[str, Kept]) -> dict[str, Tensor]:
    """What stays in every block, by the block's prefix, in one dictionary: as it is written."""
    return {prefix + name: numbers for prefix, some in kept.items() for name, numbers in some.items()}


def of_block(numbers: Mapping[str, Tensor], prefix: str) -> Kept:
    """What stays in the block of this prefix, out of what :func:`named` made."""
    return {name.removeprefix(prefix): some for name, some in numbers.items() if name.startswith(prefix)}
