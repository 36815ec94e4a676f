"""The pruned linears of a loaded model, each dense and packed, to be put in its place in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from secateur.benchmark.kinds import kind_of
from secateur.errors import InputError
from secateur.formats.packing import pack_if_smaller
from secateur.models.blocks import Block
from secateur.runtime.sparse_experts import put_experts
from secateur.runtime.sparse_linear import SparseLinear
from secateur.sparsity import sparsity_of

Side = Literal["dense", "sparse"]
SIDES: tuple[Side, ...] = ("dense", "sparse")
# Below it packing saves nothing: a mask takes one bit of each weight's 16.
_LEAST_SPARSITY = 1 / 16


@dataclass(frozen=True)
class Pair:
    """One linear of a model, twice.

    Attributes:
        name: where it is in the model.
        kind: what it is to its block.
        dense: with its weight in bfloat16, as torch runs it.
        sparse: with the same weight packed.
    """

    name: str
    kind: str
    dense: nn.Linear
    sparse: SparseLinear


def pairs_of(model: PreTrainedModel, blocks: Sequence[Block], int8: bool) -> tuple[list[Pair], int]:
    """Every pruned linear of ``model`` that runs packed, in the order in which they are listed in its blocks.

    Args:
        model: in bfloat16; linears may be packed already. It is left with its packed linears in place.
        blocks: those of the model's skeleton, which say what its linears are.
        int8: round the kept values to int8, on both sides.

    Returns:
        The pairs, and the number of pruned linears that Secateur cannot run packed: transposed weights, and experts
        some of whose fellows are not sparse.

    Raises:
        InputError: when a weight that is not finite is to be rounded to int8.
    """
    pairs, left = [], 0
    for block in blocks:
        for stack in dict.fromkeys(linear.stack for linear in block.linears if linear.stack):
            _pack_experts(model, block.prefix + stack, int8)
        modules = dict(model.get_submodule(block.prefix[:-1]).named_modules())
        for linear in block.linears:
            place = f"{linear.stack}.linears.{linear.expert}" if linear.stack else linear.name
            module, name = modules.get(place), block.prefix + place
            if isinstance(module, nn.Linear | SparseLinear):
                if (sparse := _packed(module, int8, name)) is not None:
                    pairs.append(Pair(name, kind_of(linear), _dense(sparse), sparse))
                    model.set_submodule(name, sparse)
            else:
                weight = linear.view(model.get_parameter(block.prefix + linear.tensor))
                left += sparsity_of(weight) > _LEAST_SPARSITY
    return pairs, left


def put(model: PreTrainedModel, pairs: Sequence[Pair], side: Side) -> None:
    """Let ``model`` run with one side of all pairs."""
    for pair in pairs:
        model.set_submodule(pair.name, pair.dense if side == "dense" else pair.sparse)


def _pack_experts(model: PreTrainedModel, name: str, int8: bool) -> None:
    """Let packed weights stand for the stack ``name``, if there is one and each of its experts gets smaller."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    stack = getattr(owner, attribute)
    if isinstance(stack, nn.Parameter):
        weights = [pack_if_smaller(weight.data, int8, f"{name}[{expert}]") for expert, weight in enumerate(stack)]
        if None not in weights:
            put_experts(owner, attribute, [weight for weight in weights if weight is not None])
            model.set_experts_implementation("eager")  # which multiplies with each expert's weight by itself


def _packed(module: nn.Linear | SparseLinear, int8: bool, name: str) -> SparseLinear | None:
    if isinstance(module, SparseLinear) and (module.group or not int8):
        return module
    weight = pack_if_smaller(module.weight.data, int8, name)
    return None if weight is None else SparseLinear(weight, module.bias)


def _dense(sparse: SparseLinear) -> nn.Linear:
    dense = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(sparse.weight, requires_grad=False)
    if sparse.bias is not None:
        dense.bias = sparse.bias
    return dense


def check_sparse(pairs: Sequence[Pair], left: int, model: str) -> None:
    """Raise :class:`InputError` when there is nothing to compare."""
    if not pairs:
        why = f"its {left} pruned linears run dense, as transposed weights do" if left else "prune it first"
        raise InputError(f"{model} has nothing sparse to measure: {why}")
