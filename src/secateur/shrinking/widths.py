"""How many heads and channels each block keeps, so that the asked share of its weights goes.

Attention and MLP lose the same share, as far as heads allow: they go in whole key-value heads with the query heads that
share them, or in as many query heads of each, whichever comes nearest. The MLP's width makes up the difference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.errors import InputError
from secateur.models.blocks import Block
from secateur.models.spaces import Family

# Widths of MLPs are multiples of it where they change: kernels like that.
MULTIPLE = 8


@dataclass(frozen=True)
class Widths:
    """What a block has.

    Attributes:
        queries: query heads.
        keys: key-value heads; as many query heads share each.
        channels: of each of the spaces that :attr:`~secateur.models.spaces.Family.inner` names; 0 where there is none.
    """

    queries: int
    keys: int
    channels: int


class Shapes:
    """The linears of some blocks of one family, whose weights can be counted at any widths.

    Attributes:
        whole: the widths that they have now.
        inner: the numbers of channels of those spaces whose channels may go.
    """

    def __init__(self, blocks: Sequence[Block], family: Family) -> None:
        """Of ``blocks``, which may have no weights yet."""
        self._family = family
        self._linears = [(linear, *block.weight(linear).shape) for block in blocks for linear in block.linears]
        readers = [inputs for linear, _, inputs in self._linears if linear.reads in family.inner]
        self.whole = Widths(family.heads[0], family.heads[1], readers[0] if readers else 0)
        self.inner = {*readers}

    def weights(self, widths: Widths) -> int:
        """The weights of all their linears, biases left out."""
        queries, keys, width = self._family.heads
        fewer = self.whole.channels - widths.channels
        lost = dict.fromkeys(self._family.inner, fewer) | {
            "query": (queries - widths.queries) * width,
            "key": (keys - widths.keys) * width,
            "value": (keys - widths.keys) * width,
        }
        unread = lost | {"value": lost["query"]}
        return sum(
            (outputs - sum(lost.get(space, 0) for space in linear.parts)) * (inputs - unread.get(linear.reads or "", 0))
            for linear, outputs, inputs in self._linears
        )


def weights_of(blocks: Sequence[Block], family: Family) -> int:
    """The weights of all linears of ``blocks`` as they are."""
    shapes = Shapes(blocks, family)
    return shapes.weights(shapes.whole)


def widths_for(
    shapes: Shapes, target: float, is_allowed: Callable[[Widths], bool], *, heads: bool = True, channels: bool = True
) -> Widths:
    """Those whose weights come nearest to ``target``, by the rule above.

    Args:
        shapes: of the blocks that are to be narrower.
        target: how many weights they are to keep, all together.
        is_allowed: whether a model may have such heads.
        heads: whether there may be fewer heads.
        channels: whether there may be fewer channels.

    Raises:
        InputError: when so much cannot be removed.
    """
    whole = shapes.whole
    everything, attention = shapes.weights(whole), shapes.weights(Widths(whole.queries, whole.keys, 0))

    def weights(queries: int, keys: int) -> int:
        return shapes.weights(Widths(queries, keys, 0))

    pairs = [(whole.queries, whole.keys)]
    if heads:
        shared = whole.queries // whole.keys
        every = [(keys * queries, keys) for keys in range(1, whole.keys + 1) for queries in range(1, shared + 1)]
        wanted = attention * target / everything
        pairs = sorted(every, key=lambda pair: (abs(weights(*pair) - wanted), -pair[1]))
    queries, keys = next(pair for pair in pairs if is_allowed(Widths(*pair, whole.channels)))
    if not channels or not whole.channels:
        return Widths(queries, keys, whole.channels)
    rest, each = target - weights(queries, keys), (everything - attention) / whole.channels
    multiples = [*range(MULTIPLE, whole.channels, MULTIPLE), whole.channels]
    if rest < (multiples[0] - MULTIPLE / 2) * each:
        least = shapes.weights(Widths(queries, keys, multiples[0]))
        raise InputError(
            f"at most {1 - least / everything:.1%} of these weights can go, and {1 - target / everything:.1%} were to: "
            f"{keys} key-value heads and {multiples[0]} channels of the MLP have to stay"
        )
    return Widths(queries, keys, min(multiples, key=lambda count: abs(count * each - rest)))


def changes(widths: Widths, whole: Widths, family: Family) -> dict[str, Any]:
    """What a config has to say otherwise of a model of ``family`` whose blocks have these ``widths``."""
    changed: dict[str, Any] = {}
    if widths.queries != whole.queries:  # else channels per head may follow from the residual width
        changed |= {family.sizes["query"]: widths.queries, family.sizes["key"]: widths.keys}
        changed["head_dim"] = family.heads[2]
    if widths.channels != whole.channels:
        changed[family.sizes[family.inner[0]]] = widths.channels
    return changed
