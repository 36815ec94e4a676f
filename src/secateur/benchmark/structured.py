"""A smaller dense model to time beside a pruned one, as the RIA paper's Table 9 does beside 2:4.

Either one that was made by structured pruning, or what that leaves at 50 % as far as speed goes: a random model of
half the width, since speed asks for shapes only.
"""

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from secateur.checkpoint import context_of, local_folder
from secateur.errors import InputError
from secateur.runtime.loading import load


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


def shrunk_model(name: str | Path, config: PreTrainedConfig, device: torch.device) -> PreTrainedModel:
    """The model called ``name``, in bfloat16, which takes the same tokens as the one of ``config``.

    Raises:
        InputError: when it cannot be read, or takes others.
    """
    with local_folder(str(name)) as folder:
        model = load(folder, torch.bfloat16, device, "dense")
    for what, ours, theirs in (
        ("tokens in its vocabulary", config.get_text_config().vocab_size, model.config.get_text_config().vocab_size),
        ("tokens of context", context_of(config), context_of(model.config)),
    ):
        if ours != theirs:
            raise InputError(f"{name} has {theirs} {what}, and the model beside it {ours}: they are not of one kind")
    return model
