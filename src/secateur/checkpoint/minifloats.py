"""Weights stored in floats of 8 or 4 bits, which are decoded block by block as they are read.

FP8 in blocks (``quant_method`` ``fp8``; DeepSeek-V3 Technical Report, arXiv 2412.19437, section 3.3): a matrix of ``O``
rows and ``I`` columns, in blocks of R × C that share a scale,

    weight              float8 E4M3 (O, I)
    weight_scale_inv    float (⌈O / R⌉, ⌈I / C⌉)    what the codes of a block are multiplied by

MXFP4 (``mxfp4``; OCP Microscaling Formats Specification 1.0, as GPT-OSS stores its experts): a stack ``(E, I, O)`` of
layers that are transposed, 32 columns of which share a scale,

    …_blocks    uint8 (E, O, I / 32, 16)    two codes in a byte, the first in the low bits: a sign, two bits of
                                            exponent, one of mantissa (E2M1)
    …_scales    uint8 (E, O, I / 32)        127 + the power of two that the codes of a block are multiplied by

What they stand for is given in bfloat16, which the codes were made of: rounded once of FP8, and exact of MXFP4.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from secateur.checkpoint.shards import FLOATS, Held, reading
from secateur.errors import InputError, reason

KINDS = ("fp8", "mxfp4")
DECODED = "bfloat16"
_SHARE_A_SCALE = 32
# The floats of E2M1, by the three bits below the sign.
_SIZES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


class Minifloats(msgspec.Struct, frozen=True):
    """What a config says of weights in such floats.

    Attributes:
        quant_method: their kind.
        weight_block_size: rows and columns of FP8 that share a scale; None where a whole weight does.
        expert_dtype: the floats of experts, where they are others.
    """

    quant_method: Literal["fp8", "mxfp4"]
    weight_block_size: tuple[int, int] | None = None
    expert_dtype: Literal["fp8"] = "fp8"


@dataclass(frozen=True)
class Coded:
    """Where the codes of a weight are, and their scales; by the names of the tensors, their files."""

    codes: tuple[str, Path]
    scales: tuple[str, Path]


def read_minifloats(config: dict[str, Any], folder: Path) -> Minifloats:
    """What ``quantization_config`` of ``folder`` says of weights of one of the ``KINDS``.

    Raises:
        InputError: when they are stored otherwise than is read here.
    """
    try:
        read = msgspec.convert(config, Minifloats)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{folder} stores weights as {config['quant_method']} that is not read: {reason(error)}"
        ) from None
    if min(read.weight_block_size or (1, 1)) < 1:
        raise InputError(f"{folder} stores weights in blocks of {read.weight_block_size}, which make no sense")
    return read


def find_coded(held: dict[str, Held], kind: Minifloats) -> dict[str, Coded]:
    """Let weights stand in ``held`` in place of their codes and scales; by name, where these are.

    Raises:
        InputError: when scales are missing, or types and shapes do not agree.
    """
    found: dict[str, Coded] = {}
    fp8 = kind.quant_method == "fp8"
    for name in [name for name, one in held.items() if (one.dtype == "F8_E4M3" if fp8 else name.endswith("_blocks"))]:
        weight = name if fp8 else name.removesuffix("_blocks")
        scales_name = f"{weight}_scale_inv" if fp8 else f"{weight}_scales"
        codes, scales = held[name], held.get(scales_name)
        if scales is None:
            raise InputError(f"{codes.file} holds {name}, and the folder lacks {scales_name}")
        if weight != name and weight in held:
            raise InputError(f"{codes.file} holds {name}, and the folder holds {weight} decoded as well")
        if fp8:
            shape, fits = codes.shape, _is_fp8(codes, scales, kind.weight_block_size)
        else:
            shape, fits = _decoded_shape(codes), _is_mxfp4(codes, scales)
        if not fits:
            raise InputError(
                f"{scales.file}: {_shown(scales)} cannot be the scales of {name}, which is {_shown(codes)}"
            )
        del held[name], held[scales_name]
        held[weight] = Held(codes.file, shape, FLOATS[DECODED], codes.nbytes + scales.nbytes)
        found[weight] = Coded((name, codes.file), (scales_name, scales.file))
    return found


def _is_fp8(codes: Held, scales: Held, block: tuple[int, int] | None) -> bool:
    if len(codes.shape) != 2 or scales.dtype not in FLOATS.values():
        return False
    if block is None:
        return scales.shape in ((), (1,), (1, 1))
    return scales.shape == tuple(-(-size // part) for size, part in zip(codes.shape, block, strict=True))


def _is_mxfp4(codes: Held, scales: Held) -> bool:
    is_stack = len(codes.shape) == 4 and codes.shape[3] == _SHARE_A_SCALE // 2
    return is_stack and codes.dtype == scales.dtype == "U8" and scales.shape == codes.shape[:3]


def _decoded_shape(codes: Held) -> tuple[int, ...]:
    experts, rows, blocks, *_ = (*codes.shape, 1, 1, 1)
    return experts, blocks * _SHARE_A_SCALE, rows


def _shown(held: Held) -> str:
    return f"{held.dtype} {' × '.join(map(str, held.shape))}"


def read_coded(coded: Coded, kind: Minifloats) -> Tensor:
    """A weight, bfloat16; raises :class:`InputError` when a file is damaged."""
    codes, scales = (_read(*part) for part in (coded.codes, coded.scales))
    return (
        decode_fp8(codes, scales, kind.weight_block_size) if kind.quant_method == "fp8" else decode_mxfp4(codes, scales)
    )


def _read(name: str, path: Path) -> Tensor:
    with reading(path) as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def decode_fp8(codes: Tensor, scales: Tensor, block: tuple[int, int] | None) -> Tensor:
    """The weight of some FP8 codes.

    Args:
        codes: float8 ``(O, I)``.
        scales: float ``(⌈O / R⌉, ⌈I / C⌉)``, or a single one.
        block: R and C; None where there is a single scale.

    Returns:
        bfloat16 ``(O, I)``; no more than R rows are there in float32 at a time.
    """
    rows, columns = (min(size, part) for size, part in zip(codes.shape, block or codes.shape, strict=True))
    weight = torch.empty(codes.shape, dtype=torch.bfloat16)
    grid = scales.float().reshape(-(-codes.shape[0] // rows), -1)
    for decoded, some, scale in zip(weight.split(rows), codes.split(rows), grid, strict=True):
        decoded.copy_(some.float() * scale.repeat_interleave(columns)[: codes.shape[1]])
    return weight


def decode_mxfp4(codes: Tensor, scales: Tensor) -> Tensor:
    """The stack of some MXFP4 codes.

    Args:
        codes: uint8 ``(E, O, G, 16)``.
        scales: uint8 ``(E, O, G)``.

    Returns:
        bfloat16 ``(E, 32 G, O)``; no more than one layer is there in float32 at a time.
    """
    sizes = torch.tensor(_SIZES)
    values = torch.cat((sizes, -sizes))
    experts, rows, blocks, _ = codes.shape
    stack = torch.empty(experts, blocks * _SHARE_A_SCALE, rows, dtype=torch.bfloat16)
    for layer, some, powers in zip(stack, codes, scales, strict=True):
        pairs = torch.stack((some & 0xF, some >> 4), -1).flatten(-2)
        decoded = values[pairs.int()].ldexp(powers[..., None].int() - 127)
        layer.copy_(decoded.flatten(1).T)
    return stack
