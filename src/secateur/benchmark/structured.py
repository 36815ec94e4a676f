"""A dense model of half the width: what structured pruning at 50 % leaves, as far as speed goes.

The RIA paper's Table 9 times it beside 2:4. Speed asks for shapes only, so the weights are random.
"""

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from secateur.errors import InputError


def half_width(config: PreTrainedConfig) -> PreTrainedConfig:
    """``config`` with half the heads, query and key/value alike, and half the channels between up and down.

    A single key/value head stays.

    Raises:
        InputError: when the config does not say these, or they are odd.
    """
    halved = {}
    for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
        value = getattr(config, name, None)
        single = name == "num_key_value_heads" and value == 1
        if not isinstance(value, int) or (value % 2 and not single):
            raise InputError(f"a model of half the width needs an even {name}; its config has {value}")
        halved[name] = 1 if single else value // 2
    narrow = copy.deepcopy(config)
    narrow.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name, value in halved.items():
        setattr(narrow, name, value)
    return narrow


def half_width_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A random model of half the width of what ``config`` describes, in eval mode."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(half_width(config), dtype=dtype)
    return model.eval()
