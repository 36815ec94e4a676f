"""SHA-256 of texts and tensors: how what was read and written is told apart."""

import hashlib

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
    return digest(weight.cpu().contiguous().view(torch.uint8))
