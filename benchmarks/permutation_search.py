"""What the parts of the search for a channel permutation are worth, beyond the searches of the RIA paper's Table 11.

    python -m benchmarks.permutation_search [MODEL] [--widths 1024 2048]

Scores as in ``experiments/table11.py``: synthetic with heavy tails and, given a model folder, of its real weights. Of
each search the share of the score of the best half of each row that 2:4 retains, and its seconds. ``sort every pair``
is the authors' way to compute the matrix of assignment values: form every group with every candidate channel and take
its largest scores. It is timed on one slot and multiplied by four.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.table11 import OWN, PATTERN, PUBLISHED, SEARCHES, Search, compared, heavy, side_by_side
from secateur.checkpoint import Source
from secateur.permute.assign import heuristic_groups, l1_distances, nth_largest, reassign
from secateur.permute.lsa import grown_groups
from secateur.permute.orders import kept_score

HEIGHT = 576  # of synthetic scores
# Wider than this, sorting every pair takes minutes.
WIDEST_SORTED = 2048


def converged(score: Tensor) -> Tensor:
    """The published search, its step 2 repeated until a pass gains less than 1e-4."""
    columns = score.T.contiguous()
    groups = heuristic_groups(columns, PATTERN.group)
    kept = 0.0
    while (now := kept_score(score[:, groups.flatten()], PATTERN)) > kept * (1 + 1e-4):
        kept, groups = now, reassign(columns, groups, PATTERN.kept)
    return groups.flatten()


def grown(score: Tensor) -> Tensor:
    """The first half of ``lsa``: groups grown by assignment, without passes."""
    return grown_groups(score.T.contiguous(), PATTERN.kept, PATTERN.group).flatten()


PARTS: dict[str, Search] = {
    "published, passes until they end": converged,
    "grown": grown,
    **{name: SEARCHES[name] for name in (PUBLISHED, OWN)},
}


def sort_every_pair(score: Tensor) -> float:
    """Seconds that the authors' way takes for the assignment values of all four slots."""
    columns = score.T.contiguous()
    groups = heuristic_groups(columns, PATTERN.group)
    began = time.perf_counter()
    fixed, candidates = columns[groups[:, 1:]], columns[groups[:, 0]]  # (K, M-1, R), (K, R)
    values = torch.empty(len(groups), len(groups))
    for g in range(len(groups)):
        together = torch.cat([fixed[g].expand(len(groups), -1, -1), candidates[:, None]], 1)  # (K, M, R)
        values[g] = together.transpose(1, 2).sort(-1, descending=True).values[..., : PATTERN.kept].sum((1, 2))
    spent = time.perf_counter() - began
    threshold = nth_largest(columns, groups[:, 1:], PATTERN.kept)
    closed = l1_distances(threshold, columns[groups[:, 0]])
    # The same matrix but for terms that do not depend on the assignment.
    values -= values[:, :1] + values[:1] - values[0, 0]
    closed = (closed - closed[:, :1] - closed[:1] + closed[0, 0]) / 2
    assert (values - closed).abs().max() < 1e-3 * values.abs().max()
    return 4 * spent


def measure(name: str, score: Tensor) -> None:
    """Print a line for each search."""

    def show(**line: Any) -> None:
        print(json.dumps({"score": name, "channels": score.shape[1], **line}), flush=True)

    found = compared(score, PARTS)
    show(search="none", retained=round(found["unordered"], 5))
    for search, row in found["searches"].items():
        show(search=search, retained=round(row["retained"], 5), seconds=round(median(row["seconds"]), 3))
    if score.shape[1] <= WIDEST_SORTED:
        show(search="sort every pair, no solver", seconds=round(sort_every_pair(score), 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder")
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048])
    args = parser.parse_args()
    for width in args.widths:
        measure("heavy tails", heavy(HEIGHT, width))
        if args.model:
            measure("side by side", side_by_side(Source(Path(args.model)), width))


if __name__ == "__main__":
    main()
