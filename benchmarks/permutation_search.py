"""How much score each search for a channel permutation retains, and how long it takes.

    python benchmarks/permutation_search.py [MODEL] [--sizes 1024 2048] [--widths 1024 … 28672]

Scores: RIA-like with heavy tails (``heavy``), and, given a model folder, RI of real matrices of it. Quotes
the share of the score of the best half of each row that 2:4 retains. ``sort every pair`` is the authors'
way to compute the matrix of assignment values: form every group with every candidate channel and take its
largest scores. It is timed on one slot and multiplied by four.

``--widths`` gives the curve of retained score against seconds at the widths of larger models: of the synthetic score,
with ``--rows``, and, given a model, of RI of the down_proj of as many of its blocks as it takes, side by side. All
write to one residual space, so that their channels resemble each other as those of one wide matrix do.
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
from secateur.permute.assign import heuristic_groups, l1_distances, nth_largest, reassign
from secateur.permute.greedy import greedy_groups
from secateur.permute.lsa import grown_groups
from secateur.permute.orders import find_order, kept_score
from secateur.scores import relative_importance

PATTERN = NM(2, 4)
# Wider than this, the published search takes minutes.
WIDEST_PUBLISHED = 11_008


def heavy(height: int, width: int, seed: int = 0) -> Tensor:
    """A score with the tails of a real one: rows and columns of log-normal size, some outliers, RI, ‖X‖^0.5."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.randn(height, 1, generator=draw), torch.randn(1, width, generator=draw)
    weight = torch.randn(height, width, generator=draw) * (0.3 * rows).exp() * (0.4 * columns).exp()
    weight *= 1 + 3 * torch.rand(height, width, generator=draw) ** 20
    return relative_importance(weight) * (0.3 * torch.randn(width, generator=draw)).exp()


def real(folder: str) -> Iterator[tuple[str, Tensor]]:
    """RI of some matrices of a LLaMA-like checkpoint; readers of one place are stacked."""
    source = Source(Path(folder))
    for block in (5, 20):
        for names in (("mlp.down_proj",), ("mlp.gate_proj", "mlp.up_proj")):
            tensors = source.read([f"model.layers.{block}.{name}.weight" for name in names])
            stacked = torch.cat([relative_importance(weight) for weight in tensors.values()])
            yield f"block {block} {'+'.join(names)} {tuple(stacked.shape)}", stacked


def side_by_side(folder: str, width: int) -> Tensor:
    """RI of the down_proj of the first blocks of a LLaMA-like checkpoint, so many columns of them."""
    source = Source(Path(folder))
    parts: list[Tensor] = []
    while sum(part.shape[1] for part in parts) < width:
        parts += source.read([f"model.layers.{len(parts)}.mlp.down_proj.weight"]).values()
    return torch.cat([relative_importance(part) for part in parts], 1)[:, :width]


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


def measure(name: str, score: Tensor, searches: dict[str, Callable[[], Tensor]]) -> None:
    """Print what each of ``searches`` retains, and its seconds: by the clock, and of all processors."""
    whole = score.topk(score.shape[1] // 2, dim=1).values.sum(dtype=torch.float64).item()
    for label, search in searches.items():
        began = time.perf_counter(), time.process_time()
        order = search().flatten()
        spent = time.perf_counter() - began[0], time.process_time() - began[1]
        share = kept_score(score[:, order], PATTERN) / whole
        line = {"score": name, "search": label, "retained": round(share, 5)}
        print(json.dumps(line | {"seconds": round(spent[0], 3), "processor": round(spent[1], 3)}), flush=True)


def compare(name: str, score: Tensor, greedy: bool) -> None:
    columns = score.T.contiguous()
    as_it_is = torch.arange(len(columns)).reshape(-1, PATTERN.group)
    searches: dict[str, Callable[[], Tensor]] = {
        "none": lambda: as_it_is,
        "heuristic": lambda: heuristic_groups(columns, PATTERN.group),
        "published: heuristic, one pass": lambda: find_order(score, PATTERN, "lsa-published"),
        "published, passes until they end": lambda: converged(columns),
        "grown": lambda: grown_groups(columns, PATTERN.kept, PATTERN.group),
        "lsa: grown, shuffled passes": lambda: find_order(score, PATTERN),
    }
    if greedy:
        searches["greedy"] = lambda: greedy_groups(columns, as_it_is, PATTERN.kept)
        searches["greedy, 100 escapes"] = lambda: greedy_groups(columns, as_it_is, PATTERN.kept, 100)
    measure(name, score, searches)
    if greedy:
        spent = sort_every_pair(columns, heuristic_groups(columns, PATTERN.group))
        print(json.dumps({"score": name, "search": "sort every pair, no solver", "seconds": round(spent, 3)}))


def curve(name: str, score: Tensor) -> None:
    """What the searches for wide matrices retain: whole, grown only, and in communities."""
    columns, width = score.T.contiguous(), score.shape[1]
    searches: dict[str, Callable[[], Tensor]] = {
        "none": lambda: torch.arange(width),
        "heuristic": lambda: heuristic_groups(columns, PATTERN.group),
        "grown": lambda: grown_groups(columns, PATTERN.kept, PATTERN.group),
        "lsa": lambda: find_order(score, PATTERN),
        "lsa in 4 communities": lambda: find_order(score, PATTERN, communities=4),
        "lsa in 16 communities": lambda: find_order(score, PATTERN, communities=16),
    }
    if width <= WIDEST_PUBLISHED:
        searches["lsa-published"] = lambda: find_order(score, PATTERN, "lsa-published")
    measure(name, score, searches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 2048])
    parser.add_argument("--widths", type=int, nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=576)
    args = parser.parse_args()
    compare("warm-up", heavy(256, 256), greedy=True)
    for name, score in real(args.model) if args.model and args.sizes else ():
        compare(name, score, greedy=False)
    for size in args.sizes:
        compare(f"heavy {size}", heavy(size, size), greedy=size <= 2048)
    for width in args.widths:
        curve(f"heavy, {args.rows} x {width}", heavy(args.rows, width))
        if args.model:
            curve(f"side by side, {width}", side_by_side(args.model, width))


if __name__ == "__main__":
    main()
