"""How far a model's next-token distributions are from the dense model's.

Perplexity asks for the probability of one token, so that a model may lose here what it wins there. The divergence
KL(dense ‖ model) = Σ p log(p / q) over the vocabulary (Kullback and Leibler, *On Information and Sufficiency*, 1951) is
zero only where the distributions are the same, and does not depend on what the text says next: few tokens tell much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.calibrate.calls import finish
from secateur.calibrate.divergence import divergences
from secateur.memory import Room, Shelf


@dataclass(frozen=True)
class Divergence:
    """How far one model is from the dense one on a text, on the tokens that its perplexity is of.

    Attributes:
        kl: KL(dense ‖ model) of the distributions of the next token, in nats: the mean over tokens.
        kl_low: lower end of its 95 % interval; None when there are too few windows to tell.
        kl_high: upper end.
        top1: top-1 agreement, the share of tokens for which both models find the same one likeliest.
        top1_low: lower end of its 95 % interval.
        top1_high: upper end.
    """

    kl: float
    kl_low: float | None
    kl_high: float | None
    top1: float
    top1_low: float | None
    top1_high: float | None


class Reference:
    """What is kept of the dense model, so that others can be compared with it when it is gone.

    That is what left its last block, and all of the model but its blocks, whose norm and head make the same logits of
    it again. Logits would take vocabulary / width times as much.
    """

    def __init__(self, model: PreTrainedModel, texts: Sequence[Tensor], room: Room) -> None:
        """Nothing is kept yet.

        Args:
            model: with ``offloaded`` blocks.
            texts: the windows of each text that the model reads, int64 ``(n, L)``, in the order of :meth:`keep`.
            room: where hidden states wait.
        """
        self.model, self._blocks = model, model.offloaded.blocks
        self._texts, self._states = texts, Shelf(room)
        self._besides: tuple[Any, ...] | None = None  # what a block gives besides hidden states, if it gives a tuple

    @property
    def nbytes(self) -> int:
        """What is kept of the model, but for its hidden states, in memory of its device."""
        return sum(x.nbytes for x in (*self.model.parameters(), *self.model.buffers()) if not x.is_meta)

    @property
    def last(self) -> str:
        """The name of the last block."""
        return self._blocks[-1].prefix[:-1]

    def keep(self, output: Any) -> None:
        """Keep what the last block made of the next windows: hidden states ``(B, L, H)``, or a tuple of them first."""
        states, self._besides = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        for each in states:
            self._states.append(each)

    def first_window(self, text: int, model: PreTrainedModel, windows: Tensor) -> int | None:
        """The number of the first window of a text, if ``model`` has the same vocabulary and reads the same windows."""
        vocabularies = {each.config.get_text_config().vocab_size for each in (model, self.model)}
        if len(vocabularies) > 1 or not torch.equal(windows, self._texts[text]):
            return None
        return sum(len(before) for before in self._texts[:text])

    @torch.no_grad()
    def compare(self, logits: Tensor, tokens: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The divergence of each token of some windows, in nats, and whether the likeliest next token is the same.

        Args:
            logits: of another model, ``(B, L, V)``.
            tokens: the windows, int64 ``(B, L)``.
            first: the number of the first of them.

        Returns:
            float32 and bool ``(B, L - 1)`` on the CPU: of all but the last token, after which nothing is known.
        """
        states = torch.stack([self._states[number] for number in range(first, first + len(tokens))])
        answer = states if self._besides is None else (states, *self._besides)
        dense = finish(self.model, self._blocks, tokens, answer).logits
        found = list(divergences(dense[:, :-1].flatten(0, 1), logits[:, :-1].flatten(0, 1)))
        kl, same = (torch.cat(each).view(len(tokens), -1).cpu() for each in zip(*found, strict=True))
        return kl, same
