"""One import after which transformers loads what else only Secateur does: folders that are packed, or that gather.

    import secateur.transformers
    model = AutoModelForCausalLM.from_pretrained("packed")

Such folders have a ``model_type`` of their own, so that transformers by itself refuses them: a method of quantization
that it does not know it would skip, and go on with random weights. This import makes both types known, and lets
:func:`secateur.load` make their models, which are those of transformers with other linears or norms in them. So
pipelines, servers and whatever else loads by the Auto classes need to know nothing.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from secateur.checkpoint.layout import GATHER_TYPE, PACKED_TYPE
from secateur.errors import InputError
from secateur.runtime.loading import load

# Of ``from_pretrained``: what a model would be otherwise with, and what has no meaning here.
_REFUSED = ("quantization_config", "gguf_file", "state_dict", "tp_plan", "max_memory", "offload_folder", "subfolder")


class SecateurForCausalLM:
    """What configs of these folders name as their architecture; the models themselves are those of transformers."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        **options: Any,
    ) -> PreTrainedModel:
        """The model, in eval mode, as :func:`secateur.load` loads it.

        Args:
            pretrained_model_name_or_path: a folder.
            dtype: of what is not packed; as stored by default. ``torch_dtype`` is its older name.
            device_map: one device for all of it, by name or as ``{"": device}``; ``auto`` for a GPU if there is one.
            attn_implementation: as transformers has it.
            options: others of ``from_pretrained``. They say where a model comes from, or how to read plain weights.

        Raises:
            InputError: when the folder cannot be read, or an option would need weights that are not packed.
        """
        if given := [name for name in _REFUSED if options.get(name) is not None]:
            raise InputError(
                f"{pretrained_model_name_or_path} cannot be loaded with {', '.join(given)}: secateur unpack makes a "
                "plain folder of it, which can"
            )
        model = load(pretrained_model_name_or_path, dtype or torch_dtype or "auto", _one_device(device_map))
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        return model


def _one_device(device_map: Any) -> torch.device | str:
    if isinstance(device_map, dict):
        if len(devices := set(map(str, device_map.values()))) != 1:
            raise InputError(f"a model that is packed lies on one device, and device_map names {len(devices)}")
        device_map = devices.pop()
    if device_map is None:
        return "cpu"
    if isinstance(device_map, int) or str(device_map).isdecimal():
        return f"cuda:{device_map}"
    return str(device_map)


class PackedConfig(PreTrainedConfig):
    """The config of a packed folder; ``base`` is that of the model in it."""

    model_type = PACKED_TYPE
    base: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.architectures = [SecateurForCausalLM.__name__]


class GatherConfig(PackedConfig):
    """The config of a folder whose norms put channels into other orders; ``base`` is that of the model in it."""

    model_type = GATHER_TYPE


for config in (PackedConfig, GatherConfig):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, SecateurForCausalLM, exist_ok=True)
# Servers look an architecture up by its name. transformers makes its own module anew while it imports its first model,
# and others may hold either.
import_module("transformers.processing_utils")
for module in (transformers, sys.modules["transformers"]):
    setattr(module, SecateurForCausalLM.__name__, SecateurForCausalLM)
