"""Models of LLaMA's family as GGUF files, which llama.cpp and all that is built on it run.

The library ``gguf`` writes the format and knows what tensors are called in it. What a file says is settled here: of the
model (:mod:`~secateur.exporting.architecture`), of its tokenizer (:mod:`~secateur.exporting.vocabulary`), and in which
types its weights are. Zeros are stored like other weights, and are zero in every type.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.checkpoint import Source, check_finite, check_unchanged, local_folder, outline
from secateur.checkpoint.durable import replacing
from secateur.checkpoint.steps import last_part
from secateur.errors import InputError, Notice, install, naming
from secateur.exporting.architecture import Architecture, architecture_of, frequency_divisors, in_pairs, sizes_of
from secateur.exporting.vocabulary import vocabulary_of
from secateur.progress import Progress

# What GGUF calls a file by the type of its matrices. Vectors are float32 in all of them.
TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_BLOCK = 32  # weights of a row that share a scale in q8_0
_VERSION = 2  # of ggml's types of few bits
_REFUSED = "cannot be exported to GGUF"


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        model: the model, as it was named.
        file: the file.
        type: of its matrices.
        tensors: their number.
    """

    model: str
    file: str
    type: str
    tensors: int


def export(
    model: str | Path, out: str | Path, *, to: str = "gguf", type: str | None = None, progress: Progress | None = None
) -> Export:
    """Write a model as one file for other programs.

    Packed and quantized weights are written as the dense ones that they stand for. One tensor at a time is in memory.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file: a LLaMA, Mistral, Qwen2 or Qwen3.
        out: the file to write, ``….gguf``. It must not be there yet.
        to: the format: ``gguf``.
        type: of matrices: ``f32``, ``f16``, ``bf16``, or ``q8_0``, 8 bits with a scale for each 32 columns of a row. By
            default that in which they are stored, so that nothing is rounded.
        progress: is told how far it is.

    Raises:
        InputError: when something given cannot be used, or llama.cpp would compute something else of it; nothing is
            written then.
    """
    out, progress = Path(out), progress or Progress()
    _check(out, to, type)
    config = outline(str(model)).config
    with naming(model, _REFUSED):
        architecture = architecture_of(config)  # before the weights are fetched
    with progress, local_folder(str(model), out.parent) as folder:
        check_unchanged(folder)
        source = Source(folder)
        if source.gathers:
            raise InputError(
                f"{model} was written with --fold gather, and only Secateur runs it: prune with --fold exact"
            )
        kind = type or next((name for name, dtype in _DTYPES.items() if dtype == source.precision), "f32")
        with naming(model, _REFUSED):
            entries = {
                "general.type": "model",
                "general.name": last_part(str(model)),
                "general.file_type": TYPES[kind],
                "general.quantization_version": _VERSION,
                **{f"{architecture.name}.{key}": value for key, value in sizes_of(source.config).items()},
                **vocabulary_of(source.tokenizer(), source.config),
            }
            tensors = _planned(source, architecture, kind)
        progress.start("export", len(tensors), "tensors")
        with replacing(out) as path:
            _write(path, architecture, entries, tensors, source, progress)
    return Export(str(model), str(out), kind, len(tensors))


def _check(out: Path, to: str, kind: str | None) -> None:
    if to == "compressed-tensors":
        raise InputError(
            "there is nothing to export to compressed-tensors: `secateur quantize` writes its format pack-quantized, "
            "which transformers and vLLM load as it is; its sparse formats were removed from the library, and from vLLM"
        )
    if to != "gguf":
        raise InputError(f"--to {to} is no format that is written: gguf is")
    if kind is not None and kind not in TYPES:
        raise InputError(f"--type {kind} is none that is written: give {', '.join(TYPES)}")
    if out.suffix != ".gguf":
        raise InputError(f"{out} must end in .gguf, by which programs know such files")
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists: delete it, or give another --out")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent}: make it, or give another --out")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"GGUF files are written by the package gguf: {install('gguf')}")


# ---------------------------------------------------------------- tensors


@dataclass(frozen=True)
class _Planned:
    """A tensor of the file.

    Attributes:
        name: in the file.
        own: in the model; None for the divisors of the rotary frequencies, which are no tensor there.
        shape: its shape.
        kind: its type.
    """

    name: str
    own: str | None
    shape: tuple[int, ...]
    kind: str

    @property
    def shape_in_bytes(self) -> tuple[int, ...]:
        """Its shape, with the bytes of a row in place of its columns."""
        import gguf

        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind.upper()]]
        return (*self.shape[:-1], self.shape[-1] // weights * size)


def _planned(source: Source, architecture: Architecture, kind: str) -> list[_Planned]:
    """All tensors of the file, in its order."""
    import gguf

    (known,) = [number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name]
    names = gguf.get_tensor_name_map(known, source.config.num_hidden_layers)
    parameters = dict(source.skeleton(torch.float32).named_parameters(remove_duplicate=False))
    held = {}
    for name in source.names():
        if name in parameters:  # older files hold tables as well, which are computed
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert stored is not None
            held[stored] = name
    if source.config.tie_word_embeddings and (head := held.pop("output.weight", None)):
        held.setdefault("token_embd.weight", head)
    planned = [_Planned(name, own, shape := source.shape(own), _kind(shape, kind)) for name, own in held.items()]
    if (divisors := frequency_divisors(source.config)) is not None:
        planned.append(_Planned("rope_freqs.weight", None, tuple(divisors.shape), "f32"))
    if others := [one for one in planned if len(one.shape) > 1 and one.kind != kind]:
        warnings.warn(
            f"{len(others)} matrices are written as bf16, since their rows are no multiple of {_BLOCK} weights",
            Notice,
            stacklevel=3,
        )
    return planned


def _kind(shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1:
        return "f32"
    return "bf16" if kind == "q8_0" and shape[-1] % _BLOCK else kind


def _read(one: _Planned, source: Source, architecture: Architecture) -> Tensor:
    """The values of a tensor of the file, in its order, in the dtype in which they are stored."""
    config = source.config
    if one.own is None:
        divisors = frequency_divisors(config)
        assert divisors is not None
        return divisors
    tensors = source.read([one.own])
    check_finite(tensors, source.folder)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = one.name.split(".")[-2]
    return in_pairs(tensors[one.own], heads[part]) if architecture.pairs and part in heads else tensors[one.own]


def _encoded(values: Tensor, kind: str, name: str) -> "np.ndarray[Any, Any]":
    """The bytes, uint8, that a file holds for ``values``, row by row."""
    if kind == "q8_0":
        import gguf

        return gguf.quants.quantize(values.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    stored = values.to(_DTYPES[kind])
    if kind == "f16" and not stored.isfinite().all():
        raise InputError(f"{name} has weights that float16 does not hold: take --type bf16 or f32")
    return stored.contiguous().view(torch.uint8).numpy()


def _write(
    path: Path,
    architecture: Architecture,
    entries: dict[str, Any],
    tensors: list[_Planned],
    source: Source,
    progress: Progress,
) -> None:
    import gguf

    writer = gguf.GGUFWriter(None, architecture.name)
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in entries.items():
        add[type(value)](key, value)
    for one in tensors:
        shape = one.shape_in_bytes
        kind = gguf.GGMLQuantizationType[one.kind.upper()]
        writer.add_tensor_info(one.name, shape, np.dtype(np.uint8), prod(shape), kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in tensors:
            progress.at(one.name)
            writer.write_tensor_data(_encoded(_read(one, source, architecture), one.kind, one.name))
            progress.advance(1)
    finally:
        writer.close()
