"""What pruning and packing would make of a model: bytes, and the speed that they allow. From shapes alone.

To generate a token every weight is read once: the bytes that are read, over the rate at which memory delivers
them, bound the speed from above.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.benchmark.roles import role_of
from secateur.checkpoint.sparse import packed_bytes
from secateur.models.blocks import Block
from secateur.models.spaces import Linear
from secateur.patterns import Pattern, count_kept
from secateur.pruning.prepare import Task


@dataclass(frozen=True)
class Bytes:
    """The same weights stored in three ways.

    Attributes:
        dense: in bfloat16.
        bfloat16: packed, with bfloat16 values; what packing would not make smaller stays dense.
        int8: packed, with int8 values.
    """

    dense: int
    bfloat16: int
    int8: int

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.dense + other.dense, self.bfloat16 + other.bfloat16, self.int8 + other.int8)


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
        weights: ``dense``, ``bfloat16`` or ``int8``.
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
            shapes=list(dict.fromkeys(_shape(*one) for one in found)),
            size=sum((_bytes(*one, task) for one in found), Bytes(0, 0, 0)),
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
    stored, read = Bytes(dense, dense, dense), [tokens - _looked_up(model)] * 3
    for block in task.blocks:
        for linear in block.linears:
            size, share = _bytes(block, linear, task), routed[block.prefix + linear.tensor]
            saved = Bytes(0, size.bfloat16 - size.dense, size.int8 - size.dense)
            stored += saved
            if not linear.transposed:  # which is expanded to run
                read[1] += share * saved.bfloat16
                read[2] += share * saved.int8
    bounds = []
    for weights, token_bytes in zip(("dense", "bfloat16", "int8"), map(round, read), strict=True):
        speed = rate(token_bytes)
        bounds.append(
            Bound(
                weights=weights,
                model_bytes=getattr(stored, weights),
                token_bytes=token_bytes,
                read_rate=round(speed),
                tokens_per_second=round(speed / token_bytes, 2),
                by_bytes=round(read[0] / token_bytes, 3),
            )
        )
    return bounds


def routed_share(model: PreTrainedModel, name: str, parameter: Tensor) -> float:
    """The share of the tokens that multiply with the tensor ``name``: the layers of a stack get those routed to them.

    Whether its layers are linears that can be pruned or not.
    """
    if parameter.ndim == 3 and ".experts." in name:
        return min(1.0, model.config.num_experts_per_tok / max(1, len(parameter)))
    return 1.0


def _shape(block: Block, linear: Linear) -> tuple[int, int]:
    """``(O, I)``."""
    rows, columns = block.weight(linear).shape
    return rows, columns


def _bytes(block: Block, linear: Linear, task: Task) -> Bytes:
    pattern: Pattern = task.patterns[block.full_name(linear)]
    rows, columns = _shape(block, linear)
    kept = count_kept(rows, columns, pattern)
    dense = rows * columns * torch.bfloat16.itemsize
    stored = (columns, rows) if linear.transposed else (rows, columns)  # masks and scales run along what is stored
    packed = packed_bytes(*stored, kept, torch.bfloat16)
    if packed >= dense:
        return Bytes(dense, dense, dense)
    return Bytes(dense, packed, packed_bytes(*stored, kept, torch.int8))


def _looked_up(model: PreTrainedModel) -> int:
    """Bytes in bfloat16 of the tables of which a token takes one row: embeddings that are not the output head too."""
    head = model.get_output_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return 2 * sum(table.numel() for table in tables if head is None or table is not head.weight)
