"""Scale the channels at the place where linears read, in the weights themselves.

The columns of all who read there are multiplied by s, and what comes before them is divided by it: a norm's weight and
bias, or the rows and biases of the linear that the channels follow (v_proj for o_proj, up_proj for down_proj; the
families' tables say which). The model then computes what it did before. By powers of two it computes the same bits,
except where norms multiply by 1 + their weight, which is rounded once.

Query heads that share a value head share its scales.
"""

from collections.abc import Collection

from torch import Tensor

from secateur.models.fold import Tensors, rows_of
from secateur.models.spaces import Family, Linear


def scalable(family: Family, reader: Linear, linears: Collection[Linear]) -> bool:
    """Whether the place where ``reader`` reads can be scaled with neither the model nor any but ``linears`` changed."""
    changed = {linear for linear in family.linears if linear.place == reader.place}
    if reader.norm:
        exact = family.pre_norm
    elif exact := reader.reads in family.scaled_by:
        changed.add(_writer(family, reader))
    return exact and changed <= {*linears}


def shared(numbers: Tensor, family: Family, reader: Linear) -> Tensor:
    """Numbers of the channels that ``reader`` reads, ``(I,)``, with the mean for those that share a scale."""
    parts = _by_scale(numbers, family, reader)
    return parts.mean(1, keepdim=True).expand_as(parts).flatten()


def scale_readers(tensors: Tensors, prefix: str, family: Family, reader: Linear, scales: Tensor) -> None:
    """Multiply the columns of all who read where ``reader`` does, and divide what comes before them, in place.

    Args:
        tensors: of a block, by full name.
        prefix: of the block.
        family: the model's; :func:`scalable` says yes.
        reader: one of those who read there.
        scales: s, ``(I,)``, positive, and equal for channels that share one (:func:`shared`).
    """
    for linear in family.linears:
        if linear.place == reader.place and prefix + linear.tensor in tensors:
            linear.view(tensors[prefix + linear.tensor]).mul_(scales)
    if reader.norm:
        offset = 1 if family.unit_offset else 0
        weight, bias = (f"{prefix}{reader.norm}.{parameter}" for parameter in ("weight", "bias"))
        gain = (tensors[weight].float() + offset) / scales
        tensors[weight] = (gain - offset).to(tensors[weight].dtype)
        if bias in tensors:
            tensors[bias] = (tensors[bias] / scales).to(tensors[bias].dtype)
        return
    writer, part = _writer(family, reader), family.scaled_by[reader.reads or ""][1]
    matrix = writer.view(tensors[prefix + writer.tensor])
    rows = rows_of(writer, part, len(matrix), family.heads)
    written = _by_scale(scales, family, reader)[:, 0].flatten().to(matrix.dtype)
    matrix[rows] /= written[:, None]
    if (held := tensors.get(prefix + writer.bias)) is not None:
        writer.view_bias(held)[rows] /= written


def _writer(family: Family, reader: Linear) -> Linear:
    """The linear that the channels which ``reader`` reads follow."""
    name, _ = family.scaled_by[reader.reads or ""]
    return next(linear for linear in family.linears if linear.name == name)


def _by_scale(numbers: Tensor, family: Family, reader: Linear) -> Tensor:
    """``(I,)`` as ``(sets, sharing heads, channels)``: what differs in the second alone shares a scale."""
    if family.rules.get(reader.reads or "") != "heads":
        return numbers[None, None]
    queries, keys, width = family.heads
    return numbers.reshape(keys, queries // keys, width)
