"""Find a model's blocks and the linears in them."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.errors import InputError
from secateur.models.experts import find_experts, routers
from secateur.models.families import FAMILIES, inside
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

    Of a model that sees images as well as text it is that of its language part.

    Raises:
        InputError: when no blocks with linears can be found.
    """
    config = getattr(model, "config", None)
    path = _language_part(model)
    part = config.get_text_config() if config and path else config
    known = FAMILIES.get(getattr(part, "model_type", None) or "")
    family = known(part) if known else None
    if family and path:
        family = inside(family, path, config)
    # A model without its head has the blocks of its family elsewhere.
    family = _with_experts(model, family if family and _has(model, family.blocks) else _walk(model, path))
    if not family.linears:
        raise InputError(f"the blocks of {type(model).__name__} ({family.blocks}) hold no nn.Linear")
    return family


def _language_part(model: nn.Module) -> str:
    """The path of the language model inside ``model``, if this wraps one and has its head; else empty."""
    if not isinstance(model, PreTrainedModel) or model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder() if model.get_output_embeddings() is not None else model
    return next(name for name, module in model.named_modules() if module is decoder)


def _has(model: nn.Module, path: str) -> bool:
    return path in {name for name, _ in model.named_modules()}


def _walk(model: nn.Module, path: str) -> Family:
    """The largest list of blocks inside the module at ``path``, and every nn.Linear or Conv1D of one by itself.

    Routers are left out; heads and embeddings lie outside the blocks. Blocks are of one class, of classes that one file
    defines, or as many as the config says: those of a hybrid model may be of several kinds.
    """
    config = getattr(model.get_submodule(path), "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    lists = [
        (f"{path}.{name}".lstrip("."), module)
        for name, module in model.get_submodule(path).named_modules()
        if isinstance(module, nn.ModuleList) and (_classes(module) == 1 or _files(module) == 1 or len(module) == depth)
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
        config: Any = model.config
        width = (
            "moe_intermediate_size"
            if hasattr(config.get_text_config(), "moe_intermediate_size")
            else "intermediate_size"
        )
        sizes |= dict.fromkeys(inside, width)
    rules: dict[str, Rule] = {**family.rules, **dict.fromkeys(inside, "block")}
    return replace(family, linears=(*family.linears, *found), rules=rules, sizes=sizes)


def blocks_of(model: nn.Module, family: Family) -> list[Block]:
    """The blocks of ``model``, in the order in which they run, each with those linears of the family that it has.

    A weight that serves in several blocks is none of theirs: when the first is pruned the others' inputs are not known.

    Raises:
        InputError: when two of them are one.
    """
    modules = model.get_submodule(family.blocks)
    assert isinstance(modules, nn.ModuleList)
    if len(set(modules)) < len(modules):
        raise InputError(f"{family.blocks} runs one block more than once, which cannot be pruned a block at a time")
    shared = _shared(model, family.blocks)
    blocks = []
    for i, module in enumerate(modules):
        prefix = f"{family.blocks}.{i}."
        own = {name for name, _ in module.named_parameters() if prefix + name not in shared}
        blocks.append(Block(prefix, module, tuple(linear for linear in family.linears if linear.tensor in own)))
    return blocks


def _shared(model: nn.Module, path: str) -> set[str]:
    """The names of the weights that serve in several of the blocks at ``path``, in each of them.

    Models of transformers say so; one without weights may not have tied them yet.
    """
    named = list(model.get_submodule(path).named_parameters(prefix=path, remove_duplicate=False))
    blocks = {name: name.removeprefix(f"{path}.").partition(".")[0] for name, _ in named}
    first: dict[int, str] = {}
    pairs = [(name, first.setdefault(id(parameter), name)) for name, parameter in named]
    pairs += getattr(model, "all_tied_weights_keys", {}).items()
    return {name for pair in pairs if blocks.get(pair[0]) != blocks.get(pair[1]) for name in pair}


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
