import itertools

import pytest
import torch

from secateur.masks import select
from secateur.patterns import NM
from secateur.permute.assign import heuristic_groups, kept_sum, l1_distances, nth_largest, reassign
from secateur.permute.greedy import greedy_groups
from secateur.permute.orders import find_order, kept_score
from secateur.permute.searches import SEARCHES

PATTERNS = [NM(2, 4), NM(1, 4), NM(3, 4), NM(4, 8), NM(8, 16), NM(1, 2)]


def heavy(rows=40, columns=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).abs() ** 3 * torch.rand(columns, generator=generator)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("search", ["none", *SEARCHES])
def test_an_order_is_a_permutation_that_retains_no_less(search, pattern):
    score = heavy()
    order = find_order(score, pattern, search)
    assert torch.equal(order.sort().values, torch.arange(32))
    assert kept_score(score[:, order], pattern) >= kept_score(score, pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_kept_score_is_what_the_best_mask_keeps(pattern):
    score = heavy()
    torch.testing.assert_close(kept_score(score, pattern), (score * select(score, pattern)).sum().item())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_closed_form_equals_sorting_every_pair(pattern):
    columns, size = heavy().T.contiguous(), pattern.group
    groups = torch.randperm(32).reshape(-1, size)
    fixed, candidates = groups[:, 1:], groups[:, 0]
    threshold = nth_largest(columns, fixed, pattern.kept)
    distances = l1_distances(threshold, columns[candidates])
    for g in range(len(groups)):
        for c in range(len(groups)):
            together = torch.cat([fixed[g], candidates[c : c + 1]])
            by_sorting = columns[together].sort(0, descending=True).values[: pattern.kept].sum()
            sure = columns[fixed[g]].sort(0, descending=True).values[: pattern.kept - 1].sum()
            closed = sure + (threshold[g].sum() + columns[candidates[c]].sum() + distances[g, c]) / 2
            torch.testing.assert_close(closed, by_sorting)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(1, 2), NM(3, 6)], ids=str)
@pytest.mark.parametrize("slot", [0, 1])
def test_a_slot_is_reassigned_as_brute_force_would(pattern, slot):
    columns = heavy(columns=5 * pattern.group, seed=slot).T.contiguous()
    groups = torch.randperm(len(columns)).reshape(-1, pattern.group)
    best = 0.0
    for assignment in itertools.permutations(range(5)):
        tried = groups.clone()
        tried[:, slot] = groups[list(assignment), slot]
        best = max(best, kept_sum(columns, tried, pattern.kept))
    found = kept_sum(columns, reassign(columns, groups, pattern.kept, [slot]), pattern.kept)
    assert found == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_retained_score_never_falls(pattern):
    columns = heavy(seed=3).T.contiguous()
    groups = heuristic_groups(columns, pattern.group)
    score = kept_sum(columns, groups, pattern.kept)
    for _ in range(4):
        groups = reassign(columns, groups, pattern.kept)
        before, score = score, kept_sum(columns, groups, pattern.kept)
        assert score >= before
    assert kept_sum(columns, greedy_groups(columns, groups, pattern.kept, 5), pattern.kept) >= score


def test_the_heuristic_deals_in_serpentine():
    columns = torch.tensor([[8.0], [7], [6], [5], [4], [3], [2], [1]])
    assert heuristic_groups(columns, 4).tolist() == [[0, 3, 4, 7], [1, 2, 5, 6]]


def test_greedy_ends_where_no_swap_gains():
    columns = heavy(rows=12, columns=12).T.contiguous()
    groups = greedy_groups(columns, torch.arange(12).reshape(-1, 4), 2)
    score = kept_sum(columns, groups, 2)
    for a, b in itertools.combinations(range(12), 2):
        swapped = groups.flatten().clone()
        swapped[[a, b]] = swapped[[b, a]]
        assert kept_sum(columns, swapped.reshape(-1, 4), 2) <= score * (1 + 1e-5)


def test_the_best_order_of_a_small_case_is_found():
    score = heavy(rows=20, columns=8, seed=4)
    best = max(
        kept_score(score[:, [*first, *(set(range(8)) - set(first))]], NM(2, 4))
        for first in itertools.combinations(range(8), 4)
    )
    assert kept_score(score[:, find_order(score, NM(2, 4))], NM(2, 4)) >= 0.99 * best


def test_lsa_retains_more_than_published_and_that_more_than_the_heuristic():
    score = heavy(128, 256)
    kept = {m: kept_score(score[:, find_order(score, NM(2, 4), m)], NM(2, 4)) for m in ["none", *SEARCHES]}
    assert kept["none"] < kept["heuristic"] < kept["lsa-published"] < kept["lsa"]


def test_communities_stay_apart():
    score = heavy(64, 64)
    order = find_order(score, NM(2, 4), communities=4)
    assert torch.equal(order.sort().values, torch.arange(64))
    one, four = (kept_score(score[:, find_order(score, NM(2, 4), communities=c)], NM(2, 4)) for c in (1, 4))
    assert kept_score(score, NM(2, 4)) < four <= one * 1.001


def test_nothing_to_choose():
    score = heavy(10, 8)
    assert find_order(score, NM(4, 4)).tolist() == list(range(8))
    assert find_order(score, NM(4, 8)).tolist() == list(range(8))
    assert find_order(score[:0], NM(2, 4)).tolist() == list(range(8))
    assert torch.equal(find_order(torch.zeros(4, 8), NM(2, 4)), torch.arange(8))


def test_greedy_keeps_the_best_that_an_escape_has_found():
    columns = heavy(rows=12, columns=16, seed=2).T.contiguous()
    start = torch.arange(16).reshape(-1, 4)
    scores = [kept_sum(columns, greedy_groups(columns, start, 2, escapes), 2) for escapes in (0, 10, 40)]
    assert scores == sorted(scores)
    assert scores[-1] > 1.002 * scores[0]
