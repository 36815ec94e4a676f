"""What pruning and packing would make of a model: bytes, and the speed that they allow. From shapes alone.

To generate a token every weight is read once: the bytes that are read, over the rate at which memory delivers
them, bound the speed from above.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.benchmark.roles import role_of
from secateur.checkpoint.sparse import packed_bytes
from secateur.models.blocks import Block
from secateur.models.experts import experts_per_token
from secateur.models.spaces import Linear
from secateur.patterns import Pattern, count_kept
from secateur.pruning.prepare import Task


@dataclass(frozen=True)
class Bytes:
    """The same weights stored in four ways.

    Attributes:
        dense: in bfloat16.
        bfloat16: packed, with bfloat16 values; what packing would not make smaller stays dense.
        int8: packed, with int8 values.
        int4: packed, with values of 4 bits.
    """

    dense: int
    bfloat16: int
    int8: int
    int4: int

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(*(getattr(self, way) + getattr(other, way) for way in WAYS))


WAYS = [way.name for way in fields(Bytes)]


@dataclass(frozen=True)
class RolePlan:
    """Linears of one role.

    Attributes:
        role: what they are to their blocks.
        linears: how many there are in the model.
        shapes: their shapes ``(O, I)``, each once.
        size: what they take, all together.
    """

    role: str
    linears: int
    shapes: list[tuple[int, int]]
    size: Bytes


@dataclass(frozen=True)
class Bound:
    """What one way to store the linears comes to when text is generated.

    Attributes:
        weights: ``dense``, ``bfloat16``, ``int8`` or ``int4``.
        model_bytes: what all tensors of the model take.
        token_bytes: what is read of them to generate one token.
        read_rate: bytes per second at which this machine reads so many bytes over and over; measured.
        tokens_per_second: at most so many, of one sequence: ``read_rate / token_bytes``.
        by_bytes: the bytes of the dense model over these: how many times as fast it is where both run as fast as
            memory delivers. A dense product that falls short of that leaves more to gain.
    """

    weights: str
    model_bytes: int
    token_bytes: int
    read_rate: float
    tokens_per_second: float
    by_bytes: float


def roles_of(task: Task) -> list[RolePlan]:
    """The linears that are pruned, by role, and what they would take."""
    roles: dict[str, list[tuple[Block, Linear]]] = {}
    for block in task.blocks:
        for linear in block.linears:
            roles.setdefault(role_of(linear), []).append((block, linear))
    return [
        RolePlan(
            role=role,
            linears=len(found),
            shapes=list(dict.fromkeys(block.shape(linear) for block, linear in found)),
            size=sum((_bytes(*one, task) for one in found), Bytes(0, 0, 0, 0)),
        )
        for role, found in roles.items()
    ]


def bounds_of(model: PreTrainedModel, task: Task, rate: Callable[[int], float]) -> list[Bound]:
    """The ways to store the linears, and what each comes to in all.

    Args:
        model: on the meta device.
        task: what is pruned of it.
        rate: what says how fast a number of bytes is read again and again.
    """
    routed = {name: routed_share(model, name, parameter) for name, parameter in model.named_parameters()}
    dense = sum(2 * parameter.numel() for parameter in model.parameters())
    tokens = sum(2 * routed[name] * parameter.numel() for name, parameter in model.named_parameters())
    stored, read = dict.fromkeys(WAYS, dense), dict.fromkeys(WAYS, float(tokens - _looked_up(model)))
    for block in task.blocks:
        for linear in block.linears:
            size, share = _bytes(block, linear, task), routed[block.prefix + linear.tensor]
            for way in WAYS:
                saved = getattr(size, way) - size.dense
                stored[way] += saved
                if not linear.transposed:  # which is expanded to run
                    read[way] += share * saved
    bounds = []
    for way in WAYS:
        token_bytes = round(read[way])
        speed = rate(token_bytes)
        bounds.append(
            Bound(
                weights=way,
                model_bytes=stored[way],
                token_bytes=token_bytes,
                read_rate=round(speed),
                tokens_per_second=round(speed / token_bytes, 2),
                by_bytes=round(read["dense"] / token_bytes, 3),
            )
        )
    return bounds


def routed_share(model: PreTrainedModel, name: str, parameter: Tensor) -> float:
    """The share of the tokens that multiply with the tensor ``name``: the layers of a stack get those routed to them.

    Whether its layers are linears that can be pruned or not.
    """
    if parameter.ndim == 3 and ".experts." in name:
        return min(1.0, experts_per_token(model.config.get_text_config()) / max(1, len(parameter)))
    return 1.0


def _bytes(block: Block, linear: Linear, task: Task) -> Bytes:
    pattern: Pattern = task.patterns[block.full_name(linear)]
    rows, columns = block.shape(linear)
    kept = count_kept(rows, columns, pattern)
    dense = rows * columns * torch.bfloat16.itemsize
    stored = (columns, rows) if linear.transposed else (rows, columns)  # masks and scales run along what is stored
    return Bytes(dense, *(min(dense, packed_bytes(*stored, kept, bits)) for bits in (16, 8, 4)))


def _looked_up(model: PreTrainedModel) -> int:
    """Bytes in bfloat16 of the tables of which a token takes one row: embeddings that are not the output head too."""
    head = model.get_output_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return 2 * sum(table.numel() for table in tables if head is None or table is not head.weight)
