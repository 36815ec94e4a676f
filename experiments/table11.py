"""RIA, Table 11: how long each search for a channel permutation takes, and what it retains at 2:4.

The paper compares linear sum assignment with Pool & Yu's greedy swaps. ``heuristic`` is its step 1, ``lsa-published``
both steps, ``lsa`` Secateur's own search. Scores are of real weights (RI; channels of the MLPs' last linears side by
side, which all write to one residual space), or synthetic ones with heavy tails. *Retained* is the share of the score
of the best half of each row.
"""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.common import LLAMA2, Report, Setting, main
from experiments.timing import in_turns, machine
from secateur.benchmark.roles import NARROWING, role_of
from secateur.checkpoint import Source
from secateur.devices import choose_device
from secateur.models.blocks import blocks_of, family_of
from secateur.patterns import NM
from secateur.permute.greedy import greedy_groups
from secateur.permute.orders import find_order, kept_score, unordered
from secateur.permute.searches import GREEDY_ESCAPES
from secateur.scores import relative_importance
from secateur.sweeps.tables import Table

MODELS = LLAMA2[:1]
PATTERN = NM(2, 4)
SMALL_WIDTHS, WIDTHS = (256, 512, 768, 1024), (1024, 2048, 4096, 5120, 8192, 11008)
SMALL_HEIGHT, HEIGHT = 576, 4096  # of synthetic scores
SYNTHETIC = "heavy tails"

# From a score (R, I) to an order of its columns.
Search = Callable[[Tensor], Tensor]


def swaps(score: Tensor) -> Tensor:
    """The greedy search without escapes."""
    columns = score.float().T.contiguous()
    return greedy_groups(columns, unordered(columns, PATTERN), PATTERN.kept).flatten()


GREEDY, ESCAPES, PUBLISHED, OWN = "greedy", f"greedy, {GREEDY_ESCAPES} escapes", "lsa-published", "lsa"
SEARCHES: dict[str, Search] = {
    GREEDY: swaps,
    ESCAPES: partial(find_order, pattern=PATTERN, search="greedy"),
    **{name: partial(find_order, pattern=PATTERN, search=name) for name in ("heuristic", PUBLISHED, OWN)},
}


def run(setting: Setting) -> Report:
    widths = SMALL_WIDTHS if setting.small else WIDTHS
    found = [timed(setting, model, width, SEARCHES) for model in (*setting.models, None) for width in widths]
    rows = [row for row in found if row]
    labels = [[row["score"], row["channels"], f"{row['rows']:,}"] for row in rows]
    searches = [row["searches"] for row in rows]
    seconds = [[_seconds(each[name]["seconds"]) for name in SEARCHES] for each in searches]
    retained = [
        [f"{row['unordered']:.4f}", *(f"{x['retained']:.4f}" for x in row["searches"].values())] for row in rows
    ]
    headings = ["score", "channels", "rows"]
    return Report(
        tables=[
            (
                f"Seconds: medians over rounds in which all take turns, and their number; {machine()}.",
                Table.plain([*headings, *SEARCHES], _beside(labels, seconds)),
            ),
            ("Retained.", Table.plain([*headings, "unordered", *SEARCHES], _beside(labels, retained))),
        ],
        data=rows,
    )


def _beside(labels: list[list[Any]], cells: list[list[str]]) -> list[list[Any]]:
    return [[*label, *row] for label, row in zip(labels, cells, strict=True)]


def _seconds(times: list[float]) -> str:
    return f"{median(times):.3g} ({len(times)})"


def timed(setting: Setting, model: str | None, width: int, searches: Mapping[str, Search]) -> dict[str, Any]:
    """Seconds of searches on a model's scores, or synthetic ones, and the share that each retains; filed.

    Returns:
        nothing if the model has not so many channels.
    """

    def compute() -> dict[str, Any]:
        if model is None:
            score = heavy(SMALL_HEIGHT if setting.small else HEIGHT, width)
        else:
            with setting.folder(model) as folder:
                score = side_by_side(Source(folder), width)
        if score.shape[1] < width:
            return {}
        score = score.to(choose_device("auto"))
        return {"score": model or SYNTHETIC, "channels": width, "rows": len(score)} | compared(score, searches)

    key = {"searches": list(searches), "channels": width, "small": setting.small, "machine": str(machine())}
    found: dict[str, Any] = setting.measured(model, key, compute)
    return found


def compared(score: Tensor, searches: Mapping[str, Search]) -> dict[str, Any]:
    """The seconds of each search on one score, in turns, and the share that it retains."""
    for search in searches.values():
        search(score[:, : 4 * PATTERN.group])  # what a first call loads does not count
    orders: dict[str, Tensor] = {}

    def work(name: str) -> None:
        orders[name] = searches[name](score)

    times = in_turns({name: partial(work, name) for name in searches})
    best = score.topk(score.shape[1] // 2, dim=1).values.sum(dtype=torch.float64).item()
    return {
        "unordered": kept_score(score, PATTERN) / best,
        "searches": {
            name: {"seconds": times[name], "retained": kept_score(score[:, orders[name]], PATTERN) / best}
            for name in searches
        },
    }


def heavy(height: int, width: int) -> Tensor:
    """A score with the tails of a real one: rows and columns of log-normal size, some outliers, RI, ‖X‖^0.5."""
    draw = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(height, 1, generator=draw), torch.randn(1, width, generator=draw)
    weight = torch.randn(height, width, generator=draw) * (0.3 * rows).exp() * (0.4 * columns).exp()
    weight *= 1 + 3 * torch.rand(height, width, generator=draw) ** 20
    return relative_importance(weight) * (0.3 * torch.randn(width, generator=draw)).exp()


def side_by_side(source: Source, width: int) -> Tensor:
    """RI of the last linear of the MLP in the first blocks, so many columns of them if there are as many."""
    skeleton = source.skeleton(torch.float32)
    parts: list[Tensor] = []
    for block in blocks_of(skeleton, family_of(skeleton)):
        for linear in block.linears:
            if role_of(linear) == NARROWING and sum(part.shape[1] for part in parts) < width:
                name = block.prefix + linear.tensor
                parts.append(relative_importance(linear.view(source.read([name])[name]).float()))
    return torch.cat(parts, 1)[:, :width] if parts else torch.empty(0, 0)


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
