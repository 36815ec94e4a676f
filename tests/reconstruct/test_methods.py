import itertools

import numpy as np
import pytest
import torch

from secateur.masks import obeys, select
from secateur.patterns import NM, Unstructured, parse_nm
from secateur.reconstruct.admm import masked_admm
from secateur.reconstruct.cg import masked_cg
from secateur.reconstruct.methods import RECONSTRUCTIONS, Pruned
from secateur.reconstruct.refine import refine, refined
from secateur.reconstruct.sparsegpt import sweep
from secateur.scores import sparsegpt
from secateur.stats import InputStats
from secateur.stats.gram import DAMPING, Gram, damped, output_error, shrunk
from tests import oracle


def case(rows=12, columns=32, tokens=200, seed=0):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw)
    mixing = torch.randn(columns, columns, generator=draw) * 0.3 + torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=draw) @ mixing
    return weight, inputs, damped(inputs.T @ inputs)


def published_sparsegpt(weight, gram, mask):
    """Algorithm 1 in float64, a column at a time with no blocks, the inverse recomputed for what is left."""
    weight, gram = weight.double().numpy().copy(), gram.matrix.double().numpy()
    for j in range(weight.shape[1]):
        inverse = np.linalg.inv(gram[j:, j:])
        removed = np.where(mask[:, j].numpy(), 0, weight[:, j])
        weight[:, j:] -= np.outer(removed / inverse[0, 0], inverse[0])
    return torch.from_numpy(weight) * mask


@pytest.mark.parametrize("columns", [32, 300])
def test_sparsegpt_is_the_published_algorithm(columns):
    weight, _, gram = case(columns=columns, tokens=600)
    mask = select(weight.abs(), NM(2, 4))
    ours = sweep(weight, gram, mask=mask)
    torch.testing.assert_close(ours.double(), published_sparsegpt(weight, gram, mask), atol=2e-4, rtol=1e-3)


def published_own_mask(weight, gram, kept, group):
    """N:M masks chosen group by group from the weights as they are by then."""
    work, mask = weight.double().numpy().copy(), np.zeros(weight.shape, dtype=bool)
    gram = gram.matrix.double().numpy()
    for j in range(work.shape[1]):
        inverse = np.linalg.inv(gram[j:, j:])
        if j % group == 0:
            # the diagonal of the factor for the columns ahead: what is left when those before them are gone
            pivots = [np.linalg.inv(gram[k:, k:])[0, 0] for k in range(j, j + group)]
            score = work[:, j : j + group] ** 2 / np.array(pivots)
            order = np.argsort(-score, axis=1, kind="stable")[:, :kept]
            np.put_along_axis(mask[:, j : j + group], order, True, axis=1)
        removed = np.where(mask[:, j], 0, work[:, j])
        work[:, j:] -= np.outer(removed / inverse[0, 0], inverse[0])
    return torch.from_numpy(work * mask)


def test_sparsegpt_chooses_the_published_mask():
    weight, _, gram = case()
    ours = sweep(weight, gram, pattern=NM(2, 4))
    torch.testing.assert_close(ours.double(), published_own_mask(weight, gram, 2, 4), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("columns", [64, 320])
@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("choose", ["2:4", "4:8", "given"])
def test_dead_channels_are_treated_as_published(choose, batches, columns):
    draw = torch.Generator().manual_seed(columns)
    weight = torch.randn(24, columns, generator=draw)
    mixing = torch.randn(columns, columns, generator=draw) * columns**-0.5 + torch.eye(columns)
    # Quiet inputs, so that a 1 on the diagonal of a dead channel is seen in the damping.
    inputs = 0.05 * torch.randn(8, 60, columns, generator=draw) @ mixing
    dead = torch.randperm(columns, generator=draw)[: columns // 4]
    inputs[..., dead] = 0
    stats = InputStats(columns, gram=True)
    for batch in inputs.split(8 // batches):
        stats.update(batch)
    assert (stats.sequences, stats.dead) == (8, columns // 4)
    given = select(weight.abs(), NM(2, 4))
    original, sequences = weight.double().numpy(), list(inputs.double().numpy())
    if choose == "given":
        expected = oracle.sparsegpt(original, sequences, given.numpy())
        found = sweep(weight, stats.damped, mask=given)
    else:
        pattern = parse_nm(choose)
        expected = oracle.sparsegpt(original, sequences, (pattern.kept, pattern.group))
        found = sweep(weight, stats.damped, pattern=pattern)
    assert (found[:, dead] == 0).all()
    assert torch.equal(found != 0, torch.from_numpy(expected != 0))
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(3, 6), Unstructured(0.5), Unstructured(0.6, "row")], ids=str)
def test_sparsegpt_obeys_its_pattern_over_several_blocks(pattern):
    weight, _, gram = case(columns=300, tokens=600)
    weight = sweep(weight, gram, pattern=pattern)
    assert (weight == 0).float().mean().item() == pytest.approx(pattern.sparsity, abs=0.01)
    if isinstance(pattern, NM):
        assert obeys(weight, pattern)


@pytest.mark.parametrize("scope", ["row", "matrix"])
@pytest.mark.parametrize("sparsity", [0.3, 0.997])
def test_sparsegpt_removes_exactly_what_was_asked(scope, sparsity):
    weight, _, gram = case(columns=300, tokens=600)
    pattern = Unstructured(sparsity, scope)
    pruned = sweep(weight, gram, pattern=pattern)
    assert obeys(pruned, pattern)
    zeros = (pruned == 0).sum(1) if scope == "row" else (pruned == 0).sum()
    assert (zeros == round(sparsity * (300 if scope == "row" else 3600))).all()


def test_with_channels_apart_the_score_is_that_of_wanda_squared():
    weight, _, _ = case()
    norms = torch.rand(32) + 0.5
    stats = InputStats(32, gram=True)
    stats.update(torch.diag(norms))
    damping = DAMPING * norms.square().mean()
    torch.testing.assert_close(sparsegpt(weight, stats), weight**2 * (norms**2 + damping))


def test_the_factor_is_that_of_the_inverse():
    _, _, gram = case()
    factor = gram.inverse_factor
    torch.testing.assert_close(factor.T @ factor @ gram.matrix, torch.eye(32), atol=1e-4, rtol=0)
    assert torch.equal(factor, factor.triu())


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.7)], ids=str)
def test_cg_reaches_the_least_squares_optimum(pattern):
    weight, inputs, _ = case()
    gram = Gram(inputs.T @ inputs)
    mask = select(weight.abs(), pattern)
    found = masked_cg(weight, mask, gram, steps=64)
    assert (found[~mask] == 0).all()
    for row, kept, target in zip(found, mask, weight @ inputs.T, strict=True):
        best = torch.linalg.lstsq(inputs[:, kept].double(), target.double()).solution
        torch.testing.assert_close(row[kept].double(), best, atol=1e-3, rtol=1e-3)


def test_no_cg_step_raises_the_error():
    weight, _, gram = case(tokens=20)  # fewer tokens than channels
    mask = select(weight.abs(), NM(2, 4))
    errors = [output_error(masked_cg(weight, mask, gram, steps=n), weight, gram.matrix) for n in range(12)]
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(4, 8), Unstructured(0.5)], ids=str)
def test_admm_never_ends_worse_than_its_start(pattern):
    better = 0
    for seed in range(4):
        weight, _, gram = case(seed=seed)
        mask = select(weight.abs() * gram.unit, pattern)
        found, moved = masked_admm(weight, mask, gram, pattern)
        assert obeys(found, pattern)
        assert (moved[~found] == 0).all()
        start, end = (output_error(w, weight, gram.matrix) for w in (masked_cg(weight, mask, gram), moved))
        assert end <= start
        better += end < 0.99 * start
    assert better >= 2


def test_dead_channels_and_no_tokens_at_all():
    weight, inputs, _ = case()
    inputs[:, 3] = 0
    mask = select(weight.abs(), NM(2, 4))
    silent = torch.zeros(32, 32)
    for gram in (damped(inputs.T @ inputs), damped(silent), shrunk(inputs.T @ inputs), shrunk(silent)):
        for found in (sweep(weight, gram, mask=mask), masked_cg(weight, mask, gram)):
            assert found.isfinite().all()
        assert masked_admm(weight, mask, gram, NM(2, 4))[1].isfinite().all()
    torch.testing.assert_close(masked_cg(weight, mask, damped(torch.zeros(32, 32))), weight * mask)


def test_output_error_is_that_of_the_outputs():
    weight, inputs, _ = case()
    pruned = weight * select(weight.abs(), NM(2, 4))
    expected = (inputs @ (weight - pruned).T).norm() / (inputs @ weight.T).norm()
    assert output_error(pruned, weight, inputs.T @ inputs) == pytest.approx(expected.item(), rel=1e-5)


PATTERNS = [NM(2, 4), NM(4, 8), NM(8, 32), Unstructured(0.5), Unstructured(0.7, "row")]


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_refinement_never_raises_the_error_and_keeps_the_pattern(pattern, refit):
    weight, _, gram = case(columns=160, tokens=600)
    mask = select(weight.abs() * gram.unit, pattern)
    start, errors = weight * mask, []
    moved, changed = mask, start
    for turn in range(4):
        errors.append(output_error(changed, weight, gram.matrix))
        moved, changed = refine(weight, moved, gram, pattern, changed, refit=refit, seed=turn)
        assert obeys(moved, pattern)
        assert torch.equal(moved.sum(1), mask.sum(1))
        assert (changed[~moved] == 0).all()
        if not refit:
            assert torch.equal(changed, weight * moved)
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.97 * errors[0]
    assert torch.equal(mask, select(weight.abs() * gram.unit, pattern)), "the given mask was changed"


@pytest.mark.parametrize("refit", [True, False])
def test_the_best_exchange_is_that_of_brute_force(refit):
    weight, _, gram = case(rows=6, columns=5, tokens=50)
    mask = select(torch.rand(6, 5, generator=torch.Generator().manual_seed(3)), NM(2, 5))
    _, found = refine(weight, mask, gram, NM(2, 5), refit=refit)
    for row, kept, ours in zip(weight, mask, found, strict=True):
        least = trial_error(row * kept, row, gram)
        for gone, come in itertools.product(kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]):
            trial = row * kept
            trial[gone] = 0
            pull = ((row - trial) @ gram.matrix)[come] / gram.matrix[come, come]
            trial[come] = pull if refit else row[come]
            least = min(least, trial_error(trial, row, gram))
        assert trial_error(ours, row, gram) == pytest.approx(least, rel=1e-4)


def trial_error(trial, row, gram):
    return ((trial - row) @ gram.matrix @ (trial - row)).item()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_refinement_beats_the_best_weights_of_the_given_mask(pattern):
    weight, _, gram = case(columns=160, tokens=600)
    mask = select(weight.abs() * gram.unit, pattern)
    best = masked_cg(weight, mask, gram, steps=160)
    _, changed = refined(weight, mask, gram, pattern, best, refit=True)
    assert output_error(changed, weight, gram.matrix) < 0.97 * output_error(best, weight, gram.matrix)


def test_a_mask_that_keeps_everything_or_one_group_stays():
    weight, _, gram = case(columns=16)
    for mask in (torch.ones(12, 16, dtype=torch.bool), torch.zeros(12, 16, dtype=torch.bool)):
        moved, changed = refine(weight, mask, gram, NM(2, 4))
        assert torch.equal(moved, mask)
        assert torch.equal(changed, weight * mask)


@pytest.mark.parametrize("name", RECONSTRUCTIONS)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(4, 8), Unstructured(0.5)], ids=str)
def test_every_method_gives_weights_that_obey_the_pattern_and_err_less(name, pattern):
    dense, inputs, _ = case(tokens=400)
    stats = InputStats(32, gram=True)
    stats.update(inputs)
    start = select(dense.abs(), pattern)
    mask, weight = RECONSTRUCTIONS[name](Pruned(dense, start, dense * start, stats, pattern))
    assert obeys(mask, pattern) and mask.sum() == start.sum()
    assert (weight[~mask] == 0).all()
    gram = inputs.T @ inputs
    assert output_error(weight, dense, gram) < output_error(dense * start, dense, gram)
