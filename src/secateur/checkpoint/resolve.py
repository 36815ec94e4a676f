"""Turn what a user calls a model into a folder of safetensors."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
)

from secateur.checkpoint.layout import COMPANIONS
from secateur.checkpoint.source import Source, empty_model, naming, read_config
from secateur.errors import InputError


@contextmanager
def local_folder(model: str, scratch: Path | None = None) -> Iterator[Path]:
    """Turn what a user calls a model into a folder of safetensors, for as long as the context is open.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        scratch: where a GGUF file or a checkpoint of an old layout is unpacked for the time being.
    Raises:
        InputError: when there is nothing there, or nothing that can be read safely.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        folder, gguf_file = path.parent, path.name
    else:
        folder, gguf_file = path if path.exists() else _download(model), None
        if Source(folder).fits_model():
            yield folder
            return
    with tempfile.TemporaryDirectory(prefix=".secateur-", dir=scratch) as name:
        converted = Path(name)
        convert(folder, converted, gguf_file)
        if not Source(converted).fits_model():
            raise InputError(
                f"{model} keeps its weights in a layout that is not supported: transformers stores them otherwise than "
                "it holds them (stacked experts, for instance)"
            )
        yield converted


def outline(model: str) -> PreTrainedModel:
    """The model that a user calls so, in bfloat16 and without its weights, which are neither fetched nor read.

    Args:
        model: a hub name, a folder that may hold nothing but its config, or a ``.gguf`` file.
    Raises:
        InputError: when there is nothing there, or transformers has no model of this config by itself.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        with naming(path):
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    else:
        config, _, _ = read_config(path if path.exists() else _download(model, ["config.json"]))
    with naming(path):
        skeleton = empty_model(config, torch.bfloat16)
    skeleton.tie_weights()  # a weight that serves twice is there once
    return skeleton


def _download(model: str, files: Sequence[str] = (*COMPANIONS, "model*.safetensors")) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=list(files)))
    except HFValidationError:
        raise InputError(f"there is no folder or file {model}, and it cannot be a hub name") from None
    except Exception as error:  # the hub's client raises whatever its transport raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"there is no folder {model}, and the hub does not give a model of that name ({reason}); "
            "check the name and the connection, or give a local folder or .gguf file"
        ) from error


def convert(folder: Path, to: Path, gguf_file: str | None = None) -> None:
    """Load a model the way transformers does and write it to ``to`` in today's layout.

    Args:
        gguf_file: the name of a GGUF file in ``folder`` to read; its weights become plain floats.
    """
    where = {"gguf_file": gguf_file} if gguf_file else {}
    as_floats = {"quantization_config": GgufConfig(dequantize=True)} if gguf_file else {}
    model = load_whole(folder, dtype="auto", **where, **as_floats)
    with naming(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **where)
    model.hf_quantizer = None  # a model that came from GGUF still counts as quantized, and would not be saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def load_whole(folder: Path, **options: Any) -> PreTrainedModel:
    """What transformers makes of a model folder: from safetensors only, with no code from it, and no weight made up.

    Args:
        options: further ones of ``from_pretrained``.

    Raises:
        InputError: when it cannot be loaded, or lacks weights.
    """
    options = {"trust_remote_code": False, "use_safetensors": "gguf_file" not in options or None} | options
    with naming(folder / options.get("gguf_file", "")):
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    if absent := sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}):
        raise InputError(f"{folder} lacks weights of its model, or has them in another shape: {', '.join(absent[:3])}")
    return model
