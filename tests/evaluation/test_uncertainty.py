import itertools
import math

import pytest
import torch

from secateur.evaluation.uncertainty import BLOCKS, block_means, interval, mcnemar, paired_interval


def means(values, per_window=1.0):
    return block_means(values * per_window, torch.full((len(values),), per_window, dtype=torch.float64))


def draws(windows, correlation=0.0, runs=1000):
    """Standard normal sequences ``(runs, windows)`` in which neighbours are correlated."""
    noise = torch.randn(runs, windows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [noise[:, 0]]
    for step in noise.T[1:]:
        values.append(correlation * values[-1] + math.sqrt(1 - correlation**2) * step)
    return torch.stack(values, dim=1)


def coverage(samples, blocks_of):
    intervals = [interval(row.mean().item(), blocks_of(row)) for row in samples]
    return sum(between is not None and between[0] <= 0 <= between[1] for between in intervals) / len(intervals)


@pytest.mark.parametrize("windows", [5, 12, 30, 120])
def test_the_interval_holds_the_truth_as_often_as_it_says(windows):
    assert coverage(draws(windows), means) == pytest.approx(0.95, abs=0.02)


def test_blocks_allow_for_windows_that_resemble_their_neighbours():
    samples = draws(600, correlation=0.6, runs=500)
    assert coverage(samples, lambda row: row.tolist()) < 0.75  # each window taken as a draw of its own
    assert coverage(samples, means) > 0.91


def test_blocks_of_unequal_windows_weigh_by_their_tokens():
    totals = torch.tensor([10.0, 30.0, 4.0], dtype=torch.float64)
    counts = torch.tensor([5.0, 10.0, 1.0], dtype=torch.float64)
    assert block_means(totals, counts) == pytest.approx((2.0, 3.0, 4.0))
    assert len(means(torch.arange(1000, dtype=torch.float64), 7.0)) == BLOCKS
    assert sum(means(torch.arange(60, dtype=torch.float64))) / BLOCKS == pytest.approx(29.5)


def test_a_few_blocks_say_nothing():
    assert interval(1.0, [1.0, 1.1, 0.9]) is None
    assert interval(1.0, [1.0, 1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_mcnemar_counts_the_ways_to_be_as_uneven():
    for number in range(11):
        sums = [sum(signs) for signs in itertools.product((-1, 1), repeat=number)]
        for gained in range(number + 1):
            as_uneven = sum(abs(one) >= abs(2 * gained - number) for one in sums)
            assert mcnemar(gained, number - gained) == pytest.approx(as_uneven / len(sums), rel=1e-12)
    assert 0 < mcnemar(4000, 4500) < 1e-7
    assert mcnemar(0, 20_000) == 0  # less than the least number


def test_the_interval_leaves_zero_out_just_where_the_test_does():
    for gained, lost in itertools.product(range(25), repeat=2):
        low, high = paired_interval(gained, lost, 100)
        assert low <= (gained - lost) / 100 <= high
        assert (low > 0 or high < 0) == (mcnemar(gained, lost) < 0.05)
        assert paired_interval(lost, gained, 100) == pytest.approx((-high, -low), abs=1e-9)
    # Clopper and Pearson's interval of 8 in 10 is from 0.4439 to 0.9748.
    assert paired_interval(8, 2, 10) == pytest.approx((2 * 0.44390 - 1, 2 * 0.97479 - 1), abs=1e-4)
    low, high = paired_interval(3000, 2000, 10_000)
    assert (low, high) == pytest.approx((0.1 - 0.0136, 0.1 + 0.0136), abs=2e-4)  # where it is the normal one
