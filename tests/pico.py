"""Tiny random models, one per architecture, that are built in milliseconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

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


# Families that Secateur knows by name.
KNOWN = {
    "llama-mha": lambda: _sized(LlamaConfig, num_key_value_heads=4),
    "llama-gqa-tied": lambda: _sized(LlamaConfig, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-biased": lambda: _sized(LlamaConfig, num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "mistral": lambda: _sized(MistralConfig, num_key_value_heads=2, sliding_window=16),
    "qwen2": lambda: _sized(Qwen2Config, num_key_value_heads=2),
    "qwen3": lambda: _sized(Qwen3Config, num_key_value_heads=2, head_dim=8),
}
# Decoders that it walks: one that calls its blocks by keyword, one whose blocks differ, one whose blocks return tuples.
WALKED = {
    "gpt-neox": lambda: _sized(GPTNeoXConfig),
    "lfm2": lambda: _sized(
        Lfm2Config, num_key_value_heads=2, block_multiple_of=8, layer_types=["conv", "full_attention", "conv"]
    ),
    "bloom": lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4),
}
ALL = KNOWN | WALKED


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model whose weights, biases and norms are all far from trivial."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(ALL[name](), dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model.to(dtype).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write a model and its tokenizer as a Hugging Face folder."""
    build(name, seed, dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokens(samples: int = 4, length: int = 24, seed: int = 1) -> torch.Tensor:
    """Random token ids ``(samples, length)``."""
    return torch.randint(VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))
