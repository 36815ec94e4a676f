"""RIA, Figure 8: activation outliers by calibration set.

For each place where linears read and each calibration set, on the dense model: how far the largest ‖X_j‖₂ lies above
the median, over depth; and how many of the largest one in a hundred channels of the first set are among those of the
other, in percent. A second draw of the first set shows what is chance.
"""

from statistics import fmean

import torch
from torch import Tensor

from experiments.activations import Outliers, absent_sets, draws, norms, over_depth, top
from experiments.common import LLAMA2, Report, Setting, main
from experiments.drawing import across, lines, named, panels
from secateur.sweeps.tables import Table

MODELS = LLAMA2


def run(setting: Setting) -> Report:
    found = draws(setting)
    tables, plots, data = [], {}, []
    for model in setting.models:
        with setting.folder(model) as folder:
            seen = {draw.label: over_depth(norms(setting, model, folder, draw)) for draw in found}
        (first, dense), *others = seen.items()
        figure, axes = panels([f"largest ‖X_j‖ over the median, {label}" for label in dense])
        rows: list[list[str | float | None]] = []
        for panel, label in zip(axes, dense, strict=True):
            ratios = {
                name: {number: Outliers.of(values).ratio for number, values in blocks[label].items()}
                for name, blocks in seen.items()
            }
            shared = {
                name: fmean(_shared(values, blocks[label][number]) for number, values in dense[label].items())
                for name, blocks in others
            }
            lines(panel, {name: (list(by), list(by.values())) for name, by in ratios.items()}, log=True)
            means = [fmean(by.values()) for by in ratios.values()]
            rows.append([label, *means, *(f"{share:.0%}" for share in shared.values())])
            data.append({"model": model, "read by": label, "ratio": ratios, "shared": shared})
        across(axes[-1], "block")
        plots[named("outliers", model, setting)] = figure
        headings = ["read by", *seen, *(f"same channels, {name}" for name in shared)]
        caption = (
            f"{model}: largest ‖X_j‖ over the median, mean over blocks; and how many of the channels that stand out "
        )
        tables.append((caption + f"on {first} do on another set.", Table.plain(headings, rows)))
    return Report(tables, plots=plots, notes=absent_sets(setting), data=data)


def _shared(one: Tensor, other: Tensor) -> float:
    """The share of the largest channels by ``one`` that are among those by the ``other``, norms ``(I,)`` both."""
    return float(torch.isin(top(one), top(other)).double().mean())


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
