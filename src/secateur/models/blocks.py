"""Find a model's blocks and the linears in them."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.errors import InputError
from secateur.models.experts import find_experts, routers
from secateur.models.families import FAMILIES
from secateur.models.spaces import Family, Linear, Rule


@dataclass(frozen=True)
class Block:
    """One of a model's repeated blocks.

    Attributes:
        prefix: what its parameters' names begin with, such as ``"model.layers.0."``.
        module: the block itself.
        linears: its linears that are to be pruned.
    """

    prefix: str
    module: nn.Module
    linears: tuple[Linear, ...]

    @property
    def device(self) -> torch.device:
        """Where its module's weights are now."""
        return next(self.module.parameters()).device

    def full_name(self, linear: Linear) -> str:
        """The name of a linear of this block inside the whole model."""
        return self.prefix + linear.name

    def weight(self, linear: Linear) -> Tensor:
        """The weight of one of its linears as its module has it, ``(O, I)``."""
        return linear.view(self.module.get_parameter(linear.tensor).data)

    def shape(self, linear: Linear) -> tuple[int, int]:
        """The shape ``(O, I)`` of one of its linears as it was when it was first asked for: there may be thousands."""
        rows, columns = self._shapes[linear.tensor][-2:]
        return (columns, rows) if linear.transposed else (rows, columns)

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: parameter.shape for name, parameter in self.module.named_parameters()}

    def stored(self, linear: Linear, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight of one of its linears among the block's stored ``tensors``, ``(O, I)``; a view."""
        return linear.view(tensors[self.prefix + linear.tensor])

    @property
    def pruned(self) -> set[str]:
        """The full names of those tensors of which nothing else is left than the linears that are to be pruned."""
        held = Counter(linear.tensor for linear in self.linears)
        layers = {x.tensor: len(self.module.get_parameter(x.stack)) for x in self.linears if x.stack}
        return {self.prefix + tensor for tensor, number in held.items() if number == layers.get(tensor, 1)}


def family_of(model: nn.Module) -> Family:
    """The family of ``model``: from the table by its config, or else found by walking it.

    Raises:
        InputError: when no blocks with linears can be found.
    """
    config = getattr(model, "config", None)
    known = FAMILIES.get(getattr(config, "model_type", None) or "")
    family = known(config) if known else None
    # A model without its head, or in a wrapper, has the blocks of its family elsewhere.
    family = _with_experts(model, family if family and _has(model, family.blocks) else _walk(model))
    if not family.linears:
        raise InputError(f"the blocks of {type(model).__name__} ({family.blocks}) hold no nn.Linear")
    return family


def _has(model: nn.Module, path: str) -> bool:
    return path in {name for name, _ in model.named_modules()}


def _walk(model: nn.Module) -> Family:
    """The largest list of blocks, and every nn.Linear or Conv1D of such a block by itself, but for routers.

    Blocks are of one class, or of classes that one file defines: a hybrid model may have one for each kind. Heads and
    embeddings lie outside the blocks, so they are never pruned.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and (_classes(module) == 1 or _files(module) == 1)
    ]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of repeated blocks to prune")
    path, blocks = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    linears: dict[Linear, None] = {}
    for block in blocks:  # which may differ: a hybrid model has attention in some and convolutions in others
        left = routers(block)
        linears |= dict.fromkeys(
            Linear(name, transposed=isinstance(module, Conv1D))
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and name not in left
        )
    return Family("generic", path, tuple(linears))


def _classes(blocks: nn.ModuleList) -> int:
    return len({type(block) for block in blocks})


def _files(blocks: nn.ModuleList) -> int:
    """How many files define the classes of some modules, or 0 where one is torch's own."""
    files = {type(block).__module__ for block in blocks}
    return 0 if any(file.startswith("torch.") for file in files) else len(files)


def _with_experts(model: nn.Module, family: Family) -> Family:
    """The family with the experts that are found in the model's blocks, each with a space of its own."""
    outside = "residual" if "residual" in family.rules else None
    blocks = model.get_submodule(family.blocks)
    found = dict.fromkeys(linear for block in blocks.children() for linear in find_experts(block, outside))
    inside = [linear.reads for linear in found if linear.reads and linear.reads != outside]
    sizes = {**family.sizes}
    if outside:
        width = "moe_intermediate_size" if hasattr(model.config, "moe_intermediate_size") else "intermediate_size"
        sizes |= dict.fromkeys(inside, width)
    rules: dict[str, Rule] = {**family.rules, **dict.fromkeys(inside, "block")}
    return replace(family, linears=(*family.linears, *found), rules=rules, sizes=sizes)


def blocks_of(model: nn.Module, family: Family) -> list[Block]:
    """The blocks of ``model``, in the order in which they run, each with those linears of the family that it has.

    Raises:
        InputError: when two of them are one.
    """
    modules = model.get_submodule(family.blocks)
    assert isinstance(modules, nn.ModuleList)
    if len(set(modules)) < len(modules):
        raise InputError(f"{family.blocks} runs one block more than once, which cannot be pruned a block at a time")
    blocks = []
    for i, module in enumerate(modules):
        inside = {name for name, _ in module.named_parameters()}
        blocks.append(Block(f"{family.blocks}.{i}.", module, tuple(x for x in family.linears if x.tensor in inside)))
    return blocks


def weights_in(blocks: Iterable[Block]) -> int:
    """The number of weights with rows and columns that lie in ``blocks``: of a model's decoder."""
    return sum(p.numel() for block in blocks for _, p in _matrices(block))


def _matrices(block: Block) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights with rows and columns, of a stack of experts as well, but not the biases of that."""
    for name, parameter in block.module.named_parameters():
        if parameter.ndim > 1 and not name.endswith("bias"):
            yield name, parameter


def left_dense(blocks: Sequence[Block], skipped: Collection[str]) -> dict[str, float]:
    """Weights with rows and columns that lie in ``blocks`` and are not pruned, though nobody asked for that.

    Args:
        blocks: all blocks, each with the linears that are pruned.
        skipped: the full names of linears that somebody asked to leave out.

    Returns:
        by its name in the block, the share that each kind has of all such weights; the largest first.
    """
    sizes: Counter[str] = Counter()
    whole = weights_in(blocks)
    for block in blocks:
        pruned = {linear.tensor for linear in block.linears}
        for name, parameter in _matrices(block):
            asked = block.prefix + name.removesuffix(".weight") in skipped
            if name not in pruned and not asked:
                sizes[name] += parameter.numel()
    return {name: size / whole for name, size in sizes.most_common()}
