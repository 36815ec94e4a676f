"""What enters the linears of the dense model, by calibration set: what Figures 2, 7 and 8 are made of.

One pass of the samples over the dense model gives ‖X_j‖₂ of every input channel of every linear, and is filed. Linears
that read at the same place, such as q, k and v, share their inputs, and are one entry here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.common import CORPORA, DEMO, Setting
from secateur.calibrate.calibration import Calibration
from secateur.checkpoint import Source, load_into, resident
from secateur.devices import choose_calibration_dtype, choose_device, full_precision
from secateur.errors import InputError
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.spaces import reader_groups
from secateur.pruning.prepare import batch_size, draw_samples
from secateur.recipe import Recipe

# By what reads there, the norms of the input channels of one block, (I,) float32.
Norms = Mapping[str, Tensor]
DIGITS = 5  # of a norm, as it is filed


@dataclass(frozen=True)
class Draw:
    """Calibration samples: what tables call them, from where, and the seed by which they are drawn."""

    label: str
    source: str
    seed: int


def draws(setting: Setting) -> list[Draw]:
    """A draw of every corpus that is here, and last a second one of the first: how much a draw alone changes."""
    sources = {source: name for name in ("c4", *CORPORA) if (source := setting.texts.calibration(name))}
    if not sources:
        raise InputError(f"{setting.texts.folder} has no text to calibrate on, such as c4-train.jsonl (--local)")
    (first, *_), seed = sources, setting.seeds[0]
    # Where one text stands for all corpora, it goes by its own name.
    named = {source: name if ":" in source or source == name else source for source, name in sources.items()}
    found = [Draw(name, source, seed) for source, name in named.items()]
    return [*found, Draw(f"{named[first]}, drawn again", first, seed + 1)]


def absent_sets(setting: Setting) -> list[str]:
    """A note on calibration sets of the literature that are not here, with what to do about it; none if all are."""
    missing = [name for name in CORPORA if setting.texts.calibration(name) in (None, DEMO)]
    files = " and ".join(f"`{name}-train.txt`" for name in missing)
    return [f"Not here: {', '.join(missing)}. `--local FOLDER` with {files} adds them."] if missing else []


def norms(setting: Setting, model: str, folder: Path, draw: Draw) -> list[Norms]:
    """‖X_j‖₂ of each input channel of the dense model over the samples of a draw, block by block; filed."""
    recipe = Recipe.from_dict(setting.options(calibration=draw.source, seed=draw.seed))
    key = {
        "what": "norms of inputs",
        "calibration": draw.source,
        "seed": draw.seed,
        "samples": recipe.samples,
        "length": recipe.length,
    }
    found = setting.measured(model, key, lambda: survey(folder, recipe))
    return [{label: torch.tensor(values) for label, values in block.items()} for block in found]


def survey(folder: Path, recipe: Recipe) -> list[dict[str, list[float]]]:
    """The same as plain data. Experts are left out: each has inputs of its own, the tokens that are routed to it."""
    source, device = Source(folder), choose_device(recipe.device)
    dtype = choose_calibration_dtype(recipe.dtype, source.config.dtype or torch.float32, device)
    skeleton = source.skeleton(dtype, device)
    blocks = blocks_of(skeleton, family_of(skeleton))
    samples = draw_samples(source, recipe, batch_size(recipe, device), device)
    outer = source.read(source.names_outside([block.prefix for block in blocks]))
    load_into(skeleton, outer, "", device)
    skeleton.tie_weights()
    calibration = Calibration(skeleton, blocks, samples.batches, one_shot=True)
    found = []
    with full_precision():
        for index, block in enumerate(blocks):
            with resident(block.module, source.read(source.names(block.prefix)), block.prefix, device):
                stats = calibration.observe(index).stats
            found.append({label: _filed(stats[name].norm) for label, name in places(block).items()})
    return found


def _filed(values: Tensor) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def places(block: Block) -> dict[str, str]:
    """By the names of all that read at a place of a block, such as ``q, k, v``, the name of the first of them."""
    called = kinds(linear.name for linear in block.linears)
    groups = reader_groups(linear for linear in block.linears if not linear.stack)
    return {", ".join(called[linear.name] for linear in group): group[0].name for group in groups}


def kinds(names: Iterable[str]) -> dict[str, str]:
    """What tables call linears: by their last names, as ``q``, where these tell them apart; all experts alike."""
    whole = {name: ".".join(part for part in name.split(".") if not part.isdigit()) for name in names}
    last = {name: kind.rpartition(".")[2].removesuffix("_proj") for name, kind in whole.items()}
    return last if len(set(last.values())) == len(set(whole.values())) else whole


def over_depth(blocks: Sequence[Norms]) -> dict[str, dict[int, Tensor]]:
    """By what reads there, the norms of each block that has it, by its number from 1."""
    found: dict[str, dict[int, Tensor]] = {}
    for number, block in enumerate(blocks, 1):
        for label, values in block.items():
            found.setdefault(label, {})[number] = values
    return found


def spearman(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two vectors ``(n,)``, with mean ranks among equals; 1 where both are constant."""
    ranks = torch.stack([_ranks(one), _ranks(other)])
    if not ranks.var(1).any():
        return 1.0
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num())


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]


@dataclass(frozen=True)
class Outliers:
    """How far the largest channels stand out.

    Attributes:
        ratio: the largest norm over the median; infinite where more than half of the channels are dead.
        kurtosis: of the norms, E[(x − µ)⁴] / σ⁴: 3 for a normal distribution.
        top: the share of Σ ‖X_j‖² that the top channels have, one in a hundred.
        spread: standard deviation of ln ‖X_j‖ over the channels that are not dead.
    """

    ratio: float
    kurtosis: float
    top: float
    spread: float

    @classmethod
    def of(cls, values: Tensor) -> "Outliers":
        """Those of norms ``(I,)``."""
        x = values.double()
        deviations = (x - x.mean()).square()
        squares = x.square()
        return cls(
            ratio=float(x.max() / x.median()),
            kurtosis=float((deviations.square().mean() / deviations.mean().square()).nan_to_num(3)),
            top=float(squares[top(values)].sum() / squares.sum()),
            spread=float(x[x > 0].log().std(correction=0).nan_to_num()),
        )


def top(values: Tensor) -> Tensor:
    """Which channels are the largest, one in a hundred, at least one: int64."""
    return values.topk(max(1, round(len(values) / 100))).indices
