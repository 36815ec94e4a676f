"""Architectures as data: which linears a block has, and which channel spaces they read and write.

A channel space is a set of channels that some linears write (their rows) and others read (their
columns). In a LLaMA block ``residual`` is written by o_proj and down_proj and read, through a norm, by
q/k/v and gate/up; ``value`` leads from v_proj to o_proj; ``mlp`` from gate/up to down_proj.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

# Query heads, key-value heads, and channels per head.
Heads = tuple[int, int, int]
Fused = Literal["stacked", "by head"]


@dataclass(frozen=True)
class Linear:
    """A linear of a block: a view of one of its tensors, and its place among the channel spaces.

    Attributes:
        name: dotted path inside the block; that of an expert has its number before its last part.
        reads: the space of its input channels (columns), or None where nothing is known of them.
        writes: the space of its output channels (rows), or None; of a fused linear, the spaces of its parts.
        norm: the norm that stands between the space and this linear, if any.
        fused: how the rows of a fused linear are dealt to its parts: one part after the other, or for each
            key-value head its query heads, its key and its value.
        transposed: stored as ``(I, O)``, as GPT-2's Conv1D is.
        stack: the name of the three-dimensional tensor ``(experts, O, I)`` that it is one layer of, if it is
            an expert.
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
        return f"{self.name}.bias"

    @property
    def parts(self) -> tuple[str, ...]:
        """The spaces that its rows write."""
        return self.writes if isinstance(self.writes, tuple) else (self.writes,) if self.writes else ()

    def view(self, tensor: Tensor) -> Tensor:
        """Its weight ``(O, I)``, inside the ``tensor`` that holds it: writing to the one writes to the other."""
        weight = tensor[self.expert] if self.stack else tensor
        return weight.T if self.transposed else weight


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
        heads: its query heads, key-value heads, and channels per head.
        gathers: whether what reads the residual space reads it through a norm of its own, so that a gather may
            stand there.
    """

    name: str
    blocks: str
    linears: tuple[Linear, ...]
    rules: Mapping[str, Rule] = field(default_factory=dict)
    inside: tuple[Carrier, ...] = ()
    outside: tuple[Carrier, ...] = ()
    heads: Heads = (1, 1, 1)
    gathers: bool = True

    def readers(self, space: str) -> list[Linear]:
        """The linears whose input channels are ``space``."""
        return [linear for linear in self.linears if linear.reads == space]


def _heads(config: Any) -> Heads:
    queries = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or queries
    return queries, keys, getattr(config, "head_dim", None) or config.hidden_size // queries


def _norms(names: Iterable[str], bias: bool = False) -> tuple[Carrier, ...]:
    """Norms of the residual space."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return tuple(Carrier(f"{name}.{kind}", 0, "residual") for name in names for kind in kinds)


def _ends(embedding: str, norm: str, bias: bool = False) -> tuple[Carrier, ...]:
    """What lies along the residual space outside the blocks: embedding, last norm, output head."""
    head = Carrier("lm_head.weight", 1, "residual")
    return (Carrier(f"{embedding}.weight", 1, "residual"), *_norms([norm], bias), head)


_RULES: dict[str, Rule] = {"residual": "model", "value": "heads", "mlp": "block"}
_ATTENTION = (
    Linear("self_attn.q_proj", "residual", "query", "input_layernorm"),
    Linear("self_attn.k_proj", "residual", "key", "input_layernorm"),
    Linear("self_attn.v_proj", "residual", "value", "input_layernorm"),
    Linear("self_attn.o_proj", "value", "residual"),
)
_QKV = ("query", "key", "value")


def _gated(norm: str) -> tuple[Linear, ...]:
    return (
        Linear("mlp.gate_proj", "residual", "mlp", norm),
        Linear("mlp.up_proj", "residual", "mlp", norm),
        Linear("mlp.down_proj", "mlp", "residual"),
    )


def llama(config: Any) -> Family:
    """LLaMA, Mistral, Qwen2, Qwen3, SmolLM."""
    return Family(
        name="llama",
        blocks="model.layers",
        linears=_ATTENTION + _gated("post_attention_layernorm"),
        rules=_RULES,
        heads=_heads(config),
        inside=_norms(["input_layernorm", "post_attention_layernorm"]),
        outside=_ends("model.embed_tokens", "model.norm"),
    )


def gemma(config: Any) -> Family:
    """Gemma 2 and 3: norms after attention and MLP as well."""
    sandwich = ["post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    return replace(
        llama(config),
        name="gemma",
        linears=_ATTENTION + _gated("pre_feedforward_layernorm"),
        inside=_norms(["input_layernorm", *sandwich]),
    )


def phi3(config: Any) -> Family:
    """Phi-3 and Phi-4: fused q/k/v and gate/up."""
    return replace(
        llama(config),
        name="phi3",
        linears=(
            Linear("self_attn.qkv_proj", "residual", _QKV, "input_layernorm"),
            Linear("self_attn.o_proj", "value", "residual"),
            Linear("mlp.gate_up_proj", "residual", ("mlp", "mlp"), "post_attention_layernorm"),
            Linear("mlp.down_proj", "mlp", "residual"),
        ),
    )


def experts(config: Any) -> Family:
    """Mixtral and Qwen3-MoE: q/k/v as in LLaMA; each expert a gated MLP with a space of its own, gate and up fused.

    Blocks may have a dense MLP instead (Qwen3-MoE's ``mlp_only_layers``).
    """
    count = getattr(config, "num_local_experts", None) or config.num_experts
    each = [
        linear
        for e in range(count)
        for linear in (
            Linear(
                f"mlp.experts.{e}.gate_up_proj",
                "residual",
                (f"mlp.{e}", f"mlp.{e}"),
                stack="mlp.experts.gate_up_proj",
                expert=e,
            ),
            Linear(f"mlp.experts.{e}.down_proj", f"mlp.{e}", "residual", stack="mlp.experts.down_proj", expert=e),
        )
    ]
    base = llama(config)
    return replace(
        base,
        name="experts",
        linears=base.linears + tuple(each),
        rules=_RULES | {f"mlp.{e}": "block" for e in range(count)},
        inside=(*base.inside, Carrier("mlp.gate.weight", 1, "residual")),
        gathers=False,  # the router reads what the experts read
    )


def opt(config: Any) -> Family:
    """OPT: LayerNorms, biases, learned positions; the 350m normalises afterwards and projects its embedding."""
    before, root = config.do_layer_norm_before, "model.decoder"
    projected = config.word_embed_proj_dim != config.hidden_size
    embedding = (
        (Carrier(f"{root}.project_in.weight", 0, "residual"), Carrier(f"{root}.project_out.weight", 1, "residual"))
        if projected
        else (Carrier(f"{root}.embed_tokens.weight", 1, "residual"), Carrier("lm_head.weight", 1, "residual"))
    )
    # Without a norm in front q/k/v and fc1 still read at different places.
    attention, mlp = "self_attn_layer_norm" if before else "", "final_layer_norm" if before else "self_attn_layer_norm"
    return Family(
        name="opt",
        blocks=f"{root}.layers",
        linears=(
            Linear("self_attn.q_proj", "residual", "query", attention),
            Linear("self_attn.k_proj", "residual", "key", attention),
            Linear("self_attn.v_proj", "residual", "value", attention),
            Linear("self_attn.out_proj", "value", "residual"),
            Linear("fc1", "residual", "mlp", mlp),
            Linear("fc2", "mlp", "residual"),
        ),
        rules=_RULES,
        heads=_heads(config),
        inside=_norms(["self_attn_layer_norm", "final_layer_norm"], bias=True),
        outside=(
            *embedding,
            Carrier(f"{root}.embed_positions.weight", 1, "residual"),
            *_norms([f"{root}.final_layer_norm"], bias=True),
        ),
        gathers=before,
    )


def gpt2(config: Any) -> Family:
    """GPT-2: transposed weights, fused q/k/v, learned positions."""
    return Family(
        name="gpt2",
        blocks="transformer.h",
        linears=(
            Linear("attn.c_attn", "residual", _QKV, "ln_1", transposed=True),
            Linear("attn.c_proj", "value", "residual", transposed=True),
            Linear("mlp.c_fc", "residual", "mlp", "ln_2", transposed=True),
            Linear("mlp.c_proj", "mlp", "residual", transposed=True),
        ),
        rules=_RULES,
        heads=_heads(config),
        inside=_norms(["ln_1", "ln_2"], bias=True),
        outside=(
            *_ends("transformer.wte", "transformer.ln_f", bias=True),
            Carrier("transformer.wpe.weight", 1, "residual"),
        ),
    )


def _fused_by_head(
    config: Any, name: str, root: str, attention: str, norms: tuple[str, str], ends: tuple[Carrier, ...]
) -> Family:
    return Family(
        name=name,
        blocks=root,
        linears=(
            Linear(f"{attention}.query_key_value", "residual", _QKV, norms[0], fused="by head"),
            Linear(f"{attention}.dense", "value", "residual"),
            Linear("mlp.dense_h_to_4h", "residual", "mlp", norms[1]),
            Linear("mlp.dense_4h_to_h", "mlp", "residual"),
        ),
        rules=_RULES,
        heads=_heads(config),
        inside=_norms(dict.fromkeys(norms), bias=True),
        outside=ends,
    )


def gpt_neox(config: Any) -> Family:
    """GPT-NeoX and Pythia: q/k/v fused head by head."""
    norms = ("input_layernorm", "post_attention_layernorm")
    ends = _ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm", bias=True)
    return _fused_by_head(config, "gpt_neox", "gpt_neox.layers", "attention", norms, ends)


def bloom(config: Any) -> Family:
    """BLOOM: q/k/v fused head by head, a norm after the embedding, no positions."""
    norms = ("input_layernorm", "post_attention_layernorm")
    ends = (
        *_ends("transformer.word_embeddings", "transformer.ln_f", bias=True),
        *_norms(["transformer.word_embeddings_layernorm"], bias=True),
    )
    family = _fused_by_head(config, "bloom", "transformer.h", "self_attention", norms, ends)
    return replace(family, gathers=not config.apply_residual_connection_post_layernorm)


def falcon(config: Any) -> Family:
    """Falcon: q/k/v fused by key-value head; attention and MLP side by side, with one norm for both or one each."""
    two = config.new_decoder_architecture and getattr(config, "num_ln_in_parallel_attn", 2) != 1
    one_each = ("ln_attn", "ln_mlp") if two else ("input_layernorm", "post_attention_layernorm")
    norms = one_each if two or not config.parallel_attn else ("input_layernorm", "input_layernorm")
    ends = _ends("transformer.word_embeddings", "transformer.ln_f", bias=True)
    family = _fused_by_head(config, "falcon", "transformer.h", "self_attention", norms, ends)
    queries, _, width = family.heads
    shared = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else queries
    return replace(family, heads=(queries, shared, width))


# By the ``model_type`` of a Hugging Face config: a family may depend on what else the config says.
# SmolLM and SmolLM2 call themselves llama.
FAMILIES: dict[str, Callable[[Any], Family]] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "gemma2": gemma,
    "gemma3_text": gemma,
    "phi3": phi3,
    "mixtral": experts,
    "qwen3_moe": experts,
    "opt": opt,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "bloom": bloom,
    "falcon": falcon,
}
