"""RIA, Figure 6: channel corruption, channels that lose all of their weights or nearly all.

The paper's argument for relative importance: by |W|, and by |W|·‖X‖, whole channels fall together, since their weights
are small or their inputs are; a weight's share of its row and of its column keeps some of each. Per method and sparsity:
the share of the input channels (columns) and output channels (rows) of all linears that lose every weight, and that
lose nine in ten. Wanda compares the weights of a row, so that no row can lose more than another: it is also here with
the weights of the whole matrix competing, as they do by the other scores.
"""


from experiments.common import LLAMA2, Report, Setting, main
from experiments.degrees import Degrees, by_block, by_kind, degrees
from experiments.drawing import across, lines, named, panels
from experiments.figure5 import SIDES
from experiments.table1 import METHODS
from secateur.sweeps.tables import Table

MODELS = LLAMA2[1:2]
ALL = {
    **METHODS,
    "wanda, whole matrix": METHODS["wanda"] | {"scope": "matrix"},
    "ri-input": {"score": "ri-input"},
    "ri-output": {"score": "ri-output"},
}
SPARSITIES = (0.5, 0.7)
DRAWN = ("magnitude", "wanda", "wanda, whole matrix", "ria")


def run(setting: Setting) -> Report:
    tables, plots, data = [], {}, []
    for model in setting.models:
        with setting.folder(model) as folder:
            found = {
                (sparsity, method): degrees(setting, model, folder, options | {"sparsity": sparsity})
                for sparsity in SPARSITIES
                for method, options in ALL.items()
            }
        rows: list[list[str | float | None]] = []
        kinds = list(by_kind(next(iter(found.values())), "inputs"))
        of_kinds: list[list[str | float | None]] = []
        for (sparsity, method), linears in found.items():
            row = [f"{sparsity:.0%}", method]
            sides = [Degrees.over(getattr(linear, side) for linear in linears) for side in SIDES]
            rows.append([*row, *(_share(count, one) for one in sides for count in (one.lost, one.ruined))])
            parts = {side: by_kind(linears, side) for side in SIDES}
            of_kinds.append([*row, *(_share(one.ruined, one) for one in parts["inputs"].values())])
            data.append(
                {"model": model, "sparsity": sparsity, "method": method}
                | {side: {kind: vars(one) for kind, one in some.items()} for side, some in parts.items()}
            )
        headings = [f"{what}, {lose}" for what in SIDES.values() for lose in ("all lost", "≥ 90 % lost")]
        caption = f"{model}: share of the channels of all linears that lose all of their weights, or nine in ten."
        tables.append((caption, Table.plain(["sparsity", "method", *headings], rows, words=2)))
        caption = f"{model}: share of input channels that lose nine in ten of their weights, by kind of linear."
        tables.append((caption, Table.plain(["sparsity", "method", *kinds], of_kinds, words=2)))
        figure, axes = panels(
            [f"{what} that lose ≥ 90 % of their weights at {SPARSITIES[-1]:.0%}, %" for what in SIDES.values()]
        )
        for panel, side in zip(axes, SIDES, strict=True):
            depth = {method: by_block(found[SPARSITIES[-1], method], side) for method in DRAWN}
            lines(
                panel,
                {
                    method: (list(blocks), [100 * one.ruined / one.channels for one in blocks.values()])
                    for method, blocks in depth.items()
                },
            )
        across(axes[-1], "block")
        plots[named("corruption", model, setting)] = figure
    return Report(tables, plots=plots, data=data)


def _share(count: int, of: Degrees) -> str:
    return f"{100 * count / of.channels:.2f} %"


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
