"""Architectures as data: per family, a function from a Hugging Face config to a table (``spaces.py`` has its words)."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from secateur.models.spaces import Carrier, Family, Heads, Linear, Rule


def _heads(config: Any) -> Heads:
    queries = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or queries
    return queries, keys, getattr(config, "head_dim", None) or config.hidden_size // queries


def _norms(names: Iterable[str], bias: bool = False) -> tuple[Carrier, ...]:
    """Norms of the residual space."""
    parameters = ("weight", "bias") if bias else ("weight",)
    return tuple(Carrier(f"{name}.{parameter}", 0, "residual") for name in names for parameter in parameters)


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
_HEADS = {"query": "num_attention_heads", "key": "num_key_value_heads"}


def _gated(norm: str, path: str = "mlp") -> tuple[Linear, ...]:
    return (
        Linear(f"{path}.gate_proj", "residual", path, norm),
        Linear(f"{path}.up_proj", "residual", path, norm),
        Linear(f"{path}.down_proj", path, "residual"),
    )


def llama(config: Any) -> Family:
    """LLaMA, Mistral, Qwen2, Qwen3, SmolLM, and the language parts of Qwen2.5-VL and Qwen3-VL."""
    return Family(
        name="llama",
        blocks="model.layers",
        linears=_ATTENTION + _gated("post_attention_layernorm"),
        rules=_RULES,
        heads=_heads(config),
        sizes=_HEADS | {"mlp": "intermediate_size"},
        inside=_norms(["input_layernorm", "post_attention_layernorm"]),
        outside=_ends("model.embed_tokens", "model.norm"),
        scaled_by={"value": ("self_attn.v_proj", 0), "mlp": ("mlp.up_proj", 0)},
    )


def gemma(config: Any) -> Family:
    """Gemma 2 and 3: norms after attention and MLP as well."""
    sandwich = ["post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    return replace(
        llama(config),
        name="gemma",
        linears=_ATTENTION + _gated("pre_feedforward_layernorm"),
        inside=_norms(["input_layernorm", *sandwich]),
        unit_offset=True,
    )


def qwen3_5(config: Any) -> Family:
    """Qwen3.5: most blocks have a recurrent mixer (gated DeltaNet) for attention; both gate their heads' outputs."""
    base = llama(config)
    mixer = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    return replace(
        base,
        name="qwen3_5",
        linears=(
            *(Linear(f"linear_attn.{name}", "residual", norm="input_layernorm") for name in mixer),
            Linear("linear_attn.out_proj", writes="residual"),
            *base.linears,
        ),
        rules={"residual": "model", "mlp": "block"},  # the gates would have to follow the values
        sizes={"mlp": "intermediate_size"},
        unit_offset=True,
        scaled_by={"mlp": ("mlp.up_proj", 0)},
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
        scaled_by={"value": ("self_attn.qkv_proj", 2), "mlp": ("mlp.gate_up_proj", 1)},
    )


# Gated MLPs that a block has instead of experts, or beside them, and what says where tokens go or how much a shared
# expert counts. The experts themselves are found in the model (``experts.py``).
_BESIDE = ("mlp.shared_expert", "mlp.shared_experts", "mlp.shared_mlp", "feed_forward", "feed_forward.shared_expert")
_ROUTERS = (
    "mlp.gate",
    "mlp.router",
    "mlp.gate.wg",
    "mlp.shared_expert_gate",
    "block_sparse_moe.router",
    "feed_forward.router",
)
# Whose heads cannot be fewer: OLMoE normalises all of them together, GPT-OSS has a number of its own for each.
_UNITED = ("olmoe", "gpt_oss")


def experts(config: Any) -> Family:
    """Attention as in LLaMA, and experts: Mixtral, Qwen2-MoE and 3, OLMoE, GLM-4-MoE, GPT-OSS, Llama 4 and others."""
    base, norms = llama(config), ["input_layernorm", "post_attention_layernorm"]
    beside = [linear for path in _BESIDE for linear in _gated(norms[1], path)]
    return replace(
        base,
        name="experts",
        linears=(*base.linears, *beside),
        rules=_RULES | dict.fromkeys(_BESIDE, "block"),
        sizes={} if config.model_type in _UNITED else _HEADS,
        inside=(*_norms(norms, bias=True), *(Carrier(f"{name}.weight", 1, "residual") for name in _ROUTERS)),
        outside=_ends("model.embed_tokens", "model.norm", bias=True),
        scaled_by={} if getattr(config, "clip_qkv", None) else base.scaled_by,  # what is clipped follows nothing
    )


def latent(config: Any) -> Family:
    """DeepSeek-V2 and V3: multi-head latent attention, and experts.

    Queries and keys with values are written from a few channels each, through a norm. Keys have channels with and
    without positions, so that their heads are wider than those of values.
    """
    base = experts(config)
    attention = (
        Linear("self_attn.q_proj", "residual", None, "input_layernorm"),
        Linear("self_attn.q_a_proj", "residual", "latent", "input_layernorm"),
        Linear("self_attn.q_b_proj", "latent", None, "self_attn.q_a_layernorm"),
        Linear("self_attn.kv_a_proj_with_mqa", "residual", None, "input_layernorm"),
        Linear("self_attn.kv_b_proj", None, ("plain key", "value"), "self_attn.kv_a_layernorm", fused="by head"),
        Linear("self_attn.o_proj", "value", "residual"),
    )
    heads = config.num_attention_heads
    return replace(
        base,
        name="latent",
        linears=(*attention, *base.linears[len(_ATTENTION) :]),
        rules={**base.rules, "latent": "block"},
        heads=(heads, heads, config.v_head_dim),
        sizes={},
        inside=(*base.inside, Carrier("self_attn.q_a_layernorm.weight", 0, "latent")),
        scaled_by={},
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
    relu = {"mlp": ("fc1", 0)} if config.activation_function == "relu" else {}
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
        sizes={"mlp": "ffn_dim"},  # as many channels of heads as the residual space has, here and below
        inside=_norms(["self_attn_layer_norm", "final_layer_norm"], bias=True),
        outside=(
            *embedding,
            Carrier(f"{root}.embed_positions.weight", 1, "residual"),
            *_norms([f"{root}.final_layer_norm"], bias=True),
        ),
        pre_norm=before,
        scaled_by={"value": ("self_attn.v_proj", 0), **relu},
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
        sizes={"mlp": "n_inner"},
        inside=_norms(["ln_1", "ln_2"], bias=True),
        outside=(
            *_ends("transformer.wte", "transformer.ln_f", bias=True),
            Carrier("transformer.wpe.weight", 1, "residual"),
        ),
        scaled_by={"value": ("attn.c_attn", 2)},
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
        scaled_by={"value": (f"{attention}.query_key_value", 2)},
    )


def gpt_neox(config: Any) -> Family:
    """GPT-NeoX and Pythia: q/k/v fused head by head."""
    norms = ("input_layernorm", "post_attention_layernorm")
    ends = _ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm", bias=True)
    family = _fused_by_head(config, "gpt_neox", "gpt_neox.layers", "attention", norms, ends)
    return replace(family, sizes={"mlp": "intermediate_size"})


def bloom(config: Any) -> Family:
    """BLOOM: q/k/v fused head by head, a norm after the embedding, no positions."""
    norms = ("input_layernorm", "post_attention_layernorm")
    ends = (
        *_ends("transformer.word_embeddings", "transformer.ln_f", bias=True),
        *_norms(["transformer.word_embeddings_layernorm"], bias=True),
    )
    family = _fused_by_head(config, "bloom", "transformer.h", "self_attention", norms, ends)
    return replace(family, pre_norm=not config.apply_residual_connection_post_layernorm)


def falcon(config: Any) -> Family:
    """Falcon: q/k/v fused by key-value head; attention and MLP side by side, with one norm for both or one each."""
    two = config.new_decoder_architecture and getattr(config, "num_ln_in_parallel_attn", 2) != 1
    one_each = ("ln_attn", "ln_mlp") if two else ("input_layernorm", "post_attention_layernorm")
    norms = one_each if two or not config.parallel_attn else ("input_layernorm", "input_layernorm")
    ends = _ends("transformer.word_embeddings", "transformer.ln_f", bias=True)
    family = _fused_by_head(config, "falcon", "transformer.h", "self_attention", norms, ends)
    queries, _, width = family.heads
    shared = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else queries
    return replace(family, heads=(queries, shared, width), sizes={"mlp": "ffn_hidden_size"})


# By the ``model_type`` of a Hugging Face config: a family may depend on what else the config says.
# SmolLM and SmolLM2 call themselves llama.
FAMILIES: dict[str, Callable[[Any], Family]] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen2_5_vl_text": llama,
    "qwen3": llama,
    "qwen3_vl_text": llama,
    "qwen3_5_text": qwen3_5,
    "gemma2": gemma,
    "gemma3_text": gemma,
    "phi3": phi3,
    "mixtral": experts,
    "qwen2_moe": experts,
    "qwen3_moe": experts,
    "olmoe": experts,
    "glm4_moe": experts,
    "gpt_oss": experts,
    "llama4_text": experts,
    "granitemoe": experts,
    "phimoe": experts,
    "ernie4_5_moe": experts,
    "hunyuan_v1_moe": experts,
    "deepseek_v2": latent,
    "deepseek_v3": latent,
    "opt": opt,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "bloom": bloom,
    "falcon": falcon,
}


def _deepstack(config: Any) -> list[str]:
    """What Qwen3-VL adds to the hidden states behind its first blocks."""
    count = len(config.vision_config.deepstack_visual_indexes)
    return [f"model.visual.deepstack_merger_list.{i}.linear_fc2" for i in range(count)]


# The modules that write image features into the residual space of a language model, by the ``model_type`` of the whole.
PROJECTORS: dict[str, Callable[[Any], list[str]]] = {
    "gemma3": lambda _: ["model.multi_modal_projector"],
    "llava": lambda _: ["model.multi_modal_projector.linear_2"],
    "mistral3": lambda _: ["model.multi_modal_projector.linear_2"],
    "qwen2_5_vl": lambda _: ["model.visual.merger.mlp.2"],
    "qwen3_5": lambda _: ["model.visual.merger.linear_fc2"],
    "qwen3_vl": lambda config: ["model.visual.merger.linear_fc2", *_deepstack(config)],
    "smolvlm": lambda _: ["model.connector.modality_projection.proj"],
}
# What they call a matrix or vector along that space, and along which of its dimensions.
_PROJECTIONS = {"weight": 0, "bias": 0, "mm_input_projection_weight": 1}


def inside(family: Family, path: str, config: Any) -> Family:
    """The family of a language model that is part of another model: its names there, and who else writes its spaces.

    Args:
        family: of the language model by itself.
        path: of the language model, without its head.
        config: of the whole. Where nothing is known of its type, the residual space keeps its order.
    """
    root = family.blocks.partition(".")[0]

    def moved(name: str) -> str:
        return path + name.removeprefix(root) if name.startswith(f"{root}.") else name

    projectors = PROJECTORS.get(config.model_type)
    images = [
        Carrier(f"{module}.{parameter}", dim, "residual")
        for module in (projectors(config) if projectors else ())
        for parameter, dim in _PROJECTIONS.items()
    ]
    return replace(
        family,
        blocks=moved(family.blocks),
        rules={space: rule for space, rule in family.rules.items() if projectors or rule != "model"},
        outside=(*(replace(carrier, name=moved(carrier.name)) for carrier in family.outside), *images),
    )
