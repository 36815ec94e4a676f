"""What pruning and packing would make of a model: bytes, and the speed that they allow. From shapes alone.

To generate a token every weight is read once: the bytes that are read, over the rate at which memory delivers
them, bound the speed from above.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from secateur.benchmark.machine import Machine, read_rate, this_machine
from secateur.benchmark.roles import role_of
from secateur.checkpoint import outline
from secateur.checkpoint.sparse import packed_bytes
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.spaces import Linear
from secateur.patterns import Pattern, count_kept
from secateur.recipe import Recipe


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


@dataclass(frozen=True)
class Plan:
    """What a model would be, pruned and packed.

    Attributes:
        model: the model, as it was named.
        pattern: what its linears would obey.
        roles: its prunable linears by role.
        bounds: the ways to store them.
        dense_linears: linears that Secateur stores packed, but expands to run them: transposed weights.
        machine: where the read rates were measured.
    """

    model: str
    pattern: str
    roles: list[RolePlan]
    bounds: list[Bound]
    dense_linears: int
    machine: Machine


def plan(
    model: str | Path,
    *,
    pattern: str | None = None,
    sparsity: float | None = None,
    rate: Callable[[int], float] = read_rate,
) -> Plan:
    """Predict what pruning ``model`` and packing it saves, from its config.

    Sizes are those that ``secateur pack`` writes of a bfloat16 checkpoint. Bounds leave out the KV cache and the
    activations, which are read as well: real times can only be longer.

    Args:
        model: a hub name, a folder that may hold nothing but its config, or a ``.gguf`` file.
        pattern: N:M. The bytes depend on N/M only.
        sparsity: the share of weights to remove; 0.5 if no pattern is given either.
        rate: what measures how fast a number of bytes is read.

    Raises:
        InputError: when the model or the pattern cannot be used, or do not fit each other.
    """
    target = Recipe(pattern=pattern, sparsity=sparsity).target
    skeleton = outline(str(model))
    blocks = blocks_of(skeleton, family_of(skeleton))
    found = [(block, linear) for block in blocks for linear in block.linears]
    sizes = [_bytes(block, linear, target) for block, linear in found]
    roles: dict[str, list[int]] = {}
    for place, (_, linear) in enumerate(found):
        roles.setdefault(role_of(linear), []).append(place)
    rows = [
        RolePlan(
            role=role,
            linears=len(places),
            shapes=list(dict.fromkeys(_shape(*found[place]) for place in places)),
            size=sum((sizes[place] for place in places), Bytes(0, 0, 0)),
        )
        for role, places in roles.items()
    ]
    return Plan(
        model=str(model),
        pattern=str(target),
        roles=rows,
        bounds=_bounds(skeleton, found, sizes, rate),
        dense_linears=sum(linear.transposed for _, linear in found),
        machine=this_machine(),
    )


def _shape(block: Block, linear: Linear) -> tuple[int, int]:
    """``(O, I)``."""
    rows, columns = block.weight(linear).shape
    return rows, columns


def _bytes(block: Block, linear: Linear, pattern: Pattern) -> Bytes:
    rows, columns = _shape(block, linear)
    kept = count_kept(rows, columns, pattern)
    dense = rows * columns * torch.bfloat16.itemsize
    stored = (columns, rows) if linear.transposed else (rows, columns)  # masks and scales run along what is stored
    packed = packed_bytes(*stored, kept, torch.bfloat16)
    if packed >= dense:
        return Bytes(dense, dense, dense)
    return Bytes(dense, packed, packed_bytes(*stored, kept, torch.int8))


def _bounds(
    model: PreTrainedModel, found: list[tuple[Block, Linear]], sizes: list[Bytes], rate: Callable[[int], float]
) -> list[Bound]:
    whole = sum(sizes, Bytes(0, 0, 0))
    everything = 2 * sum(parameter.numel() for parameter in model.parameters())
    rest = everything - whole.dense
    read = Bytes(*[rest - _looked_up(model)] * 3)
    for (block, linear), size in zip(found, sizes, strict=True):
        size = Bytes(*[size.dense] * 3) if linear.transposed else size
        share = _routed_share(model, block, linear)
        read += Bytes(*(round(share * number) for number in (size.dense, size.bfloat16, size.int8)))
    bounds = []
    for weights in ("dense", "bfloat16", "int8"):
        number = getattr(read, weights)
        speed = rate(number)
        bounds.append(
            Bound(
                weights=weights,
                model_bytes=rest + getattr(whole, weights),
                token_bytes=number,
                read_rate=round(speed),
                tokens_per_second=round(speed / number, 2),
                by_bytes=round(read.dense / number, 3),
            )
        )
    return bounds


def _looked_up(model: PreTrainedModel) -> int:
    """Bytes in bfloat16 of the tables of which a token takes one row: embeddings that are not the output head too."""
    head = model.get_output_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return 2 * sum(table.numel() for table in tables if head is None or table is not head.weight)


def _routed_share(model: PreTrainedModel, block: Block, linear: Linear) -> float:
    """The share of the tokens, and so of the reads, that comes to a linear: an expert gets those routed to it."""
    if not linear.stack:
        return 1
    return model.config.num_experts_per_tok / len(block.module.get_parameter(linear.stack))
