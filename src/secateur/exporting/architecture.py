"""What GGUF calls a model of LLaMA's family: its architecture, its sizes, and the order of its rotary channels.

transformers turns channel i of a head against channel i + d/2. llama.cpp does so in Qwen's architectures; in ``llama``
it turns channel 2i against channel 2i + 1. So there the rows of queries and keys are stored in turns, one of each half.

Sliding windows are unknown to these architectures. Within one window nothing slides: a file promises no longer context.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md has the keys.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from secateur.errors import InputError, Notice


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp runs models of a ``model_type``.

    Attributes:
        name: what GGUF calls it.
        pairs: whether its rotary embedding turns channels 2i and 2i + 1.
        divisors: whether it reads divisors of the rotary frequencies.
    """

    name: str
    pairs: bool = False
    divisors: bool = False


_LLAMA = Architecture("llama", pairs=True, divisors=True)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """How llama.cpp runs a model of ``config``.

    Raises:
        InputError: when it does not, or it would compute something else than transformers.
    """
    if (found := ARCHITECTURES.get(config.model_type)) is None:
        raise InputError(
            f"models of type {config.model_type} are not exported to GGUF, only {', '.join(ARCHITECTURES)}; "
            "llama.cpp's own convert_hf_to_gguf.py knows more of them"
        )
    rope = config.rope_parameters
    kind = rope["rope_type"]
    wrong = {
        f"the activation {config.hidden_act}": config.hidden_act != "silu",
        f"rotary scaling of the type {kind}": kind not in ("default", "linear", *["llama3"] * found.divisors),
        "heads that are turned in part": rope.get("partial_rotary_factor", 1) != 1,
        "biases": config.model_type == "qwen3" and config.attention_bias,
    }
    if refused := [what for what, is_so in wrong.items() if is_so]:
        raise InputError(f"this {config.model_type} has {refused[0]}, which llama.cpp's {found.name} does not have")
    return found


def sizes_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The sizes of a model, by the keys that follow its architecture's name in a GGUF file."""
    rope, head = config.rope_parameters, head_size(config)
    context = config.max_position_embeddings
    if (window := getattr(config, "sliding_window", None)) and window < context:
        warnings.warn(
            f"attention slides over {window:,} of {context:,} tokens, and llama.cpp's does not: the file says that the "
            f"context is {window:,} tokens, within which both are the same",
            Notice,
            stacklevel=3,
        )
        context = window
    scaling: dict[str, Any] = {}
    if rope["rope_type"] == "linear":
        scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    sizes = {
        "block_count": config.num_hidden_layers,
        "context_length": context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
        **scaling,
    }
    for key, value in sizes.items():
        if isinstance(value, int) and not 0 < value < 1 << 32:
            raise InputError(f"no GGUF file can say that {key} is {value}")
    return sizes


def head_size(config: PreTrainedConfig) -> int:
    """The channels of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def frequency_divisors(config: PreTrainedConfig) -> Tensor | None:
    """What the rotary frequencies are divided by, float32 (head / 2,); None where they are as they were.

    They are taken from transformers' own frequencies of LLaMA 3.1, instead of computing these anew.
    """
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    head = head_size(config)
    plain = float(rope["rope_theta"]) ** -(torch.arange(0, head, 2).double() / head)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled.double()).float()


def in_pairs(rows: Tensor, heads: int) -> Tensor:
    """The rows (heads · d, …) of queries or keys, with those of both halves of each head in turns."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
