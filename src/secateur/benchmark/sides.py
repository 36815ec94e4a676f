"""The pruned linears of a loaded model, each dense and sparse, to be put in its place in turn.

What sparse means depends on the device, and is decided here alone: packed on a CPU; on a GPU, for linears that are
2:4, what :func:`secateur.load` runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from secateur.benchmark.kinds import kind_of
from secateur.errors import InputError
from secateur.masks import sparsity_of
from secateur.models.blocks import Block
from secateur.packing import pack_if_smaller
from secateur.runtime.choosing import Choice
from secateur.runtime.kernels import KERNELS
from secateur.runtime.semi_structured import SemiStructuredLinear, form_bytes, is_2of4
from secateur.runtime.sparse_experts import put_experts
from secateur.runtime.sparse_linear import SparseLinear

Side = Literal["dense", "sparse"]
SIDES: tuple[Side, ...] = ("dense", "sparse")
# What :func:`secateur.load` runs: packed, in several forms, or dense where on a GPU no other form is faster.
Runnable = SparseLinear | SemiStructuredLinear | nn.Linear
# Below it packing saves nothing: a mask takes one bit of each weight's 16.
_LEAST_SPARSITY = 1 / 16


@dataclass(frozen=True)
class Pair:
    """One linear of a model, twice.

    Attributes:
        name: where it is in the model.
        kind: what it is to its block.
        dense: with its weight in bfloat16, as torch runs it.
        sparse: with the same weight, as Secateur runs it.
    """

    name: str
    kind: str
    dense: nn.Linear
    sparse: Runnable

    @property
    def values(self) -> str:
        """The type of the values that the sparse side keeps: ``bfloat16`` or ``int8``."""
        return "int8" if isinstance(self.sparse, SparseLinear) and self.sparse.group else "bfloat16"

    @property
    def sparse_bytes(self) -> int:
        """What the weight takes in memory on the sparse side, in all forms that are kept there."""
        if isinstance(self.sparse, SparseLinear):
            return self.sparse.packed().nbytes
        forms = self.sparse.forms.values() if isinstance(self.sparse, SemiStructuredLinear) else [self.sparse.weight]
        return sum(map(form_bytes, forms))


def pairs_of(
    model: PreTrainedModel, blocks: Sequence[Block], device: torch.device, int8: bool
) -> tuple[list[Pair], int]:
    """Every pruned linear of ``model`` that runs sparse, in the order in which they are listed in its blocks.

    Args:
        model: as :func:`secateur.load` gives it on ``device`` in bfloat16. It is left with its sparse sides in place.
        blocks: those of the model's skeleton, which say what its linears are.
        device: where the model is: on a CPU every pruned linear is packed, on a GPU those that are 2:4 count.
        int8: on a CPU, round the kept values to int8, on both sides.

    Returns:
        The pairs, and the number of other linears that are pruned. On a CPU those are transposed weights, and experts
        some of whose fellows are not sparse; on a GPU these, all other experts, and what is not 2:4.

    Raises:
        InputError: when a weight that is not finite is to be rounded to int8.
    """
    pairs, left = [], 0
    on_gpu = device.type == "cuda"
    for block in blocks:
        for stack in dict.fromkeys(linear.stack for linear in block.linears if linear.stack and not on_gpu):
            _pack_experts(model, block.prefix + stack, int8)
        modules = dict(model.get_submodule(block.prefix[:-1]).named_modules())
        for linear in block.linears:
            place = f"{linear.stack}.linears.{linear.expert}" if linear.stack else linear.name
            module, name = modules.get(place), block.prefix + place
            if (sparse := _fast_on_gpu(module) if on_gpu else _packed(module, int8, name)) is not None:
                pairs.append(Pair(name, kind_of(linear), _dense(sparse), sparse))
                model.set_submodule(name, sparse)
            elif not isinstance(module, SparseLinear):  # of which int8 would make no smaller one
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


def _packed(module: nn.Module | None, int8: bool, name: str) -> SparseLinear | None:
    """``module`` as it runs on a CPU, if it is a linear that gets smaller."""
    if not isinstance(module, nn.Linear | SparseLinear):
        return None
    if isinstance(module, SparseLinear) and (module.group or not int8):
        return module
    weight = pack_if_smaller(module.weight.data, int8, name)
    return None if weight is None else SparseLinear(weight, module.bias)


def _fast_on_gpu(module: nn.Module | None) -> SemiStructuredLinear | nn.Linear | None:
    """``module`` as it was loaded, if it is a linear whose weight is 2:4; it may be dense because that is faster."""
    if isinstance(module, SemiStructuredLinear):
        return module
    return module if type(module) is nn.Linear and is_2of4(module.weight) else None


def _dense(sparse: Runnable) -> nn.Linear:
    dense = nn.Linear(sparse.in_features, sparse.out_features, bias=False, device="meta")
    # Sparse forms may give the transpose of what lies in memory, which torch would multiply by another kernel.
    dense.weight = nn.Parameter(sparse.weight.contiguous(), requires_grad=False)
    if sparse.bias is not None:
        dense.bias = sparse.bias
    return dense


def check_device(device: torch.device, int8: bool) -> None:
    """Raise :class:`InputError` when nothing that is asked for runs sparse on ``device``, whatever the model."""
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"nothing runs sparse on {device}: give --device cpu or cuda")
    if device.type == "cuda" and int8:
        raise InputError("--int8 is for CPUs, a GPU runs int8 values as bfloat16: leave it out, or give --device cpu")
    if device.type == "cpu" and not KERNELS:
        raise InputError("Secateur was installed without a C++ compiler: it has no kernels to measure")


def check_sparse(pairs: Sequence[Pair], left: int, choices: Sequence[Choice], device: torch.device, model: str) -> None:
    """Raise :class:`InputError` when there is nothing to compare: no pairs, or on both sides the same."""
    on_gpu = device.type == "cuda"
    if not pairs and on_gpu:
        none = f"its {left} pruned linears are not, or are experts or transposed" if left else "it has no such linear"
        why = f"on a GPU only 2:4 runs sparse, and {none}; prune it with --pattern 2:4, or give --device cpu"
    elif not pairs:
        why = f"its {left} pruned linears run dense, as transposed weights do" if left else "prune it first"
    elif on_gpu and all(type(pair.sparse) is nn.Linear for pair in pairs):
        refused = {f"{name}: {reason}" for choice in choices for name, reason in choice.measured.refused.items()}
        why = "; ".join([f"dense was chosen here for all of its {len(pairs)} 2:4 linears", *sorted(refused)])
    else:
        return
    raise InputError(f"{model} has nothing sparse to measure: {why}")
