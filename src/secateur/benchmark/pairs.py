"""The pruned linears of a loaded model, each dense and sparse, to be installed in its place in turn.

What sparse means depends on the device, and is decided here alone: packed on a CPU; on a GPU, what
:func:`secateur.load` runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from secateur.benchmark.roles import role_of
from secateur.errors import InputError
from secateur.masks import sparsity_of
from secateur.models.blocks import Block
from secateur.packing import pack_if_smaller
from secateur.runtime.acceleration import LEAST_SPARSITY, pattern_of
from secateur.runtime.choosing import Choice
from secateur.runtime.dispatch import DispatchedLinear, dense_linear, form_bytes
from secateur.runtime.kernels import KERNELS
from secateur.runtime.sparse_experts import keep_experts
from secateur.runtime.sparse_linear import VALUES, SparseLinear

Variant = Literal["dense", "sparse"]
VARIANTS: tuple[Variant, ...] = ("dense", "sparse")
# What :func:`secateur.load` runs: packed, in several forms, or dense where on a GPU no other form is faster.
Runnable = SparseLinear | DispatchedLinear | nn.Linear


@dataclass(frozen=True)
class Pair:
    """One linear of a model, twice.

    Attributes:
        name: where it is in the model.
        role: what it is to its block.
        dense: with its weight in bfloat16, as torch runs it.
        sparse: with the same weight, as Secateur runs it.
    """

    name: str
    role: str
    dense: nn.Linear
    sparse: Runnable

    @property
    def values(self) -> str:
        """The type of the values that the sparse variant keeps: ``bfloat16``, ``int8`` or ``int4``."""
        forms = self.sparse.forms.values() if isinstance(self.sparse, DispatchedLinear) else [self.sparse]
        return VALUES[min(form.bits if isinstance(form, SparseLinear) else 16 for form in forms)]

    @property
    def sparse_bytes(self) -> int:
        """What the weight takes in memory in the sparse variant, in all forms that are kept there."""
        return self.sparse.nbytes if isinstance(self.sparse, DispatchedLinear) else form_bytes(self.sparse)


def pairs_of(
    model: PreTrainedModel, blocks: Sequence[Block], device: torch.device, bits: int | None
) -> tuple[list[Pair], int]:
    """Every pruned linear of ``model`` that runs sparse, in the order in which they are listed in its blocks.

    Args:
        model: as :func:`secateur.load` gives it on ``device`` in bfloat16. It is left with its sparse linears in place.
        blocks: those of the model's skeleton, which say what its linears are.
        device: where the model is: on a CPU every pruned linear is packed, on a GPU those count that are modules.
        bits: on a CPU, round the weights to so many, 8 or 4, in both variants.

    Returns:
        The pairs, and the number of other linears that are pruned. On a CPU those are transposed weights, and experts
        some of whose fellows are not sparse; on a GPU these and all other experts.

    Raises:
        InputError: when a weight that is not finite is to be rounded.
    """
    pairs, left = [], 0
    on_gpu = device.type == "cuda"
    for block in blocks:
        packable = (x.stack for x in block.linears if x.stack and not (on_gpu or x.transposed))
        for stack in dict.fromkeys(packable):
            _pack_experts(model, block.prefix + stack, bits)
        modules = dict(model.get_submodule(block.prefix[:-1]).named_modules())
        for linear in block.linears:
            place = f"{linear.stack}.linears.{linear.expert}" if linear.stack else linear.name
            module, name = modules.get(place), block.prefix + place
            if (sparse := _as_loaded(module) if on_gpu else _packed(module, bits, name)) is not None:
                # Forms may give the transpose of what lies in memory, which torch would multiply by another kernel.
                dense = dense_linear(sparse.weight.detach().contiguous(), sparse.bias)
                pairs.append(Pair(name, role_of(linear), dense, sparse))
                model.set_submodule(name, sparse)
            elif not isinstance(module, SparseLinear):  # of which rounding would make no smaller one
                weight = linear.view(model.get_parameter(block.prefix + linear.tensor))
                left += sparsity_of(weight) > LEAST_SPARSITY
    return pairs, left


def install(model: PreTrainedModel, pairs: Sequence[Pair], variant: str) -> None:
    """Let ``model`` run with one variant of all pairs."""
    for pair in pairs:
        model.set_submodule(pair.name, pair.dense if variant == "dense" else pair.sparse)


def _pack_experts(model: PreTrainedModel, name: str, bits: int | None) -> None:
    """Let packed weights stand for the stack ``name``, if there is one and each of its experts gets smaller."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    stack = getattr(owner, attribute)
    if isinstance(stack, nn.Parameter):
        weights = [pack_if_smaller(weight.data, bits, f"{name}[{expert}]") for expert, weight in enumerate(stack)]
        if None not in weights:
            keep_experts(owner, attribute, [weight for weight in weights if weight is not None])
            model.set_experts_implementation("eager")  # which multiplies with each expert's weight by itself


def _packed(module: nn.Module | None, bits: int | None, name: str) -> SparseLinear | None:
    """``module`` as it runs on a CPU, if it is a linear that gets smaller."""
    if not isinstance(module, nn.Linear | SparseLinear):
        return None
    if isinstance(module, SparseLinear) and (module.group or not bits):
        return module
    weight = pack_if_smaller(module.weight.data, bits, name)
    return None if weight is None else SparseLinear(weight, module.bias)


def _as_loaded(module: nn.Module | None) -> Runnable | None:
    """``module`` as it was loaded on a GPU, if it is a pruned linear; it may be dense because that is faster."""
    if isinstance(module, DispatchedLinear | SparseLinear):
        return module
    return module if type(module) is nn.Linear and pattern_of(module) else None


def check_device(device: torch.device, bits: int | None) -> None:
    """Raise :class:`InputError` when nothing that is asked for runs sparse on ``device``, whatever the model."""
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"nothing runs sparse on {device}: give --device cpu or cuda")
    if device.type == "cuda" and bits:
        raise InputError(f"--int{bits} is for CPUs: on a GPU measure a model that was packed with --int{bits}")
    if device.type == "cpu" and not KERNELS:
        raise InputError("Secateur was installed without a C++ compiler: it has no kernels to measure")


def check_sparse(pairs: Sequence[Pair], left: int, choices: Sequence[Choice], device: torch.device, model: str) -> None:
    """Raise :class:`InputError` when there is nothing to compare: no pairs, or the same form in both variants."""
    on_gpu = device.type == "cuda"
    if not pairs:
        kept = "experts and transposed weights do on a GPU" if on_gpu else "transposed weights do"
        why = f"its {left} pruned linears run dense, as {kept}" if left else "prune it first"
    elif on_gpu and all(type(pair.sparse) is nn.Linear for pair in pairs):
        refused = {f"{name}: {reason}" for choice in choices for name, reason in choice.measured.refused.items()}
        why = "; ".join([f"dense was chosen here for all of its {len(pairs)} pruned linears", *sorted(refused)])
    else:
        return
    raise InputError(f"{model} has nothing sparse to measure: {why}")
