"""RIA, Figure 7: activation outliers, input channels whose ‖X_j‖₂ is far above the others'.

On the dense model, for each place where linears read: the largest norm over the median one, the kurtosis of the norms,
the share of Σ ‖X_j‖² that the largest one in a hundred channels have, and the standard deviation of ln ‖X_j‖, which is
what a score's factor ‖X_j‖^a spreads by. The plot has all channels of the block in the middle, sorted.
"""

from statistics import fmean

from experiments.activations import Outliers, draws, norms, over_depth
from experiments.common import LLAMA2, Report, Setting, main
from experiments.drawing import across, lines, named, panels
from secateur.sweeps.tables import Table

MODELS = LLAMA2[1:2]


def run(setting: Setting) -> Report:
    draw = draws(setting)[0]
    tables, plots, data = [], {}, []
    for model in setting.models:
        with setting.folder(model) as folder:
            seen = over_depth(norms(setting, model, folder, draw))
        rows: list[list[str | float | None]] = []
        drawn = {}
        for label, blocks in seen.items():
            found = {number: Outliers.of(values) for number, values in blocks.items()}
            most = max(found, key=lambda number: found[number].ratio)
            ratio, kurtosis, top, spread = (
                fmean(getattr(one, name) for one in found.values()) for name in ("ratio", "kurtosis", "top", "spread")
            )
            rows.append([label, ratio, found[most].ratio, most, kurtosis, f"{top:.1%}", spread])
            data.append({"model": model, "read by": label, "by block": {x: vars(one) for x, one in found.items()}})
            middle = blocks[sorted(blocks)[len(blocks) // 2]]
            values = (middle / middle.median()).sort().values
            drawn[label] = ([100 * (place + 1) / len(values) for place in range(len(values))], values.tolist())
        figure, (panel,) = panels([f"‖X_j‖ over the median, block {len(seen[label]) // 2 + 1}"], height=2.6)
        lines(panel, drawn, log=True)
        across(panel, "channels, from the smallest norm to the largest, %")
        plots[named("channels", model, setting)] = figure
        headings = ["read by", "largest over median", "most", "in block", "kurtosis", "Σ‖X‖² in 1 %", "σ of ln‖X‖"]
        tables.append(
            (f"{model}, {draw.label}: norms of input channels, means over blocks.", Table.plain(headings, rows))
        )
    return Report(tables, plots=plots, data=data)


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
