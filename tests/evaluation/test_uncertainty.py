import math

import pytest
import torch

from secateur.evaluation.uncertainty import BLOCKS, block_means, interval


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
