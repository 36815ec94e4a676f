"""How far one model's next-token distributions are from another's, token by token."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

# Float32 copies of the logits of so many tokens are in memory at a time: of a vocabulary of 128,000 each takes 66 MB.
TOKENS = 128


@dataclass(frozen=True)
class HeldOut:
    """The whole pruned model against the whole dense one, on the samples that no statistic has seen.

    Attributes:
        kl: KL(dense ‖ pruned) of the distributions of the next token, in nats: the mean over tokens.
        top1: top-1 agreement, the share of tokens for which both models find the same one likeliest.
        tokens: the number of tokens.
    """

    kl: float
    top1: float
    tokens: int


def divergences(dense: Tensor, model: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """KL(dense ‖ model) of each token in nats, float32 ``(T,)``, and whether its likeliest token is the same, bool.

    Args:
        dense: logits ``(T, V)``.
        model: the other's.

    Yields:
        at most ``TOKENS`` tokens at a time, in their order.
    """
    for theirs, ours in zip(dense.split(TOKENS), model.split(TOKENS), strict=True):
        p, q = theirs.float().log_softmax(-1), ours.float().log_softmax(-1)
        yield (p.exp() * (p - q)).sum(-1), theirs.argmax(-1) == ours.argmax(-1)
