"""Quantized weights in safetensors files: of compressed-tensors' format ``pack-quantized``, what is read and written.

A linear of ``O`` rows and ``I`` columns is held as

    weight_packed      int32 (O, ⌈I b / 32⌉)   the codes of a row, one after the other, the first in the lowest bits
    weight_scale       float (O, G)            of the type of the dense weight
    weight_zero_point  int32 (⌈O b / 32⌉, G)   the zero-points of a column, likewise; only where they differ
    weight_shape       int64 (2,)              O, I

``config.json`` says in ``quantization_config`` what they mean. The library decodes ``(q − z) · s`` in the type of the
scales. Both factors have at most eight significant bits, so that the product is rounded once, as
:meth:`~secateur.quantization.grid.QuantizedWeight.dense` does: the same bits.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn.functional import pad

from secateur.checkpoint.shards import FLOATS, Held, reading
from secateur.errors import InputError, reason
from secateur.quantization.grid import Grid, QuantizedWeight

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
BITS = (4, 8)
PACKED = "weight_packed"
WORD = 32


class Scheme(msgspec.Struct, frozen=True):
    """What a config says of its quantized weights.

    Attributes:
        bits: of a code.
        group: columns that share a grid; 0 where a whole row does.
        symmetric: whether all zero-points are the middle code, and none are held.
    """

    bits: int
    group: int
    symmetric: bool

    def parts(self, name: str) -> list[str]:
        """The tensors that hold the weight ``name``."""
        kinds = [PACKED, "weight_scale", "weight_shape", *([] if self.symmetric else ["weight_zero_point"])]
        return [name.removesuffix("weight") + kind for kind in kinds]


# ---------------------------------------------------------------- config.json


class _Weights(msgspec.Struct, frozen=True):
    num_bits: int
    type: str = "int"
    symmetric: bool = True
    group_size: int | None = None
    strategy: str | None = None
    dynamic: bool | str = False
    actorder: bool | str | None = None


class _Group(msgspec.Struct, frozen=True):
    weights: _Weights
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None
    format: str | None = None


class _Config(msgspec.Struct, frozen=True):
    config_groups: dict[str, _Group]
    format: str
    kv_cache_scheme: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None
    sparsity_config: dict[str, Any] | None = None


def read_scheme(config: Any, folder: Path) -> Scheme:
    """What ``quantization_config`` of ``folder`` says.

    Raises:
        InputError: when its weights are none that are read: those of ``pack-quantized`` with one scheme for all,
            integers of 4 or 8 bits in groups of columns or whole rows, multiplied with inputs as they are.
    """
    kind = config.get("quant_method", "unknown") if isinstance(config, dict) else config
    refusal = (
        f"{folder} is quantized ({kind}): Secateur reads weights of 4 or 8 bits in the format {FORMAT} of {METHOD}, "
        "FP8 in blocks and MXFP4, and {}; give the original model, in float32, bfloat16 or float16"
    )
    if kind != METHOD:
        raise InputError(refusal.format("no other"))
    try:
        read = msgspec.convert(config, _Config)
    except msgspec.ValidationError as error:
        raise InputError(refusal.format(f"this is none ({reason(error)})")) from None
    schemes = list(read.config_groups.values())
    if len({msgspec.json.encode(one.weights) for one in schemes}) != 1:
        raise InputError(refusal.format(f"this has {len(schemes)} schemes"))
    weights = schemes[0].weights
    strategy = weights.strategy or {None: "tensor", -1: "channel"}.get(weights.group_size, "group")
    formats = {one.format or read.format for one in schemes}
    wrong = {
        f"the format {', '.join(sorted(formats))}": formats != {FORMAT},
        "inputs that are quantized": any(one.input_activations or one.output_activations for one in schemes),
        f"codes of {weights.num_bits} bits": weights.num_bits not in BITS,
        f"codes of the type {weights.type}": weights.type != "int",
        f"grids by {strategy}": strategy not in ("group", "channel") or bool(weights.dynamic),
        f"groups of {weights.group_size}": strategy == "group" and (weights.group_size or 0) < 1,
        f"columns in another order ({weights.actorder})": weights.actorder not in (None, False, "weight", "static"),
        "a quantized cache": read.kv_cache_scheme is not None,
        "transforms or sparse weights": bool(read.transform_config or read.sparsity_config),
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        raise InputError(refusal.format(f"this has {found[0]}"))
    return Scheme(weights.num_bits, (weights.group_size or 0) if strategy == "group" else 0, weights.symmetric)


def config_of(scheme: Scheme, ignore: Sequence[str]) -> dict[str, Any]:
    """``quantization_config`` of a folder whose linears are all quantized but those of the names in ``ignore``."""
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group",
        "group_size": scheme.group,
        "dynamic": False,
    }
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
                "format": FORMAT,
            }
        },
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        # For transformers alone: decode when it is loaded, not when it first runs. The other way compressed-tensors
        # 0.20 expects zero-points that are not packed.
        "dequantize": True,
    }


# ---------------------------------------------------------------- headers


def find_quantized(held: dict[str, Held], scheme: Scheme) -> dict[str, dict[str, Path]]:
    """Let quantized weights stand in ``held`` in place of their parts; by name, the file of each part.

    Raises:
        InputError: when a part is missing, or types and shapes do not agree with each other and the ``scheme``.
    """
    found: dict[str, dict[str, Path]] = {}
    for name in [packed.removesuffix("_packed") for packed in held if packed.endswith(f".{PACKED}")]:
        file = held[f"{name}_packed"].file
        if absent := [part for part in scheme.parts(name) if part not in held]:
            raise InputError(f"{file} holds {name} quantized, and the folder lacks {absent[0]}")
        if name in held:
            raise InputError(f"{file} holds {name} quantized, and the folder holds it dense as well")
        parts = {part: held.pop(part) for part in scheme.parts(name)}
        packed, scales, shape, *_ = parts.values()
        if scales.dtype not in FLOATS.values():
            raise InputError(f"{scales.file}: the scales of {name} are of type {scales.dtype}, and must be floats")
        if (shape.dtype, shape.shape) != ("I64", (2,)):
            raise InputError(f"{shape.file}: {name}_shape is no shape of a matrix")
        with reading(shape.file) as opened:
            rows, columns = opened.get_tensor(f"{name}_shape").tolist()
        groups = columns // scheme.group if scheme.group else 1
        expected = {
            f"{name}_packed": ("I32", (rows, _words(columns, scheme.bits))),
            f"{name}_scale": (scales.dtype, (rows, groups)),
            f"{name}_zero_point": ("I32", (_words(rows, scheme.bits), groups)),
        }
        if rows < 1 or columns < 1 or (scheme.group and columns % scheme.group):
            raise InputError(f"{shape.file}: {name} cannot be {rows} × {columns} in groups of {scheme.group}")
        for part, wanted in expected.items():
            if part in parts and (there := (parts[part].dtype, parts[part].shape)) != wanted:
                raise InputError(
                    f"{parts[part].file}: {part} is {_shown(*there)}, and {name} of {rows} × {columns} needs "
                    f"{_shown(*wanted)}"
                )
        size = sum(part.nbytes for part in parts.values())
        held[name] = Held(packed.file, (rows, columns), scales.dtype, size)
        found[name] = {part: one.file for part, one in parts.items()}
    return found


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // WORD)


def _shown(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {' × '.join(map(str, shape))}"


# ---------------------------------------------------------------- values


def as_tensors(name: str, weight: QuantizedWeight, symmetric: bool) -> dict[str, Tensor]:
    """The tensors that hold the quantized weight ``name``, which :func:`check_held` has seen, on the CPU.

    ``symmetric``: whether the scheme is, and zero-points need not be held.
    """
    grid, stem = weight.grid, name.removesuffix("weight")
    tensors = {
        f"{stem}{PACKED}": _packed(weight.codes, grid.bits),
        f"{stem}weight_scale": grid.scales.to(weight.dtype),
        f"{stem}weight_shape": torch.tensor(weight.codes.shape),
    }
    if not symmetric:
        tensors[f"{stem}weight_zero_point"] = _packed(grid.zeros.T, grid.bits).T.contiguous()
    return tensors


def from_tensors(name: str, tensors: Mapping[str, Tensor], scheme: Scheme) -> QuantizedWeight:
    """The quantized weight ``name`` out of the ``tensors`` that hold it, which agree with each other."""
    packed, scales, shape, *zeros = (tensors[part] for part in scheme.parts(name))
    rows, columns = shape.tolist()
    codes = _unpacked(packed, scheme.bits, columns)
    if scheme.symmetric:
        middle = torch.full(scales.shape, 1 << (scheme.bits - 1), dtype=torch.uint8)
    else:
        middle = _unpacked(zeros[0].T, scheme.bits, rows).T.contiguous()
    grid = Grid(scheme.bits, scheme.group or columns, scales.float(), middle)
    return QuantizedWeight(grid, codes, scales.dtype)


def decoded(tensors: Mapping[str, Tensor], scheme: Scheme) -> dict[str, Tensor]:
    """Tensors as they are written, with quantized weights as the dense ones that they stand for."""
    names = [part.removesuffix("_packed") for part in tensors if part.endswith(f".{PACKED}")]
    parts = {part for name in names for part in scheme.parts(name)}
    dense = {name: from_tensors(name, tensors, scheme).dense() for name in names}
    return {name: tensor for name, tensor in tensors.items() if name not in parts} | dense


def read_quantized(held: Mapping[str, Path], name: str, scheme: Scheme) -> QuantizedWeight:
    """The quantized weight ``name`` out of files, given the one that holds each part.

    Raises:
        InputError: when a file is damaged, or a scale is not a positive number.
    """
    tensors = {}
    for part in scheme.parts(name):
        with reading(held[part]) as file:
            tensors[part] = file.get_tensor(part)
    weight = from_tensors(name, tensors, scheme)
    scales = weight.grid.scales
    if bad := scales.numel() - int((scales.isfinite() & (scales > 0)).sum()):
        where = f"{held[scheme.parts(name)[1]]} is damaged"
        raise InputError(f"{where}: {bad} of the {scales.numel()} scales of {name} are no positive numbers")
    return weight


def check_held(name: str, weight: QuantizedWeight) -> None:
    """Raise :class:`InputError` unless the type of the dense weight holds the scales, and what they make of codes."""
    scales, dtype = weight.grid.scales, weight.dtype
    if not torch.equal(scales.to(dtype).float(), scales) or not weight.dense().isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"{name}: {kind} does not hold the scales of its weights: leave it dense (--skip '{name}')")


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(R, C)``, uint8, as words ``(R, ⌈C b / 32⌉)``, int32."""
    whole = pad(codes, (0, -codes.shape[1] % (WORD // bits)))
    if bits == 4:
        whole = whole[:, ::2] | whole[:, 1::2] << 4
    return whole.reshape(-1).view(torch.int32).view(len(codes), -1)


def _unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    """The codes ``(R, C)``, uint8, in words ``(R, ⌈C b / 32⌉)``, int32."""
    codes = words.reshape(-1).view(torch.uint8).view(len(words), -1)
    if bits == 4:
        codes = torch.stack((codes & 0xF, codes >> 4), -1).flatten(1)
    return codes[:, :columns].contiguous()
