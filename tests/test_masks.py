import itertools

import pytest
import torch

from secateur.errors import InputError
from secateur.masks import _kth_largest, obeys, retained, select, sparsity_of
from secateur.patterns import NM, Unstructured, check_fits, parse_nm

PATTERNS = [NM(2, 4), NM(4, 8), NM(1, 4), NM(3, 4), NM(8, 16), NM(16, 32), NM(4, 4)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_nm_keeps_exactly_n_of_every_m(pattern, ties):
    score = torch.ones(6, 64) if ties else torch.rand(6, 64)
    groups = select(score, pattern).reshape(6, -1, pattern.group)
    assert (groups.sum(-1) == pattern.kept).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.29, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("levels", [2, 1000])
def test_unstructured_removes_exactly_what_was_asked(sparsity, levels):
    score = torch.randint(levels, (10, 30)).float()
    assert (~select(score, Unstructured(sparsity, "matrix"))).sum() == round(sparsity * 300)
    assert ((~select(score, Unstructured(sparsity, "row"))).sum(1) == round(sparsity * 30)).all()


@pytest.mark.parametrize(("kept", "group"), [(1, 4), (2, 4), (3, 4), (3, 6)])
def test_nm_mask_has_the_largest_score_of_all_masks(kept, group):
    score = torch.rand(5, group)
    best = [max(sum(row[i] for i in c) for c in itertools.combinations(range(group), kept)) for row in score]
    assert torch.allclose((score * select(score, NM(kept, group))).sum(1), torch.stack(best))


def test_scope_says_who_competes():
    score = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert select(score, Unstructured(0.5, "matrix")).tolist() == [[False, False], [True, True]]
    assert select(score, Unstructured(0.5, "row")).tolist() == [[False, True], [False, True]]


def test_first_of_equals_is_kept():
    assert select(torch.tensor([[1.0, 1, 2, 1]]), NM(2, 4)).tolist() == [[True, False, True, False]]


def test_mask_moves_with_rows_and_groups():
    score = torch.rand(8, 32)
    rows, groups = torch.randperm(8), torch.randperm(8)
    columns = (groups[:, None] * 4 + torch.arange(4)).flatten()
    moved = select(score[rows][:, columns], NM(2, 4))
    assert torch.equal(moved, select(score, NM(2, 4))[rows][:, columns])


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5, "row"), Unstructured(0.5, "matrix")], ids=str)
def test_obeys_sees_one_weight_too_many(pattern):
    mask = select(torch.rand(4, 16), pattern)
    assert obeys(mask, pattern)
    row, column = (~mask).nonzero()[0]
    mask[row, column] = True
    assert not obeys(mask, pattern)


def test_no_rows_and_no_columns():
    assert select(torch.empty(0, 8), NM(2, 4)).shape == (0, 8)
    assert select(torch.empty(3, 0), Unstructured(0.5, "row")).shape == (3, 0)
    assert sparsity_of(torch.empty(0, 4)) == 0


def test_retained_is_the_share_of_the_score():
    score = torch.tensor([[1.0, 3.0]])
    assert retained(score, torch.tensor([[False, True]])) == 0.75
    assert retained(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == 1


@pytest.mark.parametrize("text", ["2-4", "4:2", "0:4", "a:b", "2:4:8", ""])
def test_bad_patterns_are_refused(text):
    with pytest.raises(InputError, match="pattern"):
        parse_nm(text)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2.0, float("nan")])
def test_bad_sparsities_are_refused(sparsity):
    with pytest.raises(InputError, match="not in"):
        Unstructured(sparsity)


def test_columns_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="30 input channels are not a multiple of 4"):
        check_fits(NM(2, 4), 30)


@pytest.mark.parametrize("k", [1, 2, 500, 999, 1000])
@pytest.mark.parametrize(
    "numbers",
    [
        torch.randn(1000, generator=torch.Generator().manual_seed(0)),
        torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 1e-42,  # subnormal
        torch.cat([torch.zeros(400), -torch.zeros(300), torch.full((300,), 1e-3)]),
        torch.full((1000,), -2.5),
        torch.randn(1000, generator=torch.Generator().manual_seed(2)).exp() * 1e36,
    ],
    ids=["of both signs", "subnormal", "zeros of both signs", "equal", "large"],
)
def test_the_kth_largest_of_one_row_is_that_of_a_sort(numbers, k):
    assert _kth_largest(numbers[None], k).item() == numbers.sort(descending=True).values[k - 1].item()
