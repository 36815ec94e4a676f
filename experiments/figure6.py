"""RIA, Figure 6: channel corruption, channels that lose all of their weights or nearly all.

The paper's argument for relative importance: by |W|, and by |W|·‖X‖, whole channels fall together, since their weights
are small or their inputs are; a weight's share of its row and of its column keeps some of each. Per method and
sparsity: the share of the input channels (columns) and output channels (rows) of all linears that lose every weight,
and that lose nine in ten. Wanda compares the weights of a row, so that no row loses more than another: it is also here
with all weights of the matrix competing, as they do by the other scores.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.common import LLAMA2, Report, Setting, main
from experiments.degrees import Degrees, LinearDegrees, by_block, by_kind, degrees
from experiments.drawing import across, lines, named, panels
from experiments.figure5 import SIDES
from experiments.table1 import METHODS
from secateur.sweeps.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = LLAMA2[1:2]
ALL: dict[str, dict[str, Any]] = {
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
            sparsities = SPARSITIES[-1:] if setting.small else SPARSITIES
            found = {
                (f"{sparsity:.0%}", method): degrees(setting, model, folder, options | {"sparsity": sparsity})
                for sparsity in sparsities
                for method, options in ALL.items()
            }
        both = [[*labels, *_both(linears)] for labels, linears in found.items()]
        headings = [f"{what}, {lose}" for what in SIDES.values() for lose in ("all lost", "≥ 90 % lost")]
        caption = f"{model}: share of the channels of all linears that lose all of their weights, or nine in ten."
        tables.append((caption, Table.plain(["sparsity", "method", *headings], both, words=2)))
        kinds = {labels: by_kind(linears, "inputs") for labels, linears in found.items()}
        parts = [[*labels, *(_share(one.ruined, one) for one in by.values())] for labels, by in kinds.items()]
        caption = f"{model}: share of input channels that lose nine in ten of their weights, by kind of linear."
        tables.append((caption, Table.plain(["sparsity", "method", *next(iter(kinds.values()))], parts, words=2)))
        last = f"{SPARSITIES[-1]:.0%}"
        plots[named("corruption", model, setting)] = draw({name: found[last, name] for name in DRAWN}, last)
        for (sparsity, method), linears in found.items():
            of = {side: {kind: vars(one) for kind, one in by_kind(linears, side).items()} for side in SIDES}
            data.append({"model": model, "sparsity": sparsity, "method": method, **of})
    return Report(tables, plots=plots, data=data)


def _both(linears: Sequence[LinearDegrees]) -> list[str]:
    """The shares that are lost, and ruined, of input channels and of output channels."""
    sides = [Degrees.over(getattr(linear, side) for linear in linears) for side in SIDES]
    return [_share(count, one) for one in sides for count in (one.lost, one.ruined)]


def _share(count: int, of: Degrees) -> str:
    return f"{100 * count / of.channels:.2f} %"


def draw(found: Mapping[str, Sequence[LinearDegrees]], sparsity: str) -> "Figure":
    """Ruined channels over depth, a line for each method; input channels above, output channels below."""
    figure, axes = panels([f"{what} that lose ≥ 90 % of their weights, %, at {sparsity}" for what in SIDES.values()])
    for panel, side in zip(axes, SIDES, strict=True):
        depth = {name: by_block(linears, side) for name, linears in found.items()}
        shares = {name: [100 * one.ruined / one.channels for one in by.values()] for name, by in depth.items()}
        lines(panel, {name: (list(depth[name]), values) for name, values in shares.items()})
    across(axes[-1], "block")
    return figure


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
