"""The config of a model folder: what may be in it, and the model that it describes, without weights.

A config is a small file that may come from anyone, and it decides how much is built. So nothing is built before its
sizes are compared with the files that it lies beside.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from secateur.checkpoint.layout import GATHER_TYPE, PACKED_TYPE
from secateur.checkpoint.quantized import Scheme, read_scheme
from secateur.checkpoint.shards import FLOATS
from secateur.errors import InputError, naming
from secateur.files import member, read_object

# What configs call the number of their blocks: it is the only size that is paid for before a tensor has a shape.
_DEPTHS = {
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_encoder_layers", "num_decoder_layers",
    "encoder_layers", "decoder_layers", "depth",
}  # fmt: skip
# So many can be built at any rate. The deepest language models have less than half of it.
ANY_DEPTH = 256
# Other numbers of which transformers makes lists when it reads a config, and how long they may be.
_LISTS = {"num_labels", "first_k_dense_replace", "num_mtp_layers", "attention_types"}
ANY_LIST = 100_000
# So much may a model take besides its weights: tables of positions, and masks of attention.
ANY_BUFFERS = 64 << 20


@dataclass(frozen=True)
class Written:
    """What ``config.json`` says.

    Attributes:
        path: of the file.
        base: the config of the model as it was before Secateur wrapped it, or anybody quantized it.
        packed: whether its weights are packed.
        gathers: whether its norms need orders.
        scheme: how its weights are quantized, if they are.
    """

    path: Path
    base: dict[str, Any]
    packed: bool
    gathers: bool
    scheme: Scheme | None


def read_written(folder: Path) -> Written:
    """The config of the model in ``folder``, as it is written there.

    Raises:
        InputError: when there is none, or it asks for something that is not done: code, or weights that are quantized
            otherwise than :func:`~secateur.checkpoint.quantized.read_scheme` reads them.
    """
    if (path := member(folder, "config.json")) is None:
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    base = read_object(path)
    wrappers = set()
    for wrapper in (PACKED_TYPE, GATHER_TYPE):  # a packed folder may need orders as well
        if base.get("model_type") == wrapper:
            wrappers.add(wrapper)
            if not isinstance(inner := base.get("base"), dict):
                raise InputError(f"{path} is damaged: it has no base, the config of the model")
            base = inner
    if base.get("model_type") in (PACKED_TYPE, GATHER_TYPE):
        raise InputError(f"{path} is damaged: its base is the config of no model, but of another folder of this kind")
    _refuse_code(path, base)
    scheme = None
    if (quantization := base.get("quantization_config")) is not None:
        scheme = read_scheme(quantization, folder)
        base = {key: value for key, value in base.items() if key != "quantization_config"}
    return Written(path, base, PACKED_TYPE in wrappers, GATHER_TYPE in wrappers, scheme)


def _refuse_code(path: Path, base: dict[str, Any]) -> None:
    """Raise :class:`InputError` if a config names code, or other files than those that are read."""
    for key, value in _entries(base):
        if key.endswith("_implementation"):  # transformers would fetch a kernel from the hub, and run it
            names = value.values() if isinstance(value, dict) else [value]
            if any(name is not None and not re.fullmatch(r"[a-z0-9_]*", str(name)) for name in names):
                raise InputError(f"{path} asks for code from elsewhere ({key}: {value!r}), which is not run: remove it")
        if key == "transformers_weights":
            raise InputError(f"{path} names other files of weights ({value!r}), which are not read: remove it")
    kind = base.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    if base.get("auto_map"):
        raise InputError(
            f"{path} is of a model ({kind}) that needs Python from its folder, and Secateur runs none: only models "
            f"that are part of transformers can be read (here {transformers.__version__})"
        )
    raise InputError(f"{path}: transformers {transformers.__version__} has no model type {kind!r}")


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of a config, those of configs inside it as well."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield key, value
            yield from _entries(value)


def build_config(written: Written, tensors: int | None = None) -> PreTrainedConfig:
    """What transformers makes of a config; its depth is bounded by the number of ``tensors`` that the files hold.

    Raises:
        InputError: when it cannot be used.
    """
    check_depth(written.base, tensors, written.path)
    with naming(written.path, "cannot be read"):
        if written.gathers or written.packed or written.scheme:
            config = AutoConfig.for_model(**written.base)
        else:
            config = AutoConfig.from_pretrained(written.path.parent, trust_remote_code=False)
        context = context_of(config)
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not config.is_encoder_decoder
    if not sees and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{written.path} is of a {config.model_type} model, and transformers has no language model of that type, "
            "with images or without, that is a decoder alone (AutoModelForCausalLM, AutoModelForImageTextToText)"
        )
    if context is not None and (not isinstance(context, int) or context < 1):
        raise InputError(f"{written.path}: max_position_embeddings is {context!r}, and must be a number of tokens")
    if not isinstance(config.dtype, torch.dtype | None):
        raise InputError(f"{written.path}: dtype {config.dtype!r} is none that torch has")
    for dtype in {config.dtype, config.get_text_config().dtype} - {None}:
        if (name := str(dtype).removeprefix("torch.")) not in FLOATS:
            raise InputError(f"{written.path}: dtype is {name}; weights must be {', '.join(FLOATS)}")
    return config


def check_depth(config: dict[str, Any], tensors: int | None, path: Path) -> None:
    """Raise :class:`InputError` if the config at ``path`` asks for more blocks than the files hold ``tensors``.

    The same for other numbers that take memory before anything has a shape.
    """
    most = max(ANY_DEPTH, tensors or 0)
    for key, value in _entries(config):
        if key in _DEPTHS and isinstance(value, int | float) and value > most:
            held = f"the files hold {tensors} tensors" if tensors is not None else f"no model has more than {most}"
            raise InputError(f"{path} asks for {value} blocks ({key}), and {held}")
        if key in _LISTS and (largest := max(_numbers(value), default=0)) > ANY_LIST:
            raise InputError(f"{path}: {key} of {largest} makes no sense; no model has more than {ANY_LIST:,}")


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in nested lists, or a number itself."""
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float):
        yield value


def context_of(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model of ``config`` takes, or None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
    """The class by which transformers builds and loads a model of ``config``: whole, where it sees images as well."""
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether a model of ``config`` has a language model as a part."""
    return config.get_text_config() is not config


def empty_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The model of ``config`` with parameters on the meta device and buffers on ``device``, in eval mode."""
    # To spare float16 RWKV halves weights as it begins and hidden states between blocks; without, it computes the same.
    if getattr(config, "rescale_every", 0):
        config = deepcopy(config)
        config.rescale_every = 0
    with torch.device(device), init_empty_weights(include_buffers=False):
        # Only this way of running experts multiplies with each one's weight by itself.
        eager = {"experts_implementation": "eager"}
        model = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False, **eager)
    return model.eval()


def described_model(config: PreTrainedConfig, path: Path, tensors: int, weights: int) -> PreTrainedModel:
    """The model of ``config`` all on the meta device, whatever sizes it names.

    Args:
        path: what an error names.
        tensors: how many tensors the files hold. A model has hardly more parameters; one that has many times more
            is not built to its end.
        weights: bytes that the files hold. What a model computes when it is built, and keeps, is bounded by it.

    Raises:
        InputError: when transformers cannot build it, or it is out of proportion to the files.
    """
    with naming(path), torch.device("meta"), _at_most(1000 + 16 * tensors, path):
        model = auto_class(config).from_config(deepcopy(config), dtype=torch.float32, trust_remote_code=False)
        model.tie_weights()  # a weight that serves twice is there once
        buffers = sum(buffer.nbytes for buffer in model.buffers())
    if buffers > ANY_BUFFERS + weights:
        raise InputError(f"{path} asks for {buffers / 1e9:,.1f} GB besides the weights: its sizes make no sense")
    return model


@contextmanager
def _at_most(parameters: int, path: Path) -> Iterator[None]:
    """While open, modules get no more than so many parameters: the sizes in ``path`` are out of proportion."""
    genuine, number = nn.Module.register_parameter, 0

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        nonlocal number
        number += 1
        if number > parameters:
            raise InputError(f"{path} asks for more than {parameters:,} tensors, and the files hold far fewer")
        genuine(module, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = genuine  # type: ignore[method-assign]


def load_into(module: nn.Module, tensors: dict[str, Tensor], prefix: str, device: torch.device) -> None:
    """Give ``module`` real weights: ``tensors`` of names that begin with ``prefix``, in the module's own dtype.

    Weights that already have that dtype and device are shared, not copied.
    """
    dtypes = {name: p.dtype for name, p in (*module.named_parameters(), *module.named_buffers())}
    state = {
        (key := name.removeprefix(prefix)): tensor.to(device).to(dtypes.get(key, tensor.dtype))
        for name, tensor in tensors.items()
    }
    module.load_state_dict(state, strict=False, assign=True)
