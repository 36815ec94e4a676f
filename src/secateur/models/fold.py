"""Select along channel spaces in the weights themselves (RIA, Appendix F.1, and what it leaves out).

Selecting along a space means: the rows and biases of every linear that writes it, the columns of every
linear that reads it, and whatever else lies along it. Of all channels, in another order: the model then computes what
it did before, as long as the family's rule for the space is kept. Of some channels: it computes what it would with the
others' contributions gone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.models.spaces import Family, Heads, Linear

Tensors = dict[str, Tensor]


def select_block(
    tensors: Tensors, prefix: str, family: Family, written: Mapping[str, Tensor], read: Mapping[str, Tensor]
) -> None:
    """Select along spaces in the tensors of one block: all channels in another order, or some of them.

    Tensors that keep their shape are changed in place; narrower ones are new.

    Args:
        tensors: by full name.
        prefix: of the block.
        family: what lies along the spaces.
        written: by the name of the space, int64, its channels as their writers have them: position p gets channel
            ``written[p]``.
        read: the same as their readers have them; it differs where heads share channels (:func:`spread_to_queries`).
    """
    narrower: dict[str, list[Tensor]] = {}  # the experts of a stack together, each in the layout in which it is stored

    def put(name: str, before: Tensor, selected: Tensor, transposed: bool = False) -> None:
        if selected.shape == before.shape:
            before.copy_(selected)
        else:
            narrower.setdefault(name, []).append(selected.T if transposed else selected)

    for linear in family.linears:
        writes, reads = written.keys() & {*linear.parts}, linear.reads in read
        if not (writes or reads) or (name := prefix + linear.tensor) not in tensors:
            continue  # blocks may differ
        selected = weight = linear.view(tensors[name])
        if writes:
            rows = _selected_rows(linear, len(weight), family.heads, written)
            selected = selected[rows]
            if (held := tensors.get(prefix + linear.bias)) is not None:
                bias = linear.view_bias(held)
                put(prefix + linear.bias, bias, bias[rows])
        if reads:
            selected = selected[:, read[linear.reads or ""]]
        put(name, weight, selected, linear.transposed)
    for linear in family.linears:
        for name in (prefix + linear.tensor, prefix + linear.bias):
            if layers := narrower.pop(name, None):
                tensors[name] = torch.stack(layers) if linear.stack else layers[0]
    for carrier in family.inside:
        if carrier.space in written and prefix + carrier.name in tensors:
            name = prefix + carrier.name
            tensors[name] = tensors[name].index_select(carrier.dim, written[carrier.space])


def zero_block(
    tensors: Tensors, prefix: str, family: Family, written: Mapping[str, Tensor], read: Mapping[str, Tensor]
) -> None:
    """Write zeros, in place, into all that :func:`select_block` would leave out: the block computes the same."""
    for linear in family.linears:
        if (name := prefix + linear.tensor) not in tensors:
            continue
        weight, bias = linear.view(tensors[name]), tensors.get(prefix + linear.bias)
        if written.keys() & {*linear.parts}:
            gone = _others(_selected_rows(linear, len(weight), family.heads, written), len(weight))
            weight[gone] = 0
            if bias is not None:
                linear.view_bias(bias)[gone] = 0
        if linear.reads and linear.reads in read:
            weight[:, _others(read[linear.reads], weight.shape[1])] = 0


def _others(chosen: Tensor, count: int) -> Tensor:
    """The numbers below ``count`` that were not chosen."""
    return torch.ones(count, dtype=torch.bool).index_fill(0, chosen, False).nonzero()[:, 0]


def _selected_rows(linear: Linear, count: int, heads: Heads, written: Mapping[str, Tensor]) -> Tensor:
    """The rows of a linear, of ``count``, that make it after the selection, in their new sequence."""
    parts = [rows_of(linear, part, count, heads) for part in range(len(linear.parts))]
    chosen = [
        rows[written[space]] if space in written else rows for rows, space in zip(parts, linear.parts, strict=True)
    ]
    if linear.fused == "stacked":
        return torch.cat(chosen)
    # Else the parts alternate: rows lie in the sequence of the first rows of their part, which they replace.
    stay = [rows[: len(some)] for rows, some in zip(parts, chosen, strict=True)]
    return torch.cat(chosen)[torch.cat(stay).argsort()]


def rows_of(linear: Linear, part: int, count: int, heads: Heads) -> Tensor:
    """The numbers of the rows, of ``count``, that are one part of a linear, in the order of the space they write."""
    queries, keys, width = heads
    rows = torch.arange(count)
    if linear.fused == "interleaved":
        return rows[part :: len(linear.parts)]
    if linear.fused == "by head":  # all parts but the first have one head for each
        of_key, others = rows.reshape(keys, -1), len(linear.parts) - 1
        return of_key.split([of_key.shape[1] - others * width, *[width] * others], 1)[part].flatten()
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


def channels_of(chosen: Tensor, width: int) -> Tensor:
    """The channels of some heads, int64, of ``width`` channels each: ``(heads · width,)``."""
    return (chosen[:, None] * width + torch.arange(width)).flatten()
