"""Perplexity by the literature's protocol.

The text is tokenised as a whole and cut into consecutive windows; the model reads each by itself; the
perplexity is the exponential of the mean negative log-likelihood over all predicted tokens, which are all
but the first of each window. With a stride the windows overlap, and each predicts only what the one before
it has not.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from secateur import data
from secateur.calibrate.stream import Rooms, Stream
from secateur.checkpoint import context_of
from secateur.data.sources import Text
from secateur.data.tokens import Tokenizer
from secateur.devices import free_memory
from secateur.errors import InputError
from secateur.evaluation.memory import tokens_at_a_time
from secateur.evaluation.uncertainty import block_means, interval
from secateur.memory import Room
from secateur.progress import Progress

CPU = torch.device("cpu")


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


@dataclass(frozen=True)
class Cut:
    """A text as a model reads it.

    Attributes:
        text: the text.
        windows: token ids, int64 ``(n, L)``.
        step: tokens from the start of one window to that of the next.
    """

    text: Text
    windows: Tensor
    step: int


def cut(
    text: Text,
    tokenizer: Tokenizer,
    config: PreTrainedConfig,
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
) -> Cut:
    """Cut a text into windows for a model of ``config``.

    Args:
        window: tokens per window; by default the model's context, at most 2048.
        stride: tokens from one window to the next; by default the window, so that none overlap.
        limit: use only so many windows.

    Raises:
        InputError: when the window does not fit the model, the stride not the window, or the text is too short.
    """
    length = window_of(config, window)
    step = length if stride is None else stride
    if not 1 <= step <= length:
        raise InputError(f"a stride of {step} tokens does not fit windows of {length} (--stride)")
    windows = data.evaluation_windows(text, tokenizer, length, step, limit)
    data.check_ids(windows, config.get_text_config().vocab_size, text.source)
    return Cut(text, windows, step)


def measure(
    model: PreTrainedModel, cuts: Sequence[Cut], *, free: int, progress: Progress | None = None, name: str = "the model"
) -> list[Perplexity]:
    """Measure the perplexity of a loaded model on each text.

    All texts pass a block at a time where the model is offloaded; what that took is then shared out by tokens.

    Args:
        free: bytes that activations may take.
        progress: is told how far it is, under the model's ``name``.

    Raises:
        InputError: when the model's logits are no numbers.
    """
    progress = progress or Progress()
    if model.offloaded and cuts:
        tokens = sum(each.windows.numel() for each in cuts)
        texts = ", ".join(each.text.source for each in cuts)
        progress.start(f"perplexity of {name} on {texts}", tokens * len(model.offloaded.blocks))
        began = time.perf_counter()
        losses = streamed_nll(model, [each.windows for each in cuts], free, progress)
        rate = (time.perf_counter() - began) / tokens
        return [_perplexity(one, nll, rate * one.windows.numel(), name) for one, nll in zip(cuts, losses, strict=True)]
    results = []
    for each in cuts:
        progress.start(f"perplexity of {name} on {each.text.source}", each.windows.numel())
        began = time.perf_counter()
        nll = token_nll(model, each.windows, free, progress)
        results.append(_perplexity(each, nll, time.perf_counter() - began, name))
    return results


def _perplexity(cut: Cut, nll: Tensor, seconds: float, name: str) -> Perplexity:
    """What the negative log-likelihoods of the tokens of all windows, ``(n, L - 1)``, come to."""
    losses, windows, source = nll.double(), cut.windows, cut.text.source
    if wrong := int(losses.isnan().any(1).sum()):
        raise InputError(
            f"{name} gives logits that are no numbers (NaN) in {wrong} of {len(windows)} windows of {source}: its "
            "weights are damaged, or overflow in this precision (--dtype float32)"
        )
    # A window predicts all but its first token; of these, the ones before the last ``step`` were predicted before.
    fresh = losses[:, -cut.step :]
    totals, counts = fresh.sum(1), torch.full((len(fresh),), float(fresh.shape[1]), dtype=torch.float64)
    totals[0], counts[0] = losses[0].sum(), losses.shape[1]
    mean = (totals.sum() / counts.sum()).item()
    blocks = block_means(totals, counts)
    between = interval(mean, blocks)
    return Perplexity(
        data=source,
        perplexity=_exp(mean),
        low=_exp(between[0]) if between else None,
        high=_exp(between[1]) if between else None,
        nll=mean,
        block_nll=blocks,
        window=windows.shape[1],
        stride=cut.step,
        windows=len(windows),
        tokens=int(counts.sum()),
        text_sha256=data.digest(cut.text.joined),
        tokens_sha256=data.digest(windows),
        seconds=round(seconds, 3),
    )


def window_of(config: PreTrainedConfig, asked: int | None) -> int:
    """The window to use: the one that was asked for, or the model's context, at most 2048 tokens.

    Raises:
        InputError: when the model's context is shorter than what was asked for.
    """
    context = context_of(config) or 2048
    if asked is not None and not 2 <= asked <= context:
        raise InputError(f"a window of {asked} tokens does not fit the model's context of {context} (--window)")
    return asked or min(context, 2048)


@torch.no_grad()
def token_nll(model: PreTrainedModel, windows: Tensor, free: int, progress: Progress) -> Tensor:
    """Negative log-likelihood, in nats, of ``windows`` ``(n, L)`` after each first token: float32 ``(n, L - 1)``.

    Args:
        free: bytes that activations may take.
    """
    losses = []
    for tokens in _batches(model, windows, free):
        losses.append(_token_nll(model(tokens, use_cache=False).logits, tokens))
        progress.advance(tokens.numel())
    return torch.cat(losses)


@torch.no_grad()
def streamed_nll(model: PreTrainedModel, texts: Sequence[Tensor], free: int, progress: Progress) -> list[Tensor]:
    """The same of several texts and an offloaded model: all windows pass each block while it is in memory.

    Hidden states wait in half of what is free, then in half of what is free on the host, then in a file.
    """
    offloaded = model.offloaded
    batches = [batch for windows in texts for batch in _batches(model, windows, free)]
    places = {model.device: free // 2}
    places.setdefault(CPU, free_memory(CPU) // 2)
    with Room(places) as room:
        stream = None
        for index in range(len(offloaded.blocks)):
            with offloaded.block(index):
                stream = stream or Stream(model, offloaded.blocks, batches, progress, rooms=Rooms(states=room))
                stream.advance(index)
        assert stream is not None
        losses = [_token_nll(stream.output(number).logits, tokens) for number, tokens in enumerate(batches)]
    return list(torch.cat(losses).split([len(windows) for windows in texts]))


def _batches(model: PreTrainedModel, windows: Tensor, free: int) -> Iterator[Tensor]:
    """As many windows at a time as fit, on the model's device."""
    tokens = tokens_at_a_time(model.config.get_text_config().vocab_size, model.device, free)
    return (batch.to(model.device) for batch in windows.split(max(1, tokens // windows.shape[1])))


def _token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of ``tokens`` ``(B, L)`` but the first of each row, by ``logits`` ``(B, L, V)``: ``(B, L - 1)``, on the CPU."""
    flat = logits[:, :-1].flatten(0, 1).float()
    each = nn.functional.cross_entropy(flat, tokens[:, 1:].flatten(), reduction="none")
    return each.view(len(tokens), -1).cpu()


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf
