"""Experts are found in any model, and what routes tokens to them stays dense."""

import pytest
import torch
from torch import nn

from secateur.models.blocks import blocks_of, family_of, left_dense
from secateur.models.experts import routers
from tests import pico


def test_routers_are_told_from_mlps():
    assert routers(pico.build("hunyuan-moe").model.layers[1]) == {"mlp.gate.wg"}
    # Its shared expert has as many channels as there are experts.
    assert routers(pico.build("qwen3-next").model.layers[1]) == {"mlp.shared_expert_gate"}
    assert routers(pico.build("llama-mha").model.layers[0]) == set()
    block = nn.Module()
    block.gate, block.mlp = nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 8))
    block.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    assert routers(block) == {"gate"}


@pytest.mark.parametrize("name", pico.EXPERTS)
def test_what_stays_dense_is_small(name):
    model = pico.build(name)
    blocks = blocks_of(model, family_of(model))
    left = left_dense(blocks, [])
    assert not any("experts" in kind or kind.endswith("_proj.weight") for kind in left)
    assert 0 < sum(left.values()) < 0.05
    experts = [x for block in blocks for x in block.linears if x.stack]
    assert {x.expert for x in experts} == {0, 1, 2, 3} and len({x.stack for x in experts}) == 2


@pytest.mark.parametrize("name", ["gpt-oss", "llama4", "mixtral"])
def test_an_expert_is_what_the_model_multiplies_with(name):
    """Layer by layer, however it is stored: what goes in has as many channels as the residual stream."""
    model = pico.build(name)
    block = blocks_of(model, family_of(model))[1]
    for linear in (x for x in block.linears if x.stack):
        rows, columns = block.weight(linear).shape
        wide = model.config.intermediate_size
        assert (rows, columns) == ((32, wide) if linear.name.endswith("down_proj") else (2 * wide, 32))
        stack = block.module.get_parameter(linear.tensor)
        assert torch.equal(block.weight(linear), stack[linear.expert].T if linear.transposed else stack[linear.expert])
