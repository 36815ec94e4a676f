import pytest
import torch

from secateur.masks import select
from secateur.patterns import NM
from secateur.pruning.linear import LinearPruning
from secateur.recipe import Recipe
from secateur.scores import SCORES
from secateur.stats import InputStats


def pruned(tokens: int) -> tuple[LinearPruning, torch.Tensor, InputStats]:
    draw = torch.Generator().manual_seed(0)
    weight, stats = torch.randn(12, 16, generator=draw), InputStats(16)
    stats.update(torch.randn(tokens, 16, generator=draw) * torch.logspace(-2, 2, 16))
    recipe = Recipe(score="wanda", pattern="2:4")
    return LinearPruning("some.linear", weight, NM(2, 4), stats, recipe, torch.device("cpu")), weight, stats


@pytest.mark.parametrize("tokens", [1, 31, 32])
def test_a_linear_that_sees_a_few_tokens_is_pruned_by_its_weights_alone(tokens):
    pruning, weight, stats = pruned(tokens)
    score = "ri" if tokens < 32 else "wanda"
    assert pruning.result().score == score
    assert torch.equal(pruning.weight != 0, select(SCORES[score].function(weight, stats, 0.5), NM(2, 4)))
