"""Reorder the channels of a space in the weights themselves (RIA, Appendix F.1, and what it leaves out).

Selecting along a space means: the rows and biases of every linear that writes it, the columns of every
linear that reads it, and whatever else lies along it. The model then computes what it did before, in
another order of channels inside, as long as the family's rule for the space is kept.
"""

import torch
from torch import Tensor

from secateur.models.families import Family

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
        weight, bias = f"{prefix}{linear.name}.weight", f"{prefix}{linear.name}.bias"
        if linear.writes == space:
            tensors[weight] = tensors[weight][written]
            if bias in tensors:
                tensors[bias] = tensors[bias][written]
        if linear.reads == space:
            tensors[weight] = tensors[weight][:, read]
    for carrier in family.inside:
        if carrier.space == space:
            tensors[prefix + carrier.name] = tensors[prefix + carrier.name].index_select(carrier.dim, written)


def fold_outer(tensors: Tensors, family: Family, space: str, order: Tensor) -> None:
    """Select along ``space`` in the tensors outside the blocks, in place."""
    for carrier in family.outside:
        if carrier.space == space and carrier.name in tensors:
            tensors[carrier.name] = tensors[carrier.name].index_select(carrier.dim, order)


def inverse(order: Tensor) -> Tensor:
    """The order that undoes ``order``."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


# ---------------------------------------------------------------- heads


def heads_of(config: object) -> tuple[int, int, int]:
    """Query heads, key-value heads, and channels per head of a Hugging Face config."""
    text = config.get_text_config()  # type: ignore[attr-defined]
    queries = text.num_attention_heads
    keys = getattr(text, "num_key_value_heads", None) or queries
    return queries, keys, getattr(text, "head_dim", None) or text.hidden_size // queries


def by_head(columns: Tensor, heads: tuple[int, int, int]) -> Tensor:
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


def spread_to_queries(written: Tensor, heads: tuple[int, int, int]) -> Tensor:
    """The order of the written channels ``(H·D,)`` as o_proj reads them, ``(Q·D,)``: repeated for sharing heads."""
    queries, keys, width = heads
    inside = (written.reshape(keys, width) % width).repeat_interleave(queries // keys, 0)
    return join_heads(inside)
