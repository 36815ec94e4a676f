"""Architectures as data: which linears a block has, and which channel spaces they read and write.

A channel space is a set of channels that some linears write (their rows) and others read (their
columns). In a LLaMA block ``residual`` is written by o_proj and down_proj and read, through a norm, by
q/k/v and gate/up; ``value`` leads from v_proj to o_proj; ``mlp`` from gate/up to down_proj.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Linear:
    """A linear of a block and its place among the channel spaces.

    Attributes:
        name: dotted path inside the block.
        reads: the space of its input channels (columns), or None where nothing is known of them.
        writes: the space of its output channels (rows), or None.
        norm: the norm that stands between the space and this linear, if any.
    """

    name: str
    reads: str | None = None
    writes: str | None = None
    norm: str | None = None

    @property
    def place(self) -> tuple[str, ...]:
        """Where it reads. Linears that read at the same place get the very same inputs: a reader group."""
        return (self.reads, self.norm or "") if self.reads else (self.name,)


def reader_groups(linears: Iterable[Linear]) -> list[list[Linear]]:
    """Linears by the place where they read, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.place, []).append(linear)
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
    """

    name: str
    blocks: str
    linears: tuple[Linear, ...]
    rules: Mapping[str, Rule] = field(default_factory=dict)
    inside: tuple[Carrier, ...] = ()
    outside: tuple[Carrier, ...] = ()

    def readers(self, space: str) -> list[Linear]:
        """The linears whose input channels are ``space``."""
        return [linear for linear in self.linears if linear.reads == space]


LLAMA = Family(
    name="llama",
    blocks="model.layers",
    linears=(
        Linear("self_attn.q_proj", reads="residual", writes="query", norm="input_layernorm"),
        Linear("self_attn.k_proj", reads="residual", writes="key", norm="input_layernorm"),
        Linear("self_attn.v_proj", reads="residual", writes="value", norm="input_layernorm"),
        Linear("self_attn.o_proj", reads="value", writes="residual"),
        Linear("mlp.gate_proj", reads="residual", writes="mlp", norm="post_attention_layernorm"),
        Linear("mlp.up_proj", reads="residual", writes="mlp", norm="post_attention_layernorm"),
        Linear("mlp.down_proj", reads="mlp", writes="residual"),
    ),
    rules={"residual": "model", "value": "heads", "mlp": "block"},
    inside=(
        Carrier("input_layernorm.weight", 0, "residual"),
        Carrier("post_attention_layernorm.weight", 0, "residual"),
    ),
    outside=(
        Carrier("model.embed_tokens.weight", 1, "residual"),
        Carrier("model.norm.weight", 0, "residual"),
        Carrier("lm_head.weight", 1, "residual"),
    ),
)

# By the ``model_type`` of a Hugging Face config. SmolLM and SmolLM2 call themselves llama.
FAMILIES: dict[str, Family] = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA}
