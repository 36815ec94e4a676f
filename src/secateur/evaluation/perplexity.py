"""Perplexity by the literature's protocol.

The text is tokenised as a whole and cut into consecutive windows; the model reads each by itself; the
perplexity is the exponential of the mean negative log-likelihood over all predicted tokens, which are all
but the first of each window. With a stride the windows overlap, and each predicts only what the one before
it has not. Where every window begins with BOS (:mod:`secateur.data.bos`), that is its first token.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from secateur import data
from secateur.calibrate.calls import finish
from secateur.calibrate.stream import Rooms, Stream
from secateur.checkpoint import context_of
from secateur.data.sources import Text
from secateur.data.tokens import Tokenizer
from secateur.devices import free_memory
from secateur.errors import InputError
from secateur.evaluation.divergence import Divergence, Reference
from secateur.evaluation.memory import tokens_at_a_time
from secateur.evaluation.uncertainty import block_means, interval
from secateur.memory import Room
from secateur.options import Bos
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
        seconds: what the forward passes took, and the comparison with the dense model.
        divergence: how far the model is from the dense one; None of that one, where there is none, and where the
            tokens or the vocabulary are others.
        bos: where the token that begins a text stands: in ``each`` window, ``once`` before the text if the tokenizer
            puts one there, or ``never``.
        column: the column of the text that was named; None where it was not, or there are none.
        split: the same of its split.
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
    divergence: Divergence | None = None
    bos: Bos = "once"
    column: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Cut:
    """A text as a model reads it.

    Attributes:
        text: the text, as the model's chat template has it.
        windows: token ids, int64 ``(n, L)``.
        step: tokens from the start of one window to that of the next.
        bos: where BOS stands, settled.
    """

    text: Text
    windows: Tensor
    step: int
    bos: Bos


def cut(
    text: Text,
    tokenizer: Tokenizer,
    config: PreTrainedConfig,
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    bos: Bos = "auto",
) -> Cut:
    """Cut a text into windows for a model of ``config``.

    Args:
        window: tokens per window; by default the model's context, at most 2048.
        stride: tokens from one window to the next; by default the window, so that none overlap.
        limit: use only so many windows.
        bos: where BOS stands; see :mod:`secateur.data.bos`.

    Raises:
        InputError: when the window does not fit the model, the stride not the window, or the text is too short; and
            when there is no BOS, or no chat template, where one is wanted.
    """
    length, settled = window_of(config, window), data.settle_bos(bos, tokenizer, config)
    longest = length - (settled == "each")
    step = longest if stride is None else stride
    if not 1 <= step <= longest:
        raise InputError(f"a stride of {step} tokens does not fit windows of {longest} (--stride)")
    text = text.rendered(tokenizer)
    windows = data.evaluation_windows(text, tokenizer, length, step, limit, settled)
    data.check_ids(windows, config.get_text_config().vocab_size, text.source)
    return Cut(text, windows, step, settled)


def measure(
    model: PreTrainedModel,
    cuts: Sequence[Cut],
    *,
    free: int,
    reference: Reference | None = None,
    keep: Reference | None = None,
    progress: Progress | None = None,
    name: str = "the model",
) -> list[Perplexity]:
    """Measure the perplexity of a loaded model on each text.

    All texts pass a block at a time where the model is offloaded; what that took is then shared out by tokens.

    Args:
        free: bytes that activations may take.
        reference: what is kept of the dense model, to compare this one with.
        keep: gets what is kept of this one.
        progress: is told how far it is, under the model's ``name``.

    Raises:
        InputError: when the model's logits are no numbers.
    """
    progress = progress or Progress()
    batches = [list(_batches(model, each.windows, free)) for each in cuts]

    def of_text(number: int, passes: Iterator[tuple[Tensor, Any]]) -> list[Tensor]:
        """Of each predicted token the loss, and what the reference has to say, ``(n, L - 1)``."""
        first = reference.first_window(number, model, cuts[number].windows) if reference else None
        found = []
        for tokens, (logits, output) in zip(batches[number], passes, strict=False):
            losses: tuple[Tensor, ...] = (_token_nll(logits, tokens),)
            if reference and first is not None:
                losses += reference.compare(logits, tokens, first)
                first += len(tokens)
            if keep:
                keep.keep(output)
            found.append(losses)
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    if model.offloaded and cuts:
        tokens = sum(each.windows.numel() for each in cuts)
        texts = ", ".join(each.text.source for each in cuts)
        progress.start(f"perplexity of {name} on {texts}", tokens * len(model.offloaded.blocks))
        began = time.perf_counter()
        passes = _streamed(model, list(chain.from_iterable(batches)), free, progress)
        found = [of_text(number, passes) for number in range(len(cuts))]
        rate = (time.perf_counter() - began) / tokens
        return [
            _perplexity(one, losses, rate * one.windows.numel(), name) for one, losses in zip(cuts, found, strict=True)
        ]
    results = []
    for number, each in enumerate(cuts):
        progress.start(f"perplexity of {name} on {each.text.source}", each.windows.numel())
        began = time.perf_counter()
        losses = of_text(number, _whole(model, batches[number], progress, keep.last if keep else None))
        results.append(_perplexity(each, losses, time.perf_counter() - began, name))
    return results


def _perplexity(cut: Cut, losses: Sequence[Tensor], seconds: float, name: str) -> Perplexity:
    """What all tokens of all windows come to, ``(n, L - 1)``: their losses, and what compares them with the dense."""
    nll, *compared = (each.double() for each in losses)
    windows, source = cut.windows, cut.text.source
    if wrong := int(nll.isnan().any(1).sum()):
        raise InputError(
            f"{name} gives logits that are no numbers (NaN) in {wrong} of {len(windows)} windows of {source}: its "
            "weights are damaged, or overflow in this precision (--dtype float32)"
        )
    tokens, mean, blocks, between = _mean(nll, cut.step)
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
        tokens=tokens,
        text_sha256=data.digest(cut.text.joined),
        tokens_sha256=data.digest(windows),
        seconds=round(seconds, 3),
        divergence=_divergence(compared, cut.step) if compared else None,
        bos=cut.bos,
        column=cut.text.column,
        split=cut.text.split,
    )


def _divergence(compared: Sequence[Tensor], step: int) -> Divergence:
    (_, kl, _, between), (_, top1, _, shares) = (_mean(each, step) for each in compared)
    return Divergence(
        kl=kl,
        kl_low=max(0.0, between[0]) if between else None,
        kl_high=between[1] if between else None,
        top1=top1,
        top1_low=max(0.0, shares[0]) if shares else None,
        top1_high=min(1.0, shares[1]) if shares else None,
    )


def _mean(each: Tensor, step: int) -> tuple[int, float, tuple[float, ...], tuple[float, float] | None]:
    """The number of tokens, the mean of what each has, float64 ``(n, L - 1)``, that of blocks, and the 95 % interval.

    A window predicts all but its first token; of these, the ones before the last ``step`` were predicted before.
    """
    fresh = each[:, -step:]
    totals, counts = fresh.sum(1), torch.full((len(fresh),), float(fresh.shape[1]), dtype=torch.float64)
    totals[0], counts[0] = each[0].sum(), each.shape[1]
    mean = (totals.sum() / counts.sum()).item()
    blocks = block_means(totals, counts)
    return int(counts.sum()), mean, blocks, interval(mean, blocks)


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
def _whole(
    model: PreTrainedModel, batches: Sequence[Tensor], progress: Progress, last: str | None
) -> Iterator[tuple[Tensor, Any]]:
    """Logits ``(B, L, V)`` of each batch, and what the block of the name ``last`` gives, if it is wanted."""
    outputs: list[Any] = [None]
    hook = last and model.get_submodule(last).register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        for tokens in batches:
            yield model(tokens, use_cache=False).logits, outputs[-1]
            del outputs[1:]
            progress.advance(tokens.numel())
    finally:
        if hook:
            hook.remove()


@torch.no_grad()
def _streamed(
    model: PreTrainedModel, batches: Sequence[Tensor], free: int, progress: Progress
) -> Iterator[tuple[Tensor, Any]]:
    """The same of an offloaded model and the batches of all texts, which pass each block while it is in memory.

    Hidden states wait in half of what is free, then in half of what is free on the host, then in a file.
    """
    offloaded = model.offloaded
    places = {model.device: free // 2}
    places.setdefault(CPU, free_memory(CPU) // 2)
    with Room(places) as room:
        stream = None
        for index in range(len(offloaded.blocks)):
            with offloaded.block(index):
                stream = stream or Stream(model, offloaded.blocks, batches, progress, rooms=Rooms(states=room))
                stream.advance(index)
        assert stream is not None
        for number in range(len(batches)):
            output = stream.left(number)
            yield finish(model, offloaded.blocks, batches[number], output).logits, output


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
