"""Architectures as data: which linears a block has, and which channel spaces they read and write.

A channel space is a set of channels that some linears write (their rows) and others read (their
columns). In a LLaMA block ``residual`` is written by o_proj and down_proj and read, through a norm, by
q/k/v and gate/up; ``value`` leads from v_proj to o_proj; ``mlp`` from gate/up to down_proj.
"""

from collections.abc import Iterable
from dataclasses import dataclass


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
class Family:
    """A known architecture: the path of its list of blocks, and every prunable linear of a block."""

    name: str
    blocks: str
    linears: tuple[Linear, ...]


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
)

# By the ``model_type`` of a Hugging Face config. SmolLM and SmolLM2 call themselves llama.
FAMILIES: dict[str, Family] = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA}
