"""SHA-256 of texts, tensors and files: how what was read and written is told apart."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def digest(data: str | Tensor) -> str:
    """SHA-256, in hexadecimal, of a text (as UTF-8) or of a tensor's bytes, row by row."""
    raw = data.encode() if isinstance(data, str) else data.contiguous().numpy().data
    return hashlib.sha256(raw).hexdigest()


def nonzeros_digest(weight: Tensor) -> str:
    """SHA-256 of where ``weight`` is not zero, as bytes 0 and 1, row by row."""
    return digest((weight != 0).cpu())


def bytes_digest(weight: Tensor) -> str:
    """SHA-256 of the bytes of ``weight`` as it is stored."""
    return digest(weight.cpu().contiguous().flatten().view(torch.uint8))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, types, shapes and bytes, in the order of their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
