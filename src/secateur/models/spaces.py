"""The words of the tables in ``families.py``: linears, the channel spaces that they read and write, families.

A channel space is a set of channels that some linears write (their rows) and others read (their
columns). In a LLaMA block ``residual`` is written by o_proj and down_proj and read, through a norm, by
q/k/v and gate/up; ``value`` leads from v_proj to o_proj; ``mlp`` from gate/up to down_proj.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

# Query heads, key-value heads, and channels per head.
Heads = tuple[int, int, int]
Fused = Literal["stacked", "by head", "interleaved"]


@dataclass(frozen=True)
class Linear:
    """A linear of a block: a view of one of its tensors, and its place among the channel spaces.

    Attributes:
        name: dotted path inside the block; that of an expert has its number before its last part.
        reads: the space of its input channels (columns), or None where nothing is known of them.
        writes: the space of its output channels (rows), or None; of a fused linear, the spaces of its parts.
        norm: the norm that stands between the space and this linear, if any.
        fused: how the rows of a fused linear are dealt to its parts: one part after the other; for each key-value
            head its query heads, its key and its value; or a row of each in turn.
        transposed: stored as ``(I, O)``, as GPT-2's Conv1D is.
        stack: the name of the three-dimensional tensor ``(experts, O, I)``, or ``(experts, I, O)``, that it is one
            layer of, if it is an expert.
        expert: its number there.
    """

    name: str
    reads: str | None = None
    writes: str | tuple[str, ...] | None = None
    norm: str | None = None
    fused: Fused = "stacked"
    transposed: bool = False
    stack: str | None = None
    expert: int = 0

    @property
    def place(self) -> tuple[str, ...]:
        """Where it reads. Linears that read at the same place get the very same inputs: a reader group.

        Every expert gets inputs of its own, the tokens that are routed to it.
        """
        return (self.reads, self.norm or "") if self.reads and not self.stack else (self.name,)

    @property
    def tensor(self) -> str:
        """The name, inside the block, of the tensor that its weight is a view of."""
        return self.stack or f"{self.name}.weight"

    @property
    def bias(self) -> str:
        """The name, inside the block, of its bias, if it has one."""
        return f"{self.stack}_bias" if self.stack else f"{self.name}.bias"

    @property
    def parts(self) -> tuple[str, ...]:
        """The spaces that its rows write."""
        return self.writes if isinstance(self.writes, tuple) else (self.writes,) if self.writes else ()

    def view(self, tensor: Tensor) -> Tensor:
        """Its weight ``(O, I)``, inside the ``tensor`` that holds it: writing to the one writes to the other."""
        weight = tensor[self.expert] if self.stack else tensor
        return weight.T if self.transposed else weight

    def view_bias(self, tensor: Tensor) -> Tensor:
        """The same of its bias ``(O,)``."""
        return tensor[self.expert] if self.stack else tensor


def reader_groups(linears: Iterable[Linear]) -> list[list[Linear]]:
    """Linears by the place where they read, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.place, []).append(linear)
    return list(groups.values())


def judged_together(linears: Iterable[Linear]) -> list[list[Linear]]:
    """Reader groups, in order of first appearance, but all experts of one stack as one group.

    Each expert sees few of the tokens, and a trial runs the whole block: one for each expert would cost far more than
    what it judges.
    """
    groups: dict[tuple[str, ...], list[Linear]] = {}
    for linear in linears:
        groups.setdefault((linear.stack,) if linear.stack else linear.place, []).append(linear)
    return list(groups.values())


@dataclass(frozen=True)
class Carrier:
    """A tensor, other than a linear's weight and bias, one of whose dimensions is a channel space."""

    name: str
    dim: int
    space: str


Rule = Literal["model", "block", "heads"]


@dataclass(frozen=True)
class Family:
    """A known architecture.

    Attributes:
        name: its name.
        blocks: the path of its list of blocks.
        linears: every prunable linear of a block.
        rules: the spaces whose channels may be reordered without changing what the model computes, and how
            freely: ``model``, by one order for the whole model, since every block adds to the same space;
            ``block``, by any order in each block; ``heads``, inside each key-value head of each block, in the
            same way for all query heads that share it. A space that is not named keeps its order: rotary
            embeddings tie the channels of queries and keys to their places.
        inside: what else lies along a space in each block; names inside the block.
        outside: the same outside the blocks; full names. What a checkpoint lacks (a tied head) is passed over.
        heads: its query heads, key-value heads, and channels per head.
        sizes: of spaces whose size a config can say apart from the residual width, what it calls that: the number of
            heads of ``query`` and ``key``, the channels of those whose rule is ``block``, which all have one name.
        pre_norm: whether norms stand beside the residual stream, so that nothing reads their outputs but linears (and
            routers). Otherwise the stream itself goes through them.
        unit_offset: whether norms multiply by 1 + their weight.
        scaled_by: spaces whose channels follow the rows of one linear: when a row and its bias are multiplied by a
            positive number, so is the channel. By space, the name of that linear, and which of its parts. Gated MLPs
            follow up, not gate; of those without a gate only ReLU follows.
    """

    name: str
    blocks: str
    linears: tuple[Linear, ...]
    rules: Mapping[str, Rule] = field(default_factory=dict)
    inside: tuple[Carrier, ...] = ()
    outside: tuple[Carrier, ...] = ()
    heads: Heads = (1, 1, 1)
    sizes: Mapping[str, str] = field(default_factory=dict)
    pre_norm: bool = True
    unit_offset: bool = False
    scaled_by: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def gathers(self) -> bool:
        """Whether all that reads the residual space reads it through a norm, so that a gather may stand there."""
        readers = self.readers("residual")
        return self.pre_norm and bool(readers) and all(linear.norm for linear in readers)

    @property
    def inner(self) -> list[str]:
        """The spaces inside its MLPs that have one size: those that a config can say, or else all."""
        spaces = [space for space, rule in self.rules.items() if rule == "block"]
        return [space for space in spaces if space in self.sizes] or spaces

    def readers(self, space: str) -> list[Linear]:
        """The linears whose input channels are ``space``."""
        return [linear for linear in self.linears if linear.reads == space]
