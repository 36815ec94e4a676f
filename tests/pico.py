"""Tiny random models, one per architecture, that are built in milliseconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    BloomConfig,
    CLIPVisionConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Glm4MoeConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeConfig,
    HunYuanMoEV1Config,
    JambaConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlavaConfig,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    NemotronHConfig,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhimoeConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    Qwen3VLConfig,
    RwkvConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    Zamba2Config,
)

from secateur.checkpoint import Source
from secateur.checkpoint.config import auto_class
from secateur.models.blocks import blocks_of, family_of

VOCABULARY = 256
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def _sized(kind: type[PreTrainedConfig], **more: object) -> PreTrainedConfig:
    return kind(**_SIZES | more)


_GPT = {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 32, "n_layer": 3, "n_head": 4}
_OPT = {"ffn_dim": 64, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
_MOE = {"num_key_value_heads": 2, "num_experts_per_tok": 2}

# Models of the families that Secateur knows by name.
KNOWN = {
    "llama-mha": lambda: _sized(LlamaConfig, num_key_value_heads=4),
    "llama-gqa-tied": lambda: _sized(LlamaConfig, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-biased": lambda: _sized(LlamaConfig, num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "mistral": lambda: _sized(MistralConfig, num_key_value_heads=2, sliding_window=16),
    "qwen2": lambda: _sized(Qwen2Config, num_key_value_heads=2),
    "qwen3": lambda: _sized(Qwen3Config, num_key_value_heads=2, head_dim=8),
    "gemma2": lambda: _sized(Gemma2Config, num_key_value_heads=2, head_dim=8, sliding_window=16),
    "gemma3": lambda: _sized(Gemma3TextConfig, num_key_value_heads=2, head_dim=8, sliding_window=16),
    "phi3": lambda: _sized(Phi3Config, num_key_value_heads=2, pad_token_id=0, bos_token_id=0, eos_token_id=0),
    "opt": lambda: _sized(OPTConfig, **_OPT),
    "opt-350m": lambda: _sized(OPTConfig, **_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gpt2": lambda: GPT2Config(**_GPT, bos_token_id=0, eos_token_id=0),
    "gpt-neox": lambda: _sized(GPTNeoXConfig),
    "gpt-neox-serial": lambda: _sized(GPTNeoXConfig, use_parallel_residual=False),
    "bloom": lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4),
    "falcon-7b": lambda: _sized(FalconConfig, ffn_hidden_size=128, multi_query=True, parallel_attn=True),
    "falcon-40b": lambda: _sized(FalconConfig, ffn_hidden_size=128, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-rw": lambda: _sized(
        FalconConfig, ffn_hidden_size=128, multi_query=False, parallel_attn=False, bias=True, alibi=True
    ),
    "mixtral": lambda: _sized(MixtralConfig, **_MOE, num_local_experts=4),
    "qwen3-moe": lambda: _sized(
        Qwen3MoeConfig, **_MOE, num_experts=4, moe_intermediate_size=16, head_dim=8, mlp_only_layers=[1]
    ),
}
# Decoders that it walks: blocks that differ, and attention that no family describes.
WALKED = {
    "lfm2": lambda: _sized(
        Lfm2Config, num_key_value_heads=2, block_multiple_of=8, layer_types=["conv", "full_attention", "conv"]
    ),
    "gpt-j": lambda: GPTJConfig(**_GPT, rotary_dim=4, bos_token_id=0, eos_token_id=0),
}
ALL = KNOWN | WALKED

_FEW = {
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
_BESIDE = {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
_LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 12, "v_head_dim": 8,
}  # fmt: skip


def _expert(kind: type[PreTrainedConfig], **more: object) -> PreTrainedConfig:
    return _sized(kind, **_FEW | more)


# More models with experts, of which only those tests know that are about experts.
EXPERTS = {
    "olmoe": lambda: _expert(OlmoeConfig, num_experts=4, clip_qkv=1.0),
    "qwen2-moe": lambda: _expert(
        Qwen2MoeConfig, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=24
    ),
    "glm4-moe": lambda: _expert(Glm4MoeConfig, **_BESIDE, head_dim=8, use_qk_norm=True, attention_bias=True),
    "deepseek-v2": lambda: _expert(DeepseekV2Config, **_BESIDE | _LATENT, q_lora_rank=None),
    "deepseek-v3": lambda: _expert(DeepseekV3Config, **_BESIDE | _LATENT, q_lora_rank=24, n_group=2, topk_group=1),
    "gpt-oss": lambda: _expert(GptOssConfig, num_local_experts=4, head_dim=8, sliding_window=16, rope_parameters=None),
    "llama4": lambda: _expert(
        Llama4TextConfig, num_local_experts=4, head_dim=8, intermediate_size_mlp=48, interleave_moe_layer_step=2
    ),
    "granite-moe": lambda: _expert(GraniteMoeConfig, num_local_experts=4, residual_multiplier=0.5),
    "phimoe": lambda: _expert(PhimoeConfig, num_local_experts=4, attention_bias=True, lm_head_bias=True),
    "ernie4.5-moe": lambda: _expert(
        Ernie4_5_MoeConfig, moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_num_shared_experts=1
    ),
    "hunyuan-moe": lambda: _expert(HunYuanMoEV1Config, num_experts=4, moe_topk=2, head_dim=8),
    "qwen3-next": lambda: _expert(
        Qwen3NextConfig,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=4,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "jamba": lambda: _expert(
        JambaConfig,
        num_experts=4,
        mamba_d_state=4,
        mamba_dt_rank=8,
        attn_layer_period=2,
        attn_layer_offset=1,
    ),
    "minimax": lambda: _expert(
        MiniMaxConfig, num_local_experts=4, head_dim=8, block_size=8, layer_types=["linear_attention", "full_attention"]
    ),
    "lfm2-moe": lambda: _expert(
        Lfm2MoeConfig,
        num_experts=4,
        moe_intermediate_size=16,
        num_dense_layers=1,
        layer_types=["conv", "full_attention"],
    ),
}
# Those of which more is known than that experts have spaces of their own.
EXPERTS_KNOWN = [*EXPERTS][: [*EXPERTS].index("qwen3-next")]
# Known ones in which some of what reads the residual space has no norm, or no norm of its own, before it.
UNGATHERED = ("opt-350m", "mixtral", "qwen3-moe")

_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION |= {"image_size": 8, "patch_size": 4}
_QWEN_VISION = {"hidden_size": 16, "intermediate_size": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
_QWEN_VISION |= {"out_hidden_size": 32, "temporal_patch_size": 2, "spatial_merge_size": 2}
# What stands in the text for a part of an image, and what comes before and after an image.
IMAGE, VIDEO, BEGIN, END = 255, 254, 253, 252
_QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": BEGIN,
    "vision_end_token_id": END,
}


def _text(head: int = 8, **more: object) -> dict[str, object]:
    return _SIZES | _ENDS | {"num_key_value_heads": 2, "head_dim": head} | more


def _rotated(sections: list[int], **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **more}}


# Models that see images; their language parts are known.
SEEING = {
    "llava": lambda: LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION), text_config=LlamaConfig(**_text()), image_token_index=IMAGE
    ),
    "mistral3": lambda: Mistral3Config(
        vision_config=PixtralVisionConfig(**_VISION, head_dim=8),
        text_config=MistralConfig(**_text()),
        image_token_index=IMAGE,
        spatial_merge_size=1,
    ),
    "qwen2.5-vl": lambda: Qwen2_5_VLConfig(
        vision_config=_QWEN_VISION | {"window_size": 8, "fullatt_block_indexes": [1]},
        text_config=_text() | _rotated([2, 1, 1]),
        **_QWEN_IDS,
    ),
    "qwen3-vl": lambda: Qwen3VLConfig(
        vision_config=_QWEN_VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        text_config=_text() | _rotated([2, 1, 1]),
        **_QWEN_IDS,
    ),
    "gemma3-vl": lambda: Gemma3Config(
        vision_config=SiglipVisionConfig(**_VISION),
        text_config=Gemma3TextConfig(**_text(sliding_window=16)),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
    ),
    "smolvlm": lambda: SmolVLMConfig(
        vision_config=_VISION, text_config=LlamaConfig(**_text()), image_token_id=IMAGE, scale_factor=2
    ),
    "qwen3.5": lambda: Qwen3_5Config(
        vision_config=_QWEN_VISION | {"num_position_embeddings": 16},
        text_config=_text(
            16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        )
        | _rotated([2, 1, 1], partial_rotary_factor=0.5),
        **_QWEN_IDS,
    ),
}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_STATES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "pad_token_id": 0}
# Models with states instead of attention, or in some blocks.
RECURRENT = {
    "mamba": lambda: MambaConfig(**_STATES, **_ENDS, time_step_rank=4),
    "mamba2": lambda: Mamba2Config(**_STATES, **_ENDS, num_heads=4, head_dim=16, n_groups=2, chunk_size=8),
    "zamba2": lambda: Zamba2Config(
        **_text() | {"num_hidden_layers": 4, "attention_head_dim": 16, "pad_token_id": 0},
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        num_mem_blocks=1,
        adapter_rank=4,
        mamba_d_state=8,
        n_mamba_heads=4,
        mamba_headdim=16,
        mamba_ngroups=1,
        chunk_size=8,
    ),
    "nemotron-h": lambda: NemotronHConfig(
        **_text(),
        layer_types=["mamba", "attention", "mlp"],
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=8,
    ),
    "falcon-h1": lambda: FalconH1Config(**_text(), **_MAMBA, mamba_d_ssm=64),
    "rwkv": lambda: RwkvConfig(
        **_ENDS,
        vocab_size=VOCABULARY,
        context_length=128,
        hidden_size=32,
        attention_hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        rescale_every=1,
    ),
}
EVERY = ALL | EXPERTS | SEEING | RECURRENT


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model whose weights, biases and norms are all far from trivial."""
    torch.manual_seed(seed)
    config = EVERY[name]()
    model = auto_class(config).from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model.to(dtype).eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    """What a model takes: text, and an image if it sees."""
    ids = tokens(2)
    if name not in SEEING:
        return {"input_ids": ids}
    ids %= END
    if name.startswith("qwen"):  # patches of 4 x 4 x 2 frames x 3 colours, 2 x 2 of which are one token
        ids[:, 3:5] = torch.tensor([BEGIN, IMAGE])
        kinds = (ids == IMAGE).int()
        patches = torch.randn(2 * 4, 96, generator=torch.Generator().manual_seed(2))
        grid = torch.tensor([[1, 2, 2]] * 2)
        return {"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    ids[:, 3 : 3 + {"smolvlm": 1}.get(name, 4)] = IMAGE
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "pixel_values": pixels[:, None] if name == "smolvlm" else pixels} | (
        {"image_sizes": torch.tensor([[8, 8]] * 2)} if name == "mistral3" else {}
    )


def tokenizer(bos: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, one of which may be the token that it puts before any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, **{"bos_token": bos, "add_bos_token": True} if bos else {})


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write a model and its tokenizer as a Hugging Face folder."""
    build(name, seed, dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokens(samples: int = 4, length: int = 24, seed: int = 1) -> torch.Tensor:
    """Random token ids ``(samples, length)``."""
    return torch.randint(VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))


def linears(folder: Path) -> dict[str, torch.Tensor]:
    """The weight of every prunable linear of a written folder, ``(O, I)``, by its full name."""
    source = Source(folder)
    skeleton = source.skeleton(torch.float32)
    tensors = source.read([name for name in source.names() if not name.endswith(".order")])
    blocks = blocks_of(skeleton, family_of(skeleton))
    return {block.full_name(x): block.stored(x, tensors) for block in blocks for x in block.linears}
