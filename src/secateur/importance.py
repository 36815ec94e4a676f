"""Importance of what structured pruning removes whole: larger means keep.

A method is a pure function of :class:`Evidence` and its entry in :data:`METHODS`; options, the command line's help and
the tests over all methods follow from that. What channels have adds up: the importance of a head is the sum over its
channels, and over the spaces that lie along it.

"LLM-Pruner" is Ma et al., *LLM-Pruner: On the Structural Pruning of Large Language Models*, NeurIPS 2023; "ShortGPT" is
Men et al., *ShortGPT: Layers in Large Language Models are More Redundant Than You Expect*, 2024; "REAP" is Lasby et
al., *REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression*, 2025 (arXiv 2510.13999).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the names in the table are wanted before torch is loaded
    from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """What is known of the channels of a space in one block, or of the block as a whole; a method reads one of these.

    Attributes:
        square_sum: Σ x² of each channel as its reader saw it, over the calibration tokens: ``(C,)`` float64.
        coupled: the parameters that lie along the space, rows of writers with their biases and columns of readers, each
            with the gradient of the loss: ``(C, n)`` both.
        states: the hidden states that enter the block and those that leave it, ``(T, H)`` both.
    """

    square_sum: Tensor | None = None
    coupled: Sequence[tuple[Tensor, Tensor]] = ()
    states: tuple[Tensor, Tensor] | None = None


def activation(evidence: Evidence) -> Tensor:
    """‖X_j‖² of each channel (RIA, Table 10), ``(C,)`` float64: it ranks as ‖X_j‖, and adds up to that of a head."""
    assert evidence.square_sum is not None
    return evidence.square_sum


def taylor(evidence: Evidence) -> Tensor:
    """Σ |w · ∂L/∂w| over all parameters that a channel couples (LLM-Pruner, eq. 5, first order): ``(C,)`` float64."""
    parts = [(weight.double() * gradient.double()).abs().sum(1) for weight, gradient in evidence.coupled]
    return sum(parts[1:], parts[0])


def influence(evidence: Evidence) -> Tensor:
    """1 - cos of what enters and what leaves a block, at each token (ShortGPT's Block Influence, eq. 1): ``(T,)``."""
    from torch.nn.functional import cosine_similarity

    assert evidence.states is not None
    before, after = evidence.states
    return 1 - cosine_similarity(before.float(), after.float(), dim=-1)


def reap(contributions: Tensor) -> Tensor:
    """Gate × ‖output‖ of an expert at each token that is routed to it, the mean of which is its importance (REAP).

    Args:
        contributions: what it adds to the hidden states, gate × output, ``(T, H)``. Gates are not negative.
    Returns:
        float32 ``(T,)``.
    """
    return contributions.float().norm(dim=1)


@dataclass(frozen=True)
class Method:
    """A way to choose what goes.

    Attributes:
        function: the importance, of each channel; of a block its mean over tokens.
        removes: heads and channels of the MLP, in every block; or whole blocks.
        needs: the evidence that it reads. Inputs are seen block by block as the shrunk blocks before give them;
            gradients and states are those of the dense model.
        about: one line for people.
    """

    function: Callable[[Evidence], Tensor]
    removes: Literal["channels", "blocks"]
    needs: Literal["inputs", "gradients", "states"]
    about: str


METHODS: dict[str, Method] = {
    "activation": Method(activation, "channels", "inputs", "heads and channels by ‖X‖, the norm of what they give"),
    "taylor": Method(taylor, "channels", "gradients", "heads and channels by |w · ∂L/∂w|, LLM-Pruner's"),
    "depth": Method(influence, "blocks", "states", "whole blocks by 1 - cos of input and output, ShortGPT's"),
}
