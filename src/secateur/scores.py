"""Importance of each weight: larger means keep.

A score is a pure function of a weight ``(O, I)`` of any floating dtype and, where it needs them, the
statistics of the linear's inputs; it returns float32 ``(O, I)``. An all-zero row or column scores 0.
Column j of a weight is input channel j, row i is output channel i.

A new score is a function and its entry in :data:`SCORES`; recipes, the command line and the tests over all
scores follow from that. All cost one pass over the weight, and ``sparsegpt`` a factor of the Gram matrix.

"RIA" is Zhang et al., *Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models*, ICLR 2024; "Wanda" is Sun et al., *A Simple and Effective Pruning Approach for Large Language
Models*, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.errors import InputError
from secateur.patterns import Scope

if TYPE_CHECKING:  # the names in the table are wanted before torch is loaded
    from torch import Tensor

    from secateur.stats.inputs import InputStats


def magnitude(weight: Tensor) -> Tensor:
    """|W|."""
    return weight.abs().float()


def wanda(weight: Tensor, stats: InputStats) -> Tensor:
    """|W_ij| · ‖X_j‖ (Wanda, eq. 1)."""
    return magnitude(weight).mul_(stats.norm)


def relative_to_input(weight: Tensor) -> Tensor:
    """|W_ij| over the sum of its input channel, Σ_i |W_ij| (RIA, Table 2)."""
    size = magnitude(weight)
    return _share(size, size.sum(0, keepdim=True))


def relative_to_output(weight: Tensor) -> Tensor:
    """|W_ij| over the sum of its output channel, Σ_j |W_ij| (RIA, Table 2)."""
    size = magnitude(weight)
    return _share(size, size.sum(1, keepdim=True))


def relative_importance(weight: Tensor) -> Tensor:
    """RI: |W_ij| over its input channel plus |W_ij| over its output channel (RIA, eq. 2)."""
    size = magnitude(weight)
    by_row = size.sum(1, keepdim=True)
    by_input = _share(size, size.sum(0, keepdim=True))
    return by_input.add_(size.div_(_whole(by_row)))  # in two tensors of its size, not six: new memory costs time


def ria(weight: Tensor, stats: InputStats, alpha: float = 0.5) -> Tensor:
    """RI_ij · ‖X_j‖^alpha (RIA, eq. 3)."""
    return relative_importance(weight).mul_(stats.norm**alpha)


def sparsegpt(weight: Tensor, stats: InputStats) -> Tensor:
    """w² / [G⁻¹]_jj: how much the output error rises when this weight goes and the others make up for it.

    SparseGPT's (Algorithm 1), with its damped Gram matrix G, before any weight is removed: its sweep compares the
    same with the diagonal of the factor of the columns that are left. Needs ``stats.gram``. Channels that never had
    an input score 0, as there.
    """
    return weight.float() ** 2 / stats.damped.inverse_diagonal * (stats.square_sum > 0)


def activation(weight: Tensor, stats: InputStats) -> Tensor:
    """‖X_j‖ alone, the same for every weight of an input channel (RIA, Table 2); 0 where the weight is 0."""
    return stats.norm * (weight != 0)


def _share(size: Tensor, total: Tensor) -> Tensor:
    return size / _whole(total)


def _whole(total: Tensor) -> Tensor:
    """A total to divide by: of 0, which means that every size in it is 0, it is 1, so that shares are 0 and not NaN."""
    return total.where(total > 0, 1)


@dataclass(frozen=True)
class Score:
    """A scoring method as published.

    Attributes:
        function: called as ``function(weight, stats, alpha)``; ``stats`` may be None unless ``needs_inputs``.
        scope: what its authors compare for unstructured sparsity: weights of a row, or of the matrix.
        needs_inputs: whether it reads activations; without, pruning needs no calibration.
        about: one line for people.
        needs_gram: whether it reads the Gram matrix of the inputs.
    """

    function: Callable[..., Tensor]
    scope: Scope
    needs_inputs: bool
    about: str
    needs_gram: bool = False


SCORES: dict[str, Score] = {
    "magnitude": Score(lambda w, x, a: magnitude(w), "matrix", False, "|W|"),
    "wanda": Score(lambda w, x, a: wanda(w, x), "row", True, "|W|·‖X‖"),
    "ri": Score(lambda w, x, a: relative_importance(w), "matrix", False, "|W| over its column plus |W| over its row"),
    "ria": Score(lambda w, x, a: ria(w, x, a), "matrix", True, "RI·‖X‖^alpha"),
    "sparsegpt": Score(lambda w, x, a: sparsegpt(w, x), "matrix", True, "w² over the diagonal of G⁻¹", True),
    "activation": Score(lambda w, x, a: activation(w, x), "matrix", True, "‖X‖ alone"),
    "ri-input": Score(lambda w, x, a: relative_to_input(w), "matrix", False, "|W| over its input channel alone"),
    "ri-output": Score(lambda w, x, a: relative_to_output(w), "matrix", False, "|W| over its output channel alone"),
}


def compute(score: str, weight: Tensor, stats: InputStats | None, alpha: float, where: str) -> Tensor:
    """The score of this name, finite, with a finite sum; see :func:`check_finite` for ``where``.

    Raises:
        InputError: unless weight, input sums and the sum of all scores, which orders are judged by, are finite.
    """
    check_finite(weight, stats, where)
    found = SCORES[score].function(weight, stats, alpha)
    if not found.sum().isfinite():
        raise InputError(
            f"{where}: its {score} scores overflow float32, with weights up to {weight.abs().max().item():.3g}; leave "
            f"it dense (--skip {where!r}), choose another score, or look for what is wrong with the checkpoint"
        )
    return found


def check_finite(weight: Tensor, stats: InputStats | None, where: str) -> None:
    """Raise :class:`InputError`, naming the layer ``where``, unless weight and input sums are finite."""
    # Not finite is a sum of what is not finite; the other way round it may have overflowed, and is looked at again.
    if not weight.sum().isfinite() and not weight.isfinite().all():
        bad = weight.numel() - weight.isfinite().sum().item()
        raise InputError(
            f"{where}: {bad} of its {weight.numel()} weights are NaN or infinite; the checkpoint is damaged"
        )
    if stats is not None and not stats.square_sum.isfinite().all():
        bad = len(stats.square_sum) - stats.square_sum.isfinite().sum().item()
        raise InputError(
            f"{where}: {bad} of its {len(stats.square_sum)} input channels were NaN or infinite during calibration; "
            "look for the layer before it that overflows, or compute in float32 (--dtype) if that was another precision"
        )
