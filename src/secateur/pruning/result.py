"""What was done: to each linear, and to the model as a whole."""

import dataclasses
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import safetensors
import torch
import transformers
from torch import Tensor

from secateur.calibrate.guard import Trial
from secateur.progress import Clock


@dataclass(frozen=True)
class LayerResult:
    """One linear after pruning.

    Attributes:
        name: its full name.
        shape: ``(O, I)``.
        sparsity: the share of its weights that are zero now.
        retained: the share of the total score that its kept weights hold.
        relative_error: ‖X(W − W′)ᵀ‖ / ‖XWᵀ‖ in the Frobenius norm, over its calibration inputs X or a sample
            of them, before it is tuned with the rest of its block; None when there were none.
        score: what it was pruned by: the recipe's score, or ri where it saw too few tokens.
        tokens: the number of calibration tokens that it was pruned by, or None.
        dead_channels: the number of its input channels that were zero at all of them, or None.
        refused: the steps that were not taken, because their weights would not be finite in its dtype.
        folds: with ``compare_folds``, the share that other orders would hold, by the name of the fold mode,
            ``unordered``, and ``unstructured``: without groups, at the same sparsity.
        nonzeros_sha256: of where its weights are not zero, as bytes 0 and 1, row by row; empty until it is written.
        weight_sha256: of its weights' bytes as stored; empty until it is written.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    retained: float
    relative_error: float | None
    score: str
    tokens: int | None
    dead_channels: int | None
    refused: list[str] = field(default_factory=list)
    folds: dict[str, float] = field(default_factory=dict)
    nonzeros_sha256: str = ""
    weight_sha256: str = ""


@dataclass(frozen=True)
class QuantizedLayer:
    """One linear after quantization.

    Attributes:
        name: its full name.
        shape: ``(O, I)``.
        zeros_before: the number of its weights that were zero before: what pruning has removed.
        zeros: the number of those that decode to zero.
        relative_error: as :class:`LayerResult` has it, against the weights before.
        tokens: the number of calibration tokens that it was quantized by, or None.
        nbytes: what it takes in the files: codes, scales and zero-points.
        nonzeros_sha256: of where its decoded weights are not zero, as bytes 0 and 1, row by row; empty until it is
            written.
        weight_sha256: of the bytes of its decoded weights; empty until it is written.
    """

    name: str
    shape: tuple[int, int]
    zeros_before: int
    zeros: int
    relative_error: float | None
    tokens: int | None
    nbytes: int
    nonzeros_sha256: str = ""
    weight_sha256: str = ""


@dataclass
class Results:
    """What was done to some blocks, or to all.

    Attributes:
        layers: its linears that were pruned.
        quantized: its linears that were quantized.
        trials: what the guard said of their steps.
        tuned: the full names of tensors that were tuned and not pruned: norms and biases.
        orders: every order that was found, int64, by the full name of its space or linear.
        unpruned: of every tensor that is not pruned, or quantized, as a whole, by its full name, SHA-256 of its bytes
            as stored.
    """

    layers: list[LayerResult] = field(default_factory=list)
    quantized: list[QuantizedLayer] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    tuned: list[str] = field(default_factory=list)
    orders: dict[str, Tensor] = field(default_factory=dict)
    unpruned: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Iterable["Results"]) -> "Results":
        """All together, in their order."""
        whole = cls()
        for part in parts:
            whole.layers += part.layers
            whole.quantized += part.quantized
            whole.trials += part.trials
            whole.tuned += part.tuned
            whole.orders |= part.orders
            whole.unpruned |= part.unpruned
        return whole

    def report(self, clock: Clock, decoder: int) -> dict[str, Any]:
        """The part of the manifest that tells how it went, how long it took, and with which versions.

        Args:
            clock: has the times.
            decoder: the number of weights in all blocks, pruned or not.
        """
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = sum(layer.sparsity * size for layer, size in zip(self.layers, sizes, strict=True))
        return {
            "sparsity": zeros / max(1, sum(sizes)),
            "decoder_sparsity": zeros / max(1, decoder),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "guard": [dataclasses.asdict(trial) for trial in self.trials],
            "tuned": self.tuned,
            "seconds": clock.seconds(),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """What computed it, for manifests."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
    }
