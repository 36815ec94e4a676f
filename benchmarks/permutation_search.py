"""How much score each search for a channel permutation retains, and how long it takes.

    python benchmarks/permutation_search.py [MODEL] [--sizes 1024 2048] [--wide]

Scores: RIA-like with heavy tails (``heavy``), and, given a model folder, RI of real matrices of it. Quotes
the share of the score of the best half of each row that 2:4 retains. ``sort every pair`` is the authors'
way to compute the matrix of assignment values: form every group with every candidate channel and take its
largest scores. It is timed on one slot and multiplied by four. ``--wide`` adds a 4096 x 4096 pass.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from secateur.checkpoint import Source
from secateur.patterns import NM
from secateur.permute.assign import grown_groups, heuristic_groups, l1_distances, nth_largest, reassign
from secateur.permute.greedy import greedy_groups
from secateur.permute.orders import find_order, kept_score
from secateur.scores import relative_importance

PATTERN = NM(2, 4)


def heavy(size: int, seed: int = 0) -> Tensor:
    """A score with the tails of a real one: rows and columns of log-normal size, some outliers, RI, ‖X‖^0.5."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.randn(size, 1, generator=draw), torch.randn(1, size, generator=draw)
    weight = torch.randn(size, size, generator=draw) * (0.3 * rows).exp() * (0.4 * columns).exp()
    weight *= 1 + 3 * torch.rand(size, size, generator=draw) ** 20
    return relative_importance(weight) * (0.3 * torch.randn(size, generator=draw)).exp()


def real(folder: str) -> Iterator[tuple[str, Tensor]]:
    """RI of some matrices of a LLaMA-like checkpoint; readers of one place are stacked."""
    source = Source(Path(folder))
    for block in (5, 20):
        for names in (("mlp.down_proj",), ("mlp.gate_proj", "mlp.up_proj")):
            tensors = source.read([f"model.layers.{block}.{name}.weight" for name in names])
            stacked = torch.cat([relative_importance(weight) for weight in tensors.values()])
            yield f"block {block} {'+'.join(names)} {tuple(stacked.shape)}", stacked


def converged(columns: Tensor) -> Tensor:
    """The published search, its step 2 repeated until a pass gains less than 1e-4."""
    groups = heuristic_groups(columns, PATTERN.group)
    score = 0.0
    while (now := kept_score(columns[groups.flatten()].T, PATTERN)) > score * (1 + 1e-4):
        score, groups = now, reassign(columns, groups, PATTERN.kept)
    return groups


def sort_every_pair(columns: Tensor, groups: Tensor) -> float:
    """Seconds that the authors' way takes for the assignment values of all four slots."""
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


def measure(name: str, score: Tensor, greedy: bool) -> None:
    columns = score.T.contiguous()
    half = score.shape[1] // 2
    whole = score.topk(half, dim=1).values.sum(dtype=torch.float64).item()
    as_it_is = torch.arange(len(columns)).reshape(-1, PATTERN.group)
    searches: dict[str, Callable[[], Tensor]] = {
        "none": lambda: as_it_is,
        "heuristic": lambda: heuristic_groups(columns, PATTERN.group),
        "published: heuristic, one pass": lambda: find_order(score, PATTERN, "lsa-published"),
        "published, passes until they end": lambda: converged(columns),
        "grown": lambda: grown_groups(columns, PATTERN.kept, PATTERN.group),
        "lsa: grown, shuffled passes": lambda: find_order(score, PATTERN),
        "lsa in 4 communities": lambda: find_order(score, PATTERN, communities=4),
    }
    if greedy:
        searches["greedy"] = lambda: greedy_groups(columns, as_it_is, PATTERN.kept)
        searches["greedy, 100 escapes"] = lambda: greedy_groups(columns, as_it_is, PATTERN.kept, 100)
    for label, search in searches.items():
        began = time.perf_counter()
        order = search().flatten()
        spent = time.perf_counter() - began
        share = kept_score(score[:, order], PATTERN) / whole
        print(json.dumps({"score": name, "search": label, "retained": round(share, 5), "seconds": round(spent, 3)}))
    if greedy:
        spent = sort_every_pair(columns, heuristic_groups(columns, PATTERN.group))
        print(json.dumps({"score": name, "search": "sort every pair, no solver", "seconds": round(spent, 3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 2048])
    parser.add_argument("--wide", action="store_true")
    args = parser.parse_args()
    measure("warm-up", heavy(256), greedy=True)
    for name, score in real(args.model) if args.model else ():
        measure(name, score, greedy=False)
    for size in args.sizes:
        measure(f"heavy {size}", heavy(size), greedy=True)
    if args.wide:
        measure("heavy 4096", heavy(4096), greedy=False)


if __name__ == "__main__":
    main()
