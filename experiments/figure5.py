"""RIA, Figure 5: how evenly the retained weights are spread over the channels.

The paper's picture: unstructured sparsity keeps many weights in some input channels and few in others; N:M cannot,
unless the channels are ordered for it. Per setting and kind of linear: the standard deviation, over the channels of a
linear, of the share of weights that a channel keeps, a mean over linears; for input channels and for output channels.

How far RIA spreads its input channels is a matter of its factor ‖X_j‖^a, whose logarithm spreads by a times what
ln ‖X_j‖ does: so RIA is pruned with other exponents as well. A model whose ln ‖X_j‖ spreads twice as far is pruned at
a = 0.5 as this one at a = 1, as far as ‖X‖ goes.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from experiments.activations import Outliers, draws, norms, over_depth
from experiments.common import LLAMA2, Report, Setting, main
from experiments.degrees import BINS, Degrees, LinearDegrees, by_kind, degrees
from experiments.drawing import FAINT, INK, SMALL, WIDTH, named
from experiments.table1 import METHODS
from secateur.sweeps.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = LLAMA2[1:2]
SETTINGS: dict[str, dict[str, Any]] = {
    "magnitude 50 %": METHODS["magnitude"] | {"sparsity": 0.5},
    "Wanda 50 %": METHODS["wanda"] | {"sparsity": 0.5},
    "RIA 50 %": METHODS["ria"] | {"sparsity": 0.5},
    "RIA 2:4": METHODS["ria"] | {"pattern": "2:4", "permute": "none"},
    "RIA 2:4, permuted": METHODS["ria"] | {"pattern": "2:4", "permute": "lsa"},
}
EXPONENTS: dict[str, dict[str, Any]] = {
    "a = 0": METHODS["ri"] | {"sparsity": 0.5},
    **{f"a = {alpha:g}": METHODS["ria"] | {"alpha": alpha, "sparsity": 0.5} for alpha in (0.5, 1.0, 2.0)},
    "a = 2, 2:4": SETTINGS["RIA 2:4"] | {"alpha": 2.0},
}
SIDES = {"inputs": "input channels", "outputs": "output channels"}


def run(setting: Setting) -> Report:
    tables, notes, plots, data = [], [], {}, []
    for model in setting.models:
        with setting.folder(model) as folder:
            found = {label: degrees(setting, model, folder, options) for label, options in SETTINGS.items()}
            exponents = {label: degrees(setting, model, folder, options) for label, options in EXPONENTS.items()}
            seen = over_depth(norms(setting, model, folder, draws(setting)[0]))
        spreads = {
            (kind, number): Outliers.of(values).spread
            for label, blocks in seen.items()
            for kind in label.split(", ")
            for number, values in blocks.items()
        }
        for side, what in SIDES.items():
            caption = f"{model}: how far the shares of weights that {what} keep spread (σ), mean over linears."
            tables.append((caption, _table(found, side)))
        caption = f"{model}: the same of input channels by RIA with other exponents; below, how far ln ‖X‖ spreads (σ)."
        tables.append((caption, _table(exponents, "inputs", spreads)))
        notes.append(_reason(model, found | exponents, spreads))
        plots[named("degrees", model, setting)] = draw(found)
        data.append({"model": model, "settings": _plain(found), "exponents": _plain(exponents)})
    return Report(tables, notes=notes, plots=plots, data=data)


def _table(
    found: Mapping[str, Sequence[LinearDegrees]], side: str, spreads: Mapping[tuple[str, int], float] | None = None
) -> Table:
    """A row for each setting, and a column for each kind of linear; a row more for the spreads of ln ‖X‖, if given."""
    rows = {
        label: {kind: one.spread for kind, one in by_kind(linears, side).items()} for label, linears in found.items()
    }
    kinds = list(next(iter(rows.values())))
    if spreads:
        rows["ln ‖X‖"] = {kind: fmean(x for (other, _), x in spreads.items() if other == kind) for kind in kinds}
    return Table.plain(["", *kinds], [[label, *(f"{row[kind]:.3f}" for kind in kinds)] for label, row in rows.items()])


def _reason(model: str, found: Mapping[str, Sequence[LinearDegrees]], spreads: Mapping[tuple[str, int], float]) -> str:
    """Whether 2:4 spreads input channels less than unstructured sparsity, as in the paper, and what that depends on."""
    spread = {label: fmean(linear.inputs.spread for linear in linears) for label, linears in found.items()}
    free, tied, ordered = spread["RIA 50 %"], spread["RIA 2:4"], spread["RIA 2:4, permuted"]
    alike = "as in the paper" if tied < free else "otherwise than in the paper, where 2:4 spreads them less"
    pairs = [
        (one.inputs.spread, spreads[one.kind, one.block])
        for one in found["RIA 50 %"]
        if (one.kind, one.block) in spreads  # experts are not
    ]
    together = float(torch.corrcoef(torch.tensor(pairs).T)[0, 1])
    beside, usual = (Degrees.over(linear.inputs for linear in found[label]).beside for label in ("RIA 2:4", "RIA 50 %"))
    notes = [
        f"On {model} the shares of input channels spread by {free:.3f} unstructured, {tied:.3f} at 2:4 and "
        f"{ordered:.3f} at 2:4 with ordered channels: {alike}.",
        f"How far they spread is a matter of ln ‖X‖: over the {len(pairs)} linears, its spread and that of the shares "
        f"unstructured correlate by {together:.2f}; and at a = 2, as if it spread four times as far, shares spread by "
        f"{spread['a = 2']:.3f} unstructured and {spread['a = 2, 2:4']:.3f} at 2:4.",
    ]
    if beside is not None and usual is not None:
        notes.append(
            "At 2:4 a channel competes with three neighbours: those beside one that keeps at least nine in ten of its "
            f"weights keep {beside:.0%} of theirs, and {usual:.0%} unstructured."
        )
    return " ".join(notes)


def draw(found: Mapping[str, Sequence[LinearDegrees]]) -> "Figure":
    """A histogram for each setting, over the channels of all linears: inputs on the left, outputs on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.0 * len(found) + 0.6), layout="constrained")
    for row, (label, linears) in zip(figure.subplots(len(found), 2, sharex=True), found.items(), strict=True):
        for panel, (side, what) in zip(row, SIDES.items(), strict=True):
            counts = Degrees.over(getattr(linear, side) for linear in linears).histogram
            shares = [100 * count / sum(counts) for count in counts]
            panel.bar([100 * (bin + 0.5) / BINS for bin in range(BINS)], shares, width=100 / BINS, color=FAINT)
            panel.set_yticks([])
            panel.set_xlim(0, 100)
            panel.axvline(50, color=INK, linewidth=0.6)
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(labelsize=SMALL)
            if row[0] is panel:
                panel.set_title(label, loc="left", fontsize=SMALL + 1)
            if linears is list(found.values())[-1]:
                panel.set_xlabel(f"weights that {what} keep, %", fontsize=SMALL)
    return figure


def _plain(found: Mapping[str, Sequence[LinearDegrees]]) -> dict[str, Any]:
    """By setting, side and kind of linear."""
    return {
        label: {side: {kind: vars(one) for kind, one in by_kind(linears, side).items()} for side in SIDES}
        for label, linears in found.items()
    }


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
