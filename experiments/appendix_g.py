"""RIA, Appendix G: greedy swaps against linear sum assignment (CP), as whole recipes and over the number of channels.

Every linear has an order of its own here, and masks are mapped back, as in the paper. Cost laws are fitted to the
seconds of Table 11 on synthetic scores: ``c · channels^a``, by least squares on logarithms, with 95 % intervals. In
Appendix F.2 n communities divide the work by n: what that brings and costs is measured on the widest of the scores.
"""

import math
from collections.abc import Sequence
from functools import partial
from statistics import linear_regression, median
from typing import Any

from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.section5_4 import stages, stages_table
from experiments.table11 import OWN, PATTERN, PUBLISHED, SEARCHES, SMALL_WIDTHS, WIDTHS, timed
from experiments.tables import sweep_report
from experiments.timing import machine, shared
from secateur.checkpoint import Source
from secateur.evaluation.uncertainty import student
from secateur.permute.orders import find_order
from secateur.sweeps.tables import Table

MODELS = LLAMA2[:1]
RECIPES = {
    "as it is": {"permute": "none"},
    "greedy": {"permute": "greedy", "fold": "none"},
    "lsa-published": {"permute": "lsa-published", "fold": "none"},
    "lsa": {"permute": "lsa", "fold": "none"},
}
# Greedy swaps take longer than all else together: where it is to take minutes, only so many blocks are pruned.
FIRST = 2
PARTS = (1, 2, 4, 8, 16)
DIVIDED = {
    f"{search}, {parts}": partial(find_order, pattern=PATTERN, search=search, communities=parts)
    for search in (PUBLISHED, OWN)
    for parts in PARTS
}


def run(setting: Setting) -> Report:
    widths = SMALL_WIDTHS if setting.small else WIDTHS
    skip = [f"*.{block}.*" for block in range(FIRST, _depth(setting))] if setting.small else []
    results = setting.sweep(RECIPES, base={"score": "ria", "pattern": "2:4", "skip": skip})
    spent = [(model, recipe, found) for (model, recipe), found in stages(results).items()]
    times = [timed(setting, None, width, SEARCHES)["searches"] for width in widths]
    fits = {name: exponent(widths, [median(row[name]["seconds"]) for row in times]) for name in SEARCHES}
    divided = timed(setting, None, widths[-1], DIVIDED)["searches"]
    perplexities = sweep_report(results)
    return Report(
        tables=[
            *perplexities.tables,
            (f"Seconds; {machine()}{shared(setting)}.", stages_table(spent)),
            (
                f"Exponents a of seconds over channels, from {widths[0]:,} to {widths[-1]:,}.",
                Table.plain(["search", "a", "95 %"], [_fit(name, *fit) for name, fit in fits.items()]),
            ),
            (f"In communities, {widths[-1]:,} channels: seconds and retained share.", _communities(divided)),
        ],
        notes=[f"Only the linears of the first {FIRST} blocks are pruned."] * bool(skip) + absent(setting, "wikitext2"),
        data={"sweep": perplexities.data, "exponents": fits, "communities": divided},
    )


def _depth(setting: Setting) -> int:
    """The number of blocks of the shallowest model."""
    depths = []
    for model in setting.models:
        with setting.folder(model) as folder:
            depths.append(Source(folder).config.num_hidden_layers)
    return min(depths)


def exponent(widths: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """The exponent of a power law, by least squares on logarithms, and the ends of its 95 % interval by Student's t."""
    x, y = [math.log(width) for width in widths], [math.log(time) for time in seconds]
    slope, constant = linear_regression(x, y)
    freedom, centre = len(x) - 2, sum(x) / len(x)
    error = sum((b - constant - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / freedom
    half = student(freedom) * math.sqrt(error / sum((a - centre) ** 2 for a in x))
    return slope, slope - half, slope + half


def _fit(name: str, slope: float, low: float, high: float) -> list[str]:
    return [name, f"{slope:.2f}", f"{low:.2f} – {high:.2f}"]


def _communities(found: dict[str, Any]) -> Table:
    rows = []
    for parts in PARTS:
        row = [found[f"{search}, {parts}"] for search in (PUBLISHED, OWN)]
        rows.append([str(parts), *(cell for x in row for cell in (median(x["seconds"]), f"{x['retained']:.4f}"))])
    headings = [f"{search} {what}" for search in (PUBLISHED, OWN) for what in ("seconds", "retained")]
    return Table.plain(["communities", *headings], rows)


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
