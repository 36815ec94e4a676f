"""Perplexity by the literature's protocol.

The text is tokenised as a whole and cut into consecutive windows; the model reads each by itself; the
perplexity is the exponential of the mean negative log-likelihood over all predicted tokens, which are all
but the first of each window.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur import data
from secateur.checkpoint import Source, local_folder
from secateur.errors import InputError
from secateur.progress import Progress
from secateur.recipe import choose_device, choose_dtype
from secateur.runtime.loading import load

# Logits of this many tokens are held at a time: a vocabulary of 128,000 makes them 1 GB in float32.
TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of one model on one text.

    Attributes:
        model: the model, as it was named.
        data: the text, as it was named.
        perplexity: exp(nll).
        nll: mean negative log-likelihood per predicted token, in nats.
        window: tokens per window.
        windows: number of windows.
        tokens: number of predicted tokens, ``windows * (window - 1)``.
        text_sha256: of the whole text, as UTF-8, before it was cut.
        dtype: the precision of the computation.
        seconds: what the forward passes took.
    """

    model: str
    data: str
    perplexity: float
    nll: float
    window: int
    windows: int
    tokens: int
    text_sha256: str
    dtype: str
    seconds: float


def evaluate(
    models: Sequence[str | Path] | str | Path,
    source: str = "wikitext2",
    *,
    window: int | None = None,
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> list[Perplexity]:
    """Measure the perplexity of written models, one after the other, on the same text.

    Args:
        models: hub names, folders or ``.gguf`` files; one of them, or several.
        source: the text, as :mod:`secateur.data.sources` names it.
        window: tokens per window; by default the model's context, at most 2048.
        limit: use only so many windows.
        device: ``auto``, ``cpu``, ``cuda`` …
        dtype: ``auto`` (float32 on a CPU, the checkpoint's own on a GPU), ``float32``, ``bfloat16``, ``float16``.
    Raises:
        InputError: when a model or the text cannot be used.
    """
    names = [str(models)] if isinstance(models, str | Path) else [str(model) for model in models]
    progress = progress or Progress()
    chosen = choose_device(device)
    text = data.load_text(source, "evaluation", need=limit * (window or 2048) if limit else None)
    results = []
    with progress:
        for name in names:
            with local_folder(name) as folder:
                tokenizer = Source(folder).tokenizer()
                model = load(folder)
            precision = choose_dtype(dtype, model.dtype, chosen)
            model.to(chosen, precision)
            windows = data.evaluation_windows(text, tokenizer, _window_of(model, window), limit)
            progress.start(f"perplexity of {name}", windows.numel())
            began = time.perf_counter()
            nll = mean_nll(model, windows.to(chosen), progress)
            results.append(
                Perplexity(
                    model=name,
                    data=source,
                    perplexity=math.exp(nll) if nll < 700 else math.inf,
                    nll=nll,
                    window=windows.shape[1],
                    windows=windows.shape[0],
                    tokens=windows.shape[0] * (windows.shape[1] - 1),
                    text_sha256=data.digest(text.joined),
                    dtype=str(precision).removeprefix("torch."),
                    seconds=round(time.perf_counter() - began, 3),
                )
            )
    return results


def _window_of(model: nn.Module, asked: int | None) -> int:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048  # type: ignore[union-attr, operator]
    if asked is not None and not 2 <= asked <= context:
        raise InputError(f"a window of {asked} tokens does not fit the model's context of {context} (--window)")
    return asked or min(context, 2048)


@torch.no_grad()
def mean_nll(model: nn.Module, windows: Tensor, progress: Progress) -> float:
    """Mean negative log-likelihood, in nats, of the tokens of ``windows`` ``(n, L)`` after the first of each."""
    total = 0.0
    for batch in windows.split(max(1, TOKENS_PER_BATCH // windows.shape[1])):
        logits = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        total += nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum").item()
        progress.advance(batch.numel())
    return total / (windows.shape[0] * (windows.shape[1] - 1))
