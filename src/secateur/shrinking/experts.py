"""Experts that go whole: what lies along them in a block.

A config says how many experts a block has, and transformers builds that many. So what belongs to an expert follows from
the model that it builds of a config with fewer: whatever is shorter there lies along the experts, their stacked weights
as well as the rows and biases of the router, and a family needs no table for it. What differs otherwise is refused.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from secateur.errors import InputError
from secateur.models.blocks import Block

# What modules of experts take besides hidden states: the experts of each token, and their gates, ``(T, K)`` both.
_ROUTES = (["top_k_index", "top_k_weights"], ["router_indices", "routing_weights"])


@dataclass(frozen=True)
class Experts:
    """The experts of one block.

    Attributes:
        count: how many there are.
        stay: how many are to stay.
        groups: the router's, of as many experts each, which lie one after the other; each loses as many.
        module: the path, inside the block, of the module that runs them.
        along: the tensors that lie along them, by their names inside the block, and the dimension that does.
    """

    count: int
    stay: int
    groups: int
    module: str
    along: Mapping[str, int]


def experts_of(blocks: Sequence[Block], smaller: Sequence[Block], groups: int = 1) -> dict[int, Experts]:
    """The experts of ``blocks``, by the numbers of those that have any; none of them needs weights.

    Args:
        blocks: of a model.
        smaller: of one with fewer experts, which is the same otherwise.
        groups: the router's.

    Raises:
        InputError: when the two differ in something else, or experts cannot be run one by one.
    """
    if len(blocks) != len(smaller):
        raise InputError(f"a model of {len(blocks)} blocks has not lost experts where there are {len(smaller)}")
    found = {}
    for index, (block, less) in enumerate(zip(blocks, smaller, strict=True)):
        if along := _along(block, less):
            name, dim = next(iter(along.items()))
            count, stay = (one.module.state_dict()[name].shape[dim] for one in (block, less))
            found[index] = Experts(count, stay, groups, _module(block, along), along)
    return found


def select_experts(tensors: dict[str, Tensor], prefix: str, experts: Experts, kept: Tensor) -> None:
    """Leave of the tensors of the block of this prefix, which lie along ``experts``, those that are ``kept``, int64."""
    for name, dim in experts.along.items():
        if (tensor := tensors.get(prefix + name)) is not None:  # older files lack some biases
            tensors[prefix + name] = tensor.index_select(dim, kept)


def _along(block: Block, less: Block) -> dict[str, int]:
    """The tensors of ``block`` that are shorter in ``less``, and the dimension in which they are, all by as much."""
    before, after = block.module.state_dict(), less.module.state_dict()
    along, lengths = dict[str, int](), set()
    for name in sorted(before.keys() | after.keys()):
        old, new = (tuple(some[name].shape) if name in some else () for some in (before, after))
        if old == new:
            continue
        dims = [dim for dim, sizes in enumerate(zip(old, new, strict=False)) if sizes[0] != sizes[1]]
        lengths |= {(old[dim], new[dim]) for dim in dims}
        if len(old) != len(new) or len(dims) != 1 or len(lengths) != 1:
            raise InputError(
                f"{block.prefix}{name} is {old}, and {new} where there are fewer experts: it cannot be told what of it "
                "belongs to which of them"
            )
        along[name] = dims[0]
    if tables := [name for name, tensor in before.items() if along and not tensor.is_floating_point()]:
        raise InputError(f"{block.prefix}{tables[0]} may call experts by their numbers, so that none can go")
    return along


def _module(block: Block, along: Mapping[str, int]) -> str:
    """The path of the module that holds the stacked weights, which has to take routes as such modules do."""
    tensors = block.module.state_dict()
    paths = {name.rpartition(".")[0] for name in along if tensors[name].ndim == 3}
    for path in paths:
        _, *taken = inspect.signature(block.module.get_submodule(path).forward).parameters
        if len(paths) == 1 and taken in _ROUTES:
            return path
    raise InputError(f"the experts of {block.prefix[:-1]} are not handed tokens and routes as experts are elsewhere")
