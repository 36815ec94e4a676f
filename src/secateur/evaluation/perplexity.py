"""Perplexity by the literature's protocol.

The text is tokenised as a whole and cut into consecutive windows; the model reads each by itself; the
perplexity is the exponential of the mean negative log-likelihood over all predicted tokens, which are all
but the first of each window. With a stride the windows overlap, and each predicts only what the one before
it has not.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur import data
from secateur.checkpoint import context_of
from secateur.data.sources import Text
from secateur.data.tokens import Tokenizer
from secateur.errors import InputError
from secateur.evaluation.memory import tokens_at_a_time
from secateur.evaluation.uncertainty import block_means, interval
from secateur.progress import Progress


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of one model on one text.

    Attributes:
        data: the text, as it was named.
        perplexity: exp(nll).
        low: lower end of its 95 % interval; None when there are too few windows to tell.
        high: upper end.
        nll: mean negative log-likelihood per predicted token, in nats.
        block_nll: the same over blocks of consecutive windows, from which the interval is computed.
        window: tokens per window.
        stride: tokens from the start of one window to that of the next.
        windows: number of windows.
        tokens: number of predicted tokens.
        text_sha256: of the whole text, as UTF-8, before it was cut.
        tokens_sha256: of the windows' token ids. Perplexities compare when it is equal.
        seconds: what the forward passes took.
    """

    data: str
    perplexity: float
    low: float | None
    high: float | None
    nll: float
    block_nll: tuple[float, ...]
    window: int
    stride: int
    windows: int
    tokens: int
    text_sha256: str
    tokens_sha256: str
    seconds: float


def measure(
    model: nn.Module,
    tokenizer: Tokenizer,
    text: Text,
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    name: str = "the model",
) -> Perplexity:
    """Measure the perplexity of a loaded model.

    Args:
        window: tokens per window; by default the model's context, at most 2048.
        stride: tokens from one window to the next; by default the window, so that none overlap.
        limit: use only so many windows.
        progress: is told how far it is, under the model's ``name``.

    Raises:
        InputError: when the window does not fit the model, the stride not the window, or the text is too short.
    """
    length = window_of(model, window)
    step = length if stride is None else stride
    if not 1 <= step <= length:
        raise InputError(f"a stride of {step} tokens does not fit windows of {length} (--stride)")
    windows = data.evaluation_windows(text, tokenizer, length, step, limit)
    data.check_ids(windows, model.config.get_text_config().vocab_size, text.source)  # type: ignore[union-attr, operator]
    progress = progress or Progress()
    progress.start(f"perplexity of {name} on {text.source}", windows.numel())
    began = time.perf_counter()
    losses = token_nll(model, windows, progress).double()
    if wrong := int(losses.isnan().any(1).sum()):
        raise InputError(
            f"{name} gives logits that are no numbers (NaN) in {wrong} of {len(windows)} windows of {text.source}: its "
            "weights are damaged, or overflow in this precision (--dtype float32)"
        )
    seconds = time.perf_counter() - began
    # A window predicts all but its first token; of these, the ones before the last ``step`` were predicted before.
    fresh = losses[:, -step:]
    totals, counts = fresh.sum(1), torch.full((len(fresh),), float(fresh.shape[1]), dtype=torch.float64)
    totals[0], counts[0] = losses[0].sum(), losses.shape[1]
    nll = (totals.sum() / counts.sum()).item()
    blocks = block_means(totals, counts)
    between = interval(nll, blocks)
    return Perplexity(
        data=text.source,
        perplexity=_exp(nll),
        low=_exp(between[0]) if between else None,
        high=_exp(between[1]) if between else None,
        nll=nll,
        block_nll=blocks,
        window=length,
        stride=step,
        windows=len(windows),
        tokens=int(counts.sum()),
        text_sha256=data.digest(text.joined),
        tokens_sha256=data.digest(windows),
        seconds=round(seconds, 3),
    )


def window_of(model: nn.Module, asked: int | None) -> int:
    """The window to use: the one that was asked for, or the model's context, at most 2048 tokens.

    Raises:
        InputError: when the model's context is shorter than what was asked for.
    """
    context = context_of(model.config) or 2048
    if asked is not None and not 2 <= asked <= context:
        raise InputError(f"a window of {asked} tokens does not fit the model's context of {context} (--window)")
    return asked or min(context, 2048)


@torch.no_grad()
def token_nll(model: nn.Module, windows: Tensor, progress: Progress) -> Tensor:
    """Negative log-likelihood, in nats, of ``windows`` ``(n, L)`` after each first token: float32 ``(n, L - 1)``."""
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    losses = []
    for batch in windows.split(max(1, tokens_at_a_time(vocabulary, device) // windows.shape[1])):
        tokens = batch.to(device)
        logits = model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        each = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
        losses.append(each.view(len(batch), -1).cpu())
        progress.advance(batch.numel())
    return torch.cat(losses)


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf
