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
    "0": METHODS["ri"] | {"sparsity": 0.5},
    **{f"{alpha:g}": METHODS["ria"] | {"alpha": alpha, "sparsity": 0.5} for alpha in (0.5, 1.0, 2.0)},
}
SIDES = {"inputs": "input channels", "outputs": "output channels"}


def run(setting: Setting) -> Report:
    tables, notes, plots, data = [], [], {}, []
    for model in setting.models:
        with setting.folder(model) as folder:
            found = {label: degrees(setting, model, folder, options) for label, options in SETTINGS.items()}
            exponents = {alpha: degrees(setting, model, folder, options) for alpha, options in EXPONENTS.items()}
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
        caption = f"{model}: the same of input channels, RIA 50 % by its exponent a; below, how far ln ‖X‖ spreads (σ)."
        tables.append((caption, _table({f"a = {a}": one for a, one in exponents.items()}, "inputs", spreads)))
        notes.append(_reason(model, found, exponents["0.5"], spreads))
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


def _reason(
    model: str,
    found: Mapping[str, Sequence[LinearDegrees]],
    ria: Sequence[LinearDegrees],
    spreads: Mapping[tuple[str, int], float],
) -> str:
    """Whether it is as in the paper that N:M spreads input channels less, and what the spread goes with."""
    free, tied, ordered = (
        fmean(linear.inputs.spread for linear in found[name]) for name in ("RIA 50 %", "RIA 2:4", "RIA 2:4, permuted")
    )
    pairs = [(one.inputs.spread, spread) for one in ria if (spread := spreads.get((one.kind, one.block))) is not None]
    together = float(torch.corrcoef(torch.tensor(pairs).T)[0, 1]) if len(pairs) > 1 else 0.0
    alike = "as in the paper" if tied < free else "otherwise than in the paper, where 2:4 spreads them less"
    return (
        f"On {model} the shares of input channels spread by {free:.3f} unstructured, {tied:.3f} at 2:4 and "
        f"{ordered:.3f} at 2:4 with ordered channels: {alike}. Over its {len(pairs)} linears, the spread by RIA 50 % "
        f"and that of ln ‖X‖ correlate by {together:.2f}."
    )


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
