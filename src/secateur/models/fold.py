"""Reorder the channels of a space in the weights themselves (RIA, Appendix F.1, and what it leaves out).

Selecting along a space means: the rows and biases of every linear that writes it, the columns of every
linear that reads it, and whatever else lies along it. The model then computes what it did before, in
another order of channels inside, as long as the family's rule for the space is kept.
"""

import torch
from torch import Tensor

from secateur.models.spaces import Family, Heads, Linear

Tensors = dict[str, Tensor]


def fold_block(tensors: Tensors, prefix: str, family: Family, space: str, written: Tensor, read: Tensor) -> None:
    """Select along ``space`` in the tensors of one block, in place.

    Args:
        tensors: by full name.
        prefix: of the block.
        family: what lies along the space.
        space: its name.
        written: int64, the channels as their writers have them: position p gets channel ``written[p]``.
        read: the same as their readers have them; it differs where heads share channels (:func:`join_heads`).
    """
    for linear in family.linears:
        if prefix + linear.tensor not in tensors:
            continue  # blocks may differ
        weight = linear.view(tensors[prefix + linear.tensor])
        bias = tensors.get(prefix + linear.bias)
        for part, writes in enumerate(linear.parts):
            if writes == space:
                rows = rows_of(linear, part, len(weight), family.heads)
                weight[rows] = weight[rows[written]]
                if bias is not None:
                    bias[rows] = bias[rows[written]]
        if linear.reads == space:
            weight.copy_(weight[:, read])
    for carrier in family.inside:
        if carrier.space == space and prefix + carrier.name in tensors:
            name = prefix + carrier.name
            tensors[name] = tensors[name].index_select(carrier.dim, written)


def rows_of(linear: Linear, part: int, count: int, heads: Heads) -> Tensor:
    """The numbers of the rows, of ``count``, that are one part of a linear, in the order of the space they write."""
    queries, keys, width = heads
    rows = torch.arange(count)
    if linear.fused == "by head":
        by_key = rows.reshape(keys, queries // keys + 2, width)
        return [by_key[:, :-2], by_key[:, -2], by_key[:, -1]][part].flatten()
    attention = linear.parts == ("query", "key", "value")
    sizes = (
        [queries * width, keys * width, keys * width] if attention else [count // len(linear.parts)] * len(linear.parts)
    )
    return rows.split(sizes)[part]


def fold_outer(tensors: Tensors, family: Family, space: str, order: Tensor) -> None:
    """Select along ``space`` in the tensors outside the blocks, in place."""
    for carrier in family.outside:
        if carrier.space == space and carrier.name in tensors:
            tensors[carrier.name] = tensors[carrier.name].index_select(carrier.dim, order)


def inverse(order: Tensor) -> Tensor:
    """The order that undoes ``order``."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


# ---------------------------------------------------------------- heads


def by_head(columns: Tensor, heads: Heads) -> Tensor:
    """A score over the channels that o_proj reads, regrouped by key-value head.

    Args:
        columns: ``(R, Q·D)``.
        heads: Q query heads, H key-value heads, D channels per head.

    Returns:
        ``(H, R·Q/H, D)``: for each key-value head the scores of its channels, the query heads that share it stacked.
    """
    queries, keys, width = heads
    split = columns.reshape(-1, keys, queries // keys, width)
    return split.permute(1, 2, 0, 3).reshape(keys, -1, width)


def join_heads(orders: Tensor) -> Tensor:
    """One order per key-value head ``(H, D)`` as one order of the channels that they write, ``(H·D,)``."""
    keys, width = orders.shape
    return (orders + width * torch.arange(keys, device=orders.device)[:, None]).flatten()


def spread_to_queries(written: Tensor, heads: Heads) -> Tensor:
    """The order of the written channels ``(H·D,)`` as o_proj reads them, ``(Q·D,)``: repeated for sharing heads."""
    queries, keys, width = heads
    inside = (written.reshape(keys, width) % width).repeat_interleave(queries // keys, 0)
    return join_heads(inside)
