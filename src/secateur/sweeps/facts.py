"""What steps did to a model, in short: out of the manifests that they write."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Pruning:
    """What pruning did to a model, in short.

    Attributes:
        method: the recipe in a few words.
        sparsity: share of the weights of its pruned linears that are zero.
        retained: share of the score that is kept, the mean over linears.
        relative_error: of a linear's outputs on its calibration inputs, the mean over linears; None if there were none.
        steps: by step, on how many reader groups the guard kept it, and of how many.
        seconds: by stage.
        computed_in: the precision.
        versions: of what computed it.
    """

    method: str
    sparsity: float
    retained: float
    relative_error: float | None
    steps: dict[str, tuple[int, int]]
    seconds: dict[str, float]
    computed_in: str
    versions: dict[str, str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Pruning":
        """From the manifest of a pruned model."""
        layers, trials = manifest["layers"], manifest["guard"]
        steps = dict.fromkeys(trial["step"] for trial in trials)
        kept = {step: [trial["kept"] for trial in trials if trial["step"] == step] for step in steps}
        return cls(
            method=manifest["method"],
            sparsity=manifest["sparsity"],
            retained=fmean(layer["retained"] for layer in layers),
            relative_error=_mean_error(layers),
            steps={step: (sum(found), len(found)) for step, found in kept.items()},
            seconds=manifest["seconds"],
            computed_in=manifest["computed_in"],
            versions={"secateur": manifest["secateur"], **manifest["versions"]},
        )


@dataclass(frozen=True)
class Quantization:
    """What quantizing did to a model, in short.

    Attributes:
        method: the recipe in a few words.
        bits_per_weight: of its quantized linears, scales and zero-points included.
        zeros_before: share of the weights of these linears that were zero.
        zeros: share of them that are; no method brings fewer.
        relative_error: of a linear's outputs on its calibration inputs, the mean over linears; None if there were none.
        seconds: by stage.
        computed_in: the precision.
        versions: of what computed it.
    """

    method: str
    bits_per_weight: float
    zeros_before: float
    zeros: float
    relative_error: float | None
    seconds: dict[str, float]
    computed_in: str
    versions: dict[str, str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Quantization":
        """From the manifest of a quantized model."""
        found = manifest["quantization"]
        return cls(
            method=found["method"],
            bits_per_weight=found["bits_per_weight"],
            zeros_before=found["zeros_before"],
            zeros=found["zeros"],
            relative_error=_mean_error(found["layers"]),
            seconds=found["seconds"],
            computed_in=found["computed_in"],
            versions={"secateur": found["secateur"], **found["versions"]},
        )


@dataclass(frozen=True)
class Shrinking:
    """What structured pruning did to a model, in short.

    Attributes:
        method: the options in a few words.
        gone: share of the weights of its blocks' linears that it has not any more, or that are zero in place.
        seconds: by stage.
        computed_in: the precision.
        versions: of what computed it.
    """

    method: str
    gone: float
    seconds: dict[str, float]
    computed_in: str
    versions: dict[str, str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Shrinking":
        """From the manifest of a shrunk model."""
        return cls(
            method=manifest["method"],
            gone=manifest["sparsity"],
            seconds=manifest["seconds"],
            computed_in=manifest["computed_in"],
            versions={"secateur": manifest["secateur"]},
        )


Facts = Pruning | Quantization | Shrinking
# By the name of the step's command.
FACTS: dict[str, type[Facts]] = {"shrink": Shrinking, "prune": Pruning, "quantize": Quantization}


def _mean_error(layers: list[dict[str, Any]]) -> float | None:
    errors = [layer["relative_error"] for layer in layers]
    return fmean(errors) if None not in errors else None
