"""How many of its weights each channel of a pruned model keeps: what Figures 5 and 6 are made of.

A channel's degree is the share of its weights in one linear that are not zero: of input channel j that of column j, of
output channel i that of row i. Each pruned model is written, counted and deleted, and what is filed is counts.
"""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import secateur
from experiments.activations import kinds
from experiments.common import Setting
from secateur.checkpoint import Source
from secateur.console import terminal
from secateur.models.blocks import blocks_of, family_of
from secateur.recipe import Recipe

BINS = 21  # of the histogram, from 0 to 1: one of them about a half
RUINED = 0.1  # a channel that keeps no more than this share of its weights has as good as lost them


@dataclass(frozen=True)
class Degrees:
    """The degrees of the input channels, or of the output channels, of one linear or several.

    Attributes:
        channels: how many there are.
        lost: how many have no weight left.
        ruined: how many keep at most :data:`RUINED` of theirs, those that are lost included.
        spread: the standard deviation of the degree over the channels of a linear; a mean over linears.
        least: the smallest degree; a mean over linears.
        most: the largest; a mean over linears.
        histogram: channels by degree, in :data:`BINS` equal parts of 0 to 1.
        beside: the mean degree of the other three in groups of four consecutive channels, of which one keeps nearly all
            of its weights; None where there is no such group; a mean over linears that have some.
    """

    channels: int
    lost: int
    ruined: int
    spread: float
    least: float
    most: float
    histogram: list[int]
    beside: float | None = None

    @classmethod
    def of(cls, kept: Tensor, dim: int) -> "Degrees":
        """Those of one linear: of its columns (``dim`` 0) or rows (1), from which weights are kept, bool ``(O, I)``."""
        number, whole = kept.sum(dim), kept.shape[dim]
        degree = number.double() / whole
        return cls(
            channels=len(degree),
            lost=int((number == 0).sum()),
            ruined=int((number <= RUINED * whole).sum()),
            spread=round(float(degree.std(correction=0)), 5),
            least=round(float(degree.min()), 5),
            most=round(float(degree.max()), 5),
            histogram=torch.histc(degree, BINS, 0, 1).long().tolist(),
            beside=_beside(degree),
        )

    @classmethod
    def over(cls, linears: Iterable["Degrees"]) -> "Degrees":
        """Those of several linears together: counts add up, and the rest is a mean over linears."""
        parts = list(linears)
        return cls(
            channels=sum(one.channels for one in parts),
            lost=sum(one.lost for one in parts),
            ruined=sum(one.ruined for one in parts),
            spread=fmean(one.spread for one in parts),
            least=fmean(one.least for one in parts),
            most=fmean(one.most for one in parts),
            histogram=[sum(counts) for counts in zip(*(one.histogram for one in parts), strict=True)],
            beside=fmean(found) if (found := [one.beside for one in parts if one.beside is not None]) else None,
        )


def _beside(degree: Tensor) -> float | None:
    groups = degree[: len(degree) // 4 * 4].reshape(-1, 4)
    full = groups.amax(1) >= 1 - RUINED
    others = (groups.sum(1) - groups.amax(1))[full] / 3
    return round(float(others.mean()), 5) if full.any() else None


@dataclass(frozen=True)
class LinearDegrees:
    """Those of one linear: the number of its block from 1, its kind, and both sides."""

    block: int
    kind: str
    inputs: Degrees
    outputs: Degrees


def degrees(setting: Setting, model: str, folder: Path, options: Mapping[str, Any]) -> list[LinearDegrees]:
    """Those of every linear of the model in ``folder``, pruned by these options; filed."""
    recipe = Recipe.from_dict(setting.options(**options))

    def compute() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory(dir=setting.out, prefix="degrees-") as home:
            secateur.prune(folder, Path(home) / "pruned", recipe, progress=terminal.progress())
            return [asdict(linear) for linear in of_folder(Path(home) / "pruned")]

    setting.out.mkdir(parents=True, exist_ok=True)
    found = setting.measured(model, {"what": "degrees", "recipe": recipe.essence.to_dict()}, compute)
    return [
        LinearDegrees(**linear | {side: Degrees(**linear[side]) for side in ("inputs", "outputs")}) for linear in found
    ]


def of_folder(folder: Path) -> list[LinearDegrees]:
    """Those of every linear of the pruned model in ``folder``."""
    source, found = Source(folder), []
    skeleton = source.skeleton(torch.float32)
    for number, block in enumerate(blocks_of(skeleton, family_of(skeleton)), 1):
        called = kinds(linear.name for linear in block.linears)
        tensors = source.read(sorted({block.prefix + linear.tensor for linear in block.linears}))
        for linear in block.linears:
            kept = block.stored(linear, tensors) != 0
            found.append(LinearDegrees(number, called[linear.name], Degrees.of(kept, 0), Degrees.of(kept, 1)))
    return found


def by_kind(found: Iterable[LinearDegrees], side: str) -> dict[str, Degrees]:
    """Over all blocks, those of the ``inputs`` or the ``outputs`` of each kind of linear."""
    kinds: dict[str, list[Degrees]] = {}
    for linear in found:
        kinds.setdefault(linear.kind, []).append(getattr(linear, side))
    return {kind: Degrees.over(some) for kind, some in kinds.items()}


def by_block(found: Iterable[LinearDegrees], side: str) -> dict[int, Degrees]:
    """Over all kinds, those of each block."""
    blocks: dict[int, list[Degrees]] = {}
    for linear in found:
        blocks.setdefault(linear.block, []).append(getattr(linear, side))
    return {number: Degrees.over(some) for number, some in blocks.items()}
