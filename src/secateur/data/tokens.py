"""From text to token windows, by the literature's protocols, and with BOS in each (:mod:`secateur.data.bos`)."""

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

from secateur.data.chats import Templated
from secateur.data.sources import Text
from secateur.digests import digest
from secateur.errors import InputError, naming
from secateur.options import Bos

_FOLDER: ContextVar[Path | None] = ContextVar("a folder for the token ids of whole texts", default=None)


class Tokenizer(Templated, Protocol):
    """What is needed of a Hugging Face tokenizer."""

    bos_token_id: Any

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """Encode ``text``; the ids are the result's ``input_ids``."""


def calibration_samples(
    text: Text, tokenizer: Tokenizer, samples: int, length: int, seed: int, bos: Bos = "once"
) -> Tensor:
    """Draw ``samples`` windows of ``length`` tokens: int64 ``(samples, length)``.

    Windows lie at random offsets of the joined text, or of random documents that are longer than a
    window. Both draw from ``random.Random(seed)`` in the order of the authors' code of Wanda and RIA, so
    that the same seed gives the same samples.

    Args:
        bos: where BOS stands, settled: with ``each`` it takes the place of a window's last token.
    Raises:
        InputError: when there are fewer than ``samples * length`` tokens, or no document is long enough.
    """
    text, draw, taken = text.rendered(tokenizer), random.Random(seed), _taken(length, bos)
    if text.by_document:
        return _begun(_from_documents(text, tokenizer, samples, taken, draw, bos), tokenizer, bos)
    ids = _encode_whole(tokenizer, text, bos)
    if len(ids) < max(samples * taken, taken + 1):
        raise InputError(
            f"{text.source} has {len(ids):,} tokens, and {samples} samples of {taken} need {samples * taken:,}: "
            f"take at most {len(ids) // taken} samples (--samples), shorter ones (--length), or more text"
        )
    starts = [draw.randint(0, len(ids) - taken - 1) for _ in range(samples)]
    return _begun(torch.stack([ids[start : start + taken] for start in starts]), tokenizer, bos)


def _from_documents(
    text: Text, tokenizer: Tokenizer, samples: int, length: int, draw: random.Random, bos: Bos
) -> Tensor:
    encoded: dict[int, Tensor] = {}
    windows: list[Tensor] = []
    too_short: set[int] = set()
    while len(windows) < samples:
        index = draw.randint(0, len(text.rows) - 1)
        if index not in encoded:
            encoded[index] = _encode(tokenizer, text.rows[index], text, bos)
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
    text: Text,
    tokenizer: Tokenizer,
    window: int,
    stride: int | None = None,
    limit: int | None = None,
    bos: Bos = "once",
) -> Tensor:
    """Cut the joined text into consecutive windows: int64 ``(n, window)``. The rest is dropped.

    Args:
        stride: tokens from the start of one window to that of the next; by default all that the window takes.
        limit: at most so many windows.
        bos: where BOS stands, settled: with ``each`` a window takes one token less of the text.
    Raises:
        InputError: when there is not even one window.
    """
    text, taken = text.rendered(tokenizer), _taken(window, bos)
    ids = _encode_whole(tokenizer, text, bos)
    if len(ids) < taken:
        raise InputError(f"{text.source} has {len(ids):,} tokens, less than one window of {taken} (--window)")
    if text.windows:
        ids = ids[: text.windows * taken]
    return _begun(ids.unfold(0, taken, stride or taken)[:limit], tokenizer, bos)


def _taken(window: int, bos: Bos) -> int:
    """How many tokens of the text a window takes."""
    return window - (bos == "each")


def _begun(windows: Tensor, tokenizer: Tokenizer, bos: Bos) -> Tensor:
    """``windows`` ``(n, L)``, with BOS before each if each is to have one."""
    if bos != "each":
        return windows
    return torch.cat([torch.full((len(windows), 1), tokenizer.bos_token_id), windows], 1)


def check_ids(ids: Tensor, vocabulary: int, where: str) -> None:
    """Raise :class:`InputError` if some of ``ids``, made of the text ``where``, have no row in the embedding."""
    if ids.numel() and int(ids.max()) >= vocabulary:
        raise InputError(
            f"the tokenizer makes the id {int(ids.max())} of {where}, and the model's vocabulary has {vocabulary}: "
            "it is not this model's"
        )


def _encode(tokenizer: Tokenizer, content: str, text: Text, bos: Bos) -> Tensor:
    """Token ids, int64 ``(T,)``, of ``content``, which is ``text`` or one of its rows.

    With the special tokens that the tokenizer adds by itself, unless BOS is wanted otherwise, or a chat template has
    put them where they belong.
    """
    special = bos == "once" and not text.templated
    # Texts longer than the model's context are the rule here: verbose=False spares a warning for each.
    with naming("the model's tokenizer", "cannot encode the text"):
        ids: Tensor = tokenizer(content, add_special_tokens=special, return_tensors="pt", verbose=False).input_ids[0]
    begins = bos == "each" and ids[:1].tolist() == [tokenizer.bos_token_id]  # a template's, and it would be there twice
    return ids[begins:].long()  # of an empty text they come as floats


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


def _encode_whole(tokenizer: Tokenizer, text: Text, bos: Bos) -> Tensor:
    """As :func:`_encode`, of the whole of a text, which may be wanted again."""
    folder, core, joined = _FOLDER.get(), getattr(tokenizer, "backend_tokenizer", None), text.joined
    if folder is None or core is None:  # only of compiled tokenizers is it known what they do
        return _encode(tokenizer, joined, text, bos)
    what = f"{type(tokenizer).__name__} {digest(core.to_str())} {bos} {text.templated} {digest(joined)}"
    path = folder / f"{digest(what)}.safetensors"
    try:
        return load_file(path)["ids"]
    except (OSError, SafetensorError):  # not there, or not whole
        ids = _encode(tokenizer, joined, text, bos)
    folder.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=folder)
    os.close(handle)
    save_file({"ids": ids.contiguous()}, aside)
    Path(aside).replace(path)
    return ids
