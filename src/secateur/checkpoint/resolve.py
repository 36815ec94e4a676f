"""Turn what a user calls a model into a folder of safetensors."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GgufConfig, PreTrainedModel

from secateur.checkpoint.checks import check, check_size, is_passed_over
from secateur.checkpoint.config import auto_class, build_config, check_depth, described_model, read_written
from secateur.checkpoint.converted import converted
from secateur.checkpoint.durable import scratch_folder
from secateur.checkpoint.gguf import read_contents
from secateur.checkpoint.layout import ADAPTERS, CARD, COMPANIONS, INDEX, MANIFEST, ORDERS, TERMS, WEIGHTS
from secateur.checkpoint.source import Source
from secateur.errors import InputError, install, naming, reason
from secateur.models.gather import ORDER

# For a model of which there is nothing but its config.
FEW_TENSORS, MOST_WEIGHTS = 10_000, 100 * 10**12
# The largest vocabularies have a quarter of a million tokens.
MOST_TOKENS = 10 * 10**6

_TERMS = tuple(f"{written}*" for begin in TERMS for written in (begin, begin.upper(), begin.capitalize()))
_FILES = (*COMPANIONS, CARD, MANIFEST, ORDERS, *_TERMS, *ADAPTERS[:1], WEIGHTS, INDEX, "model-*.safetensors")


@contextmanager
def local_folder(model: str, scratch: Path | None = None) -> Iterator[Path]:
    """Turn what a user calls a model into a folder of safetensors, checked, for as long as the context is open.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        scratch: where a checkpoint of an old layout is unpacked for the time being, and a GGUF file that the cache has
            no room for.
    Raises:
        InputError: when there is nothing there, or nothing that can be read safely; see
            :func:`~secateur.checkpoint.checks.check`.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        _check_gguf(path)
        size = 4 * read_contents(path).weights

        def make(to: Path) -> None:
            _convert_checked(model, path.parent, to, path.name)

        with converted(path, size, make, scratch) as folder:
            check(Source(folder))  # in the cache it may have come to harm
            yield folder
        return
    folder = path if path.exists() else _download(model)
    if check(Source(folder)):
        yield folder
        return
    with scratch_folder(scratch) as plain:
        _convert_checked(model, folder, plain)
        yield plain


def _convert_checked(model: str, folder: Path, to: Path, gguf_file: str | None = None) -> None:
    """As :func:`convert` does; raises InputError if the result is of no use, under the name of ``model``."""
    convert(folder, to, gguf_file)
    if not check(Source(to)):
        raise InputError(
            f"{model} cannot be read in parts: transformers keeps the weights of such a model "
            f"({Source(to).config.model_type}) in files under other names than in memory"
        )


def outline(model: str) -> PreTrainedModel:
    """The model that a user calls so, without its weights, which are neither fetched nor read: all on the meta device.

    Its config says in which dtype they are stored, its parameters do not.

    Args:
        model: a hub name, a folder that may hold nothing but its config, or a ``.gguf`` file.
    Raises:
        InputError: when there is nothing there, or transformers has no model of this config by itself.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        return _check_gguf(path)
    folder = path if path.exists() else _download(model, ["config.json"])
    written = read_written(folder)
    config = build_config(written)
    described = described_model(config, written.path, FEW_TENSORS, 2 * MOST_WEIGHTS)
    described.config.dtype = config.dtype  # as the weights are stored, whatever the model was built in
    if (weights := sum(parameter.numel() for parameter in described.parameters())) > MOST_WEIGHTS:
        raise InputError(f"{written.path} describes a model of {weights:,} weights: its sizes make no sense")
    with naming(written.path):
        tokens = described.get_input_embeddings().weight.shape[0]
    if tokens > MOST_TOKENS:
        raise InputError(f"{written.path} describes a vocabulary of {tokens:,} tokens: its sizes make no sense")
    return described


def check_there(model: str) -> None:
    """Check what a user calls a model as far as that takes no time: of one on the hub, that there is one.

    Raises:
        InputError: as :func:`local_folder` does.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        _check_gguf(path)
    elif path.exists():
        check(Source(path))
    else:
        read_written(_download(model, ["config.json"]))


def _check_gguf(path: Path) -> PreTrainedModel:
    """The model in a GGUF file, without its weights, compared with what the file holds."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    contents = read_contents(path)
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{path} cannot be read without the package gguf: {install('gguf')}")
    with naming(path):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    check_depth(config.to_dict(), contents.tensors, path)
    model = described_model(config, path, contents.tensors, 2 * contents.weights)
    check_size(model, contents.weights, path)
    return model


def _download(model: str, files: Sequence[str] = _FILES) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=list(files)))
    except HFValidationError:
        raise InputError(f"there is no folder or file {model}, and it cannot be a hub name") from None
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise InputError(
            f"there is no folder {model}, and the hub does not give a model of that name ({reason(error)}); "
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
    mode = (to / "config.json").stat().st_mode
    for path in to.glob("*.safetensors"):
        path.chmod(mode)  # safetensors lets nobody else read what it writes


def load_whole(folder: Path, **options: Any) -> PreTrainedModel:
    """What transformers makes of a model folder: from safetensors only, with no code from it, and no weight made up.

    Args:
        options: further ones of ``from_pretrained``.

    Raises:
        InputError: when it cannot be loaded, or lacks weights.
    """
    options = {"trust_remote_code": False, "use_safetensors": "gguf_file" not in options or None} | options
    with naming(folder / options.get("gguf_file", "")):
        said = {"gguf_file": options.get("gguf_file"), "trust_remote_code": False}
        config = options.get("config") or AutoConfig.from_pretrained(folder, **said)
        model, info = auto_class(config).from_pretrained(folder, output_loading_info=True, **options)
    if absent := sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}):
        raise InputError(f"{folder} lacks weights of its model, or has them in another shape: {', '.join(absent[:3])}")
    if more := sorted(
        name for name in info["unexpected_keys"] if not (name.endswith(ORDER) or is_passed_over(name, model))
    ):
        raise InputError(f"{folder} holds tensors that its model does not have: {', '.join(more[:3])}")
    return model
