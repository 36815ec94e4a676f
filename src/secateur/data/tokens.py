"""From text to token windows, by the literature's protocols."""

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.data.sources import Text
from secateur.digests import digest
from secateur.errors import InputError, naming

_FOLDER: ContextVar[Path | None] = ContextVar("a folder for the token ids of whole texts", default=None)


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """Encode ``text``; the ids are the result's ``input_ids``."""


def calibration_samples(text: Text, tokenizer: Tokenizer, samples: int, length: int, seed: int) -> Tensor:
    """Draw ``samples`` windows of ``length`` tokens: int64 ``(samples, length)``.

    Windows lie at random offsets of the joined text, or of random documents that are longer than a
    window. Both draw from ``random.Random(seed)`` in the order of the authors' code of Wanda and RIA, so
    that the same seed gives the same samples.

    Raises:
        InputError: when there are fewer than ``samples * length`` tokens, or no document is long enough.
    """
    draw = random.Random(seed)
    if text.by_document:
        return _from_documents(text, tokenizer, samples, length, draw)
    ids = _encode_whole(tokenizer, text.joined)
    if len(ids) < max(samples * length, length + 1):
        raise InputError(
            f"{text.source} has {len(ids):,} tokens, and {samples} samples of {length} need {samples * length:,}: "
            f"take at most {len(ids) // length} samples (--samples), shorter ones (--length), or more text"
        )
    starts = [draw.randint(0, len(ids) - length - 1) for _ in range(samples)]
    return torch.stack([ids[start : start + length] for start in starts])


def _from_documents(text: Text, tokenizer: Tokenizer, samples: int, length: int, draw: random.Random) -> Tensor:
    encoded: dict[int, Tensor] = {}
    windows: list[Tensor] = []
    too_short: set[int] = set()
    while len(windows) < samples:
        index = draw.randint(0, len(text.rows) - 1)
        if index not in encoded:
            encoded[index] = _encode(tokenizer, text.rows[index])
        ids = encoded[index]
        if len(ids) > length:
            start = draw.randint(0, len(ids) - length - 1)
            windows.append(ids[start : start + length])
            continue
        too_short.add(index)
        if len(too_short) == len(text.rows):
            raise InputError(
                f"none of the {len(text.rows):,} documents of {text.source} is longer than {length} tokens: "
                "take shorter samples (--length), or give the file without 'c4:' to draw from the joined text"
            )
    return torch.stack(windows)


def evaluation_windows(
    text: Text, tokenizer: Tokenizer, window: int, stride: int | None = None, limit: int | None = None
) -> Tensor:
    """Cut the joined text into consecutive windows: int64 ``(n, window)``. The rest is dropped.

    Args:
        stride: tokens from the start of one window to that of the next; by default ``window``.
        limit: at most so many windows.
    Raises:
        InputError: when there is not even one window.
    """
    ids = _encode_whole(tokenizer, text.joined)
    if len(ids) < window:
        raise InputError(f"{text.source} has {len(ids):,} tokens, less than one window of {window} (--window)")
    if text.windows:
        ids = ids[: text.windows * window]
    return ids.unfold(0, window, stride or window)[:limit]


def check_ids(ids: Tensor, vocabulary: int, where: str) -> None:
    """Raise :class:`InputError` if some of ``ids``, made of the text ``where``, have no row in the embedding."""
    if ids.numel() and int(ids.max()) >= vocabulary:
        raise InputError(
            f"the tokenizer makes the id {int(ids.max())} of {where}, and the model's vocabulary has {vocabulary}: "
            "it is not this model's"
        )


def _encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Token ids of one text, int64 ``(T,)``, with the special tokens that the tokenizer adds by itself."""
    # Texts longer than the model's context are the rule here: verbose=False spares a warning for each.
    with naming("the model's tokenizer", "cannot encode the text"):
        ids: Tensor = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    return ids.long()  # of an empty text they come as floats


@contextmanager
def tokens_kept_in(folder: Path) -> Iterator[None]:
    """Keep the token ids of whole texts in ``folder`` for as long as the context is open, and take them from there.

    They lie there by what they are made of, tokenizer and text, so that processes may share the folder.
    """
    before = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(before)


def _encode_whole(tokenizer: Tokenizer, text: str) -> Tensor:
    """As :func:`_encode`, of a text that may be wanted again."""
    folder, core = _FOLDER.get(), getattr(tokenizer, "backend_tokenizer", None)
    if folder is None or core is None:  # only of compiled tokenizers is it known what they do
        return _encode(tokenizer, text)
    path = folder / f"{digest(f'{type(tokenizer).__name__} {digest(core.to_str())} {digest(text)}')}.safetensors"
    try:
        return load_file(path)["ids"]
    except (OSError, SafetensorError):  # not there, or not whole
        ids = _encode(tokenizer, text)
    folder.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=folder)
    os.close(handle)
    save_file({"ids": ids.contiguous()}, aside)
    Path(aside).replace(path)
    return ids
