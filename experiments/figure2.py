"""RIA, Figure 2: how alike calibration sets rank the input channels by their activations.

Spearman's rank correlation of ‖X_j‖₂ over the input channels of each place where linears read, between calibration
sets, on the dense model. The paper's sets are WikiText-2, C4 and PTB; a second draw of the first set that is here shows
how much of what is missing to 1 is chance. Where the correlation is high, ‖X_j‖ says something of the model and not of
the text, and one calibration set will do.
"""

from itertools import combinations
from statistics import fmean

from experiments.activations import absent_sets, draws, norms, over_depth, spearman
from experiments.common import LLAMA2, Report, Setting, main
from experiments.drawing import across, lines, named, panels
from secateur.sweeps.tables import Table

MODELS = LLAMA2[1:2]


def run(setting: Setting) -> Report:
    *sets, again = draws(setting)
    pairs = {f"{one.label} and {other.label}": (one, other) for one, other in combinations(sets, 2)}
    pairs[again.label] = (sets[0], again)
    tables, plots, data = [], {}, []
    for model in setting.models:
        with setting.folder(model) as folder:
            seen = {draw: over_depth(norms(setting, model, folder, draw)) for draw in (*sets, again)}
        figure, axes = panels(list(pairs))
        rows: list[list[str | float | None]] = []
        for panel, (between, (one, other)) in zip(axes, pairs.items(), strict=True):
            drawn = {}
            for label, blocks in seen[one].items():
                alike = {number: spearman(values, seen[other][label][number]) for number, values in blocks.items()}
                least = min(alike, key=lambda number: alike[number])
                rows.append([between, label, f"{fmean(alike.values()):.3f}", f"{alike[least]:.3f}", least])
                data.append({"model": model, "between": between, "read by": label, "by block": alike})
                drawn[label] = (list(alike), list(alike.values()))
            lines(panel, drawn)
        across(axes[-1], "block")
        plots[named("correlation", model, setting)] = figure
        table = Table.plain(["between", "read by", "mean over blocks", "least", "in block"], rows, words=2)
        tables.append((f"{model}: Spearman's rank correlation of ‖X_j‖₂ over the input channels.", table))
    return Report(tables, plots=plots, notes=absent_sets(setting), data=data)


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
