"""Find a model's blocks and the linears in them."""

from dataclasses import dataclass

from torch import nn

from secateur.errors import InputError
from secateur.models.families import FAMILIES, Family, Linear


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

    def full_name(self, linear: Linear) -> str:
        """The name of a linear of this block inside the whole model."""
        return self.prefix + linear.name

    def weight(self, linear: Linear) -> nn.Parameter:
        """The weight of one of its linears, ``(O, I)``."""
        weight = self.module.get_submodule(linear.name).weight
        assert isinstance(weight, nn.Parameter)
        return weight


def family_of(model: nn.Module) -> Family:
    """The family of ``model``: from the table by its config, or else found by walking it.

    Raises:
        InputError: when no blocks with linears can be found.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return FAMILIES.get(model_type or "") or _walk(model)


def _walk(model: nn.Module) -> Family:
    """The largest list of blocks of one class, and every nn.Linear of such a block by itself.

    Heads and embeddings lie outside the blocks, so they are never pruned.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of repeated blocks to prune")
    path, blocks = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    # Blocks may differ: a hybrid model has attention in some and convolutions in others.
    names = dict.fromkeys(n for block in blocks for n, m in block.named_modules() if isinstance(m, nn.Linear))
    if not names:
        raise InputError(f"the blocks of {type(model).__name__} ({path}) hold no nn.Linear")
    return Family("generic", path, tuple(Linear(name) for name in names))


def blocks_of(model: nn.Module, family: Family) -> list[Block]:
    """The blocks of ``model``, in the order in which they run, each with those linears of the family that it has."""
    modules = model.get_submodule(family.blocks)
    assert isinstance(modules, nn.ModuleList)
    blocks = []
    for i, module in enumerate(modules):
        inside = {name for name, m in module.named_modules() if isinstance(m, nn.Linear)}
        blocks.append(Block(f"{family.blocks}.{i}.", module, tuple(x for x in family.linears if x.name in inside)))
    return blocks
