import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.devices import threads
from secateur.patterns import NM
from secateur.permute import lsa, shortlist
from secateur.permute.assign import heuristic_groups, kept_sum, l1_distances, nth_largest, reassign
from secateur.permute.lsa import FEW, LISTED, MOST_PASSES, STEPS, assigned, grown_groups, reassign_shuffled
from secateur.permute.orders import find_order

PATTERNS = [NM(2, 4), NM(1, 4), NM(3, 4), NM(4, 8), NM(1, 2)]


def heavy(rows, columns, seed=0):
    """Tails, and rows and columns of different size, as the scores of real weights have."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.randn(rows, 1, generator=draw).mul(0.3).exp() * torch.randn(columns, generator=draw).mul(0.4).exp()
    return torch.randn(rows, columns, generator=draw).abs() ** 1.5 * size


def correlated(rows, columns, seed=0):
    """Rows that resemble each other, as those of real weights do."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, rows, generator=draw) @ torch.randn(rows, columns, generator=draw)).abs()


def slot(columns, pattern, number=0):
    """The fixed thresholds and the candidates of one slot of the groups that the heuristic deals."""
    groups = heuristic_groups(columns, pattern.group)
    fixed = torch.cat([groups[:, :number], groups[:, number + 1 :]], 1)
    return nth_largest(columns, fixed, pattern.kept), columns[groups[:, number]]


def retained(thresholds, candidates, chosen):
    return torch.maximum(thresholds, candidates[chosen]).sum(dtype=torch.float64).item()


def centred(values):
    """What is left of a matrix without what depends on the row or on the column alone."""
    return values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()


# ---------------------------------------------------------------- which channels are valued


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def precision(request, monkeypatch):
    monkeypatch.setattr(shortlist, "has_fast_bfloat16", lambda: request.param)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("score", [heavy, correlated])
def test_products_are_the_smaller_of_two_scores(precision, score, pattern):
    thresholds, candidates = slot(score(200, 800).T.contiguous(), pattern)
    ours, theirs = (factors.double() for factors in shortlist._factors(thresholds, candidates))
    lost, distances = centred(ours @ theirs.T).flatten(), centred(-l1_distances(thresholds, candidates)).flatten()
    assert torch.corrcoef(torch.stack([lost, distances.double()]))[0, 1] > 0.96


@pytest.mark.parametrize("scale", [1, 1e-30, 1e30])
def test_products_are_exact_in_any_order(precision, scale):
    thresholds, candidates = slot(heavy(3000, 400).T.contiguous() * scale, NM(2, 4))
    ours, theirs = shortlist._factors(thresholds, candidates)
    assert torch.equal(ours, ours.round()) and torch.equal(theirs, theirs.round())
    most = ours.double().norm(dim=1).max() * theirs.double().norm(dim=1).max()
    assert 2**17 < most < 2**24
    assert torch.equal((ours.float() @ theirs.float().T).double(), ours.double() @ theirs.double().T)


def test_the_best_are_listed_and_the_own():
    thresholds, candidates = slot(heavy(300, 800).T.contiguous(), NM(2, 4))
    listed = shortlist.shortlist(thresholds, candidates, LISTED)
    own = torch.arange(200)
    assert listed.shape == (200, LISTED) and (listed.diff(dim=1) > 0).all()
    assert (listed == own[:, None]).any(1).all()
    distances = centred(l1_distances(thresholds, candidates))
    best = (distances - distances.topk(LISTED, 0).values[-1]).argmax(1)
    assert (listed == best[:, None]).any(1).double().mean() > 0.95


def test_what_is_good_for_every_group_does_not_fill_the_lists():
    """A few channels are large just where all groups are small: only some of the groups can have them."""
    draw = torch.Generator().manual_seed(0)
    where = torch.rand(256, generator=draw) < 0.5
    thresholds = torch.rand(200, 256, generator=draw) * torch.where(where, 1, 0.1)
    candidates = torch.rand(200, 256, generator=draw)
    candidates[:40] *= torch.where(where, 0.1, 1)
    listed = shortlist.shortlist(thresholds, candidates, LISTED)
    assert (listed.flatten().bincount(minlength=200) >= LISTED // 4).double().mean() > 0.9


# ---------------------------------------------------------------- the assignment


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.sampled_from([0.0, 1e-30, 1.0, 1e30]), st.integers(0, 99))
def test_an_assignment_takes_every_candidate_once_and_never_loses(many, rows, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    count = many * FEW // 2 + 1  # from few to more than few
    thresholds, candidates = torch.randint(4, (2, count, rows), generator=draw) * scale  # with ties, and rows of zeros
    chosen = assigned(thresholds, candidates)
    assert torch.equal(chosen.sort().values, torch.arange(count))
    before, after = (retained(thresholds, candidates, which) for which in (torch.arange(count), chosen))
    assert after >= before * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_few_groups_are_assigned_as_brute_force_would(seed):
    thresholds, candidates = torch.rand(2, 5, 30, generator=torch.Generator().manual_seed(seed))
    each = torch.maximum(thresholds[:, None], candidates).sum(2)
    best = max(retained(thresholds, candidates, list(order)) for order in itertools.permutations(range(5)))
    found = retained(thresholds, candidates, assigned(thresholds, candidates))
    assert found >= best - 5 * (each.max() - each.min()) / STEPS


@pytest.mark.parametrize("score", [heavy, correlated])
def test_listed_candidates_gain_what_all_would(precision, score, monkeypatch):
    thresholds, candidates = slot(score(256, 1024).T.contiguous(), NM(2, 4))
    here = retained(thresholds, candidates, torch.arange(256))
    listed = retained(thresholds, candidates, assigned(thresholds, candidates)) - here
    monkeypatch.setattr(lsa, "FEW", 256)
    everyone = retained(thresholds, candidates, assigned(thresholds, candidates)) - here
    assert 0.985 * everyone < listed <= 1.001 * everyone


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize("score", [heavy, correlated])
def test_the_search_retains_what_it_would_with_all_channels_valued(score, monkeypatch):
    columns = score(256, 1024).T.contiguous()
    dealt = kept_sum(columns, heuristic_groups(columns, 4), 2)
    listed = kept_sum(columns, find_order(columns.T, NM(2, 4)).reshape(-1, 4), 2) - dealt
    monkeypatch.setattr(lsa, "FEW", 256)
    everyone = kept_sum(columns, find_order(columns.T, NM(2, 4)).reshape(-1, 4), 2) - dealt
    assert listed > 0.98 * everyone


def test_no_pass_loses():
    columns = correlated(64, 512).T.contiguous()
    groups = torch.arange(512).reshape(-1, 4)
    score = kept_sum(columns, groups, 2)
    for seed in range(4):
        groups = reassign_shuffled(columns, groups, 2, seed)
        before, score = score, kept_sum(columns, groups, 2)
        assert score >= before


def test_an_order_does_not_depend_on_the_number_of_threads(precision):
    score = heavy(400, 512)
    orders = []
    for number in (1, 2, 3):
        with threads(number):
            orders.append(find_order(score, NM(2, 4)))
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_an_order_does_not_depend_on_the_unit_of_the_score(scale):
    score = heavy(100, 512)
    assert torch.equal(find_order(score * scale, NM(2, 4)), find_order(score, NM(2, 4)))


def test_growing_puts_channels_where_the_group_is_small():
    left, right = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    columns = torch.stack([3 * left, 3 * right, 2 * left, 2 * right])
    assert {frozenset(g) for g in grown_groups(columns, 1, 2).tolist()} == {frozenset({0, 3}), frozenset({1, 2})}


def test_shuffled_slots_find_what_passes_over_the_same_slots_do_not():
    shuffled = same = 0.0
    for seed in range(6):
        columns = correlated(rows=64, columns=128, seed=seed).T.contiguous()
        groups = grown_groups(columns, 2, 4)
        shuffled += kept_sum(columns, reassign_shuffled(columns, groups, 2, seed=0), 2)
        for _ in range(MOST_PASSES):
            groups = reassign(columns, groups, 2)
        same += kept_sum(columns, groups, 2)
    assert shuffled > 1.001 * same
