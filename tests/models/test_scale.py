"""Scaling the channels of a place keeps the logits, and by powers of two every bit of them."""

import pytest
import torch

from secateur.models.blocks import blocks_of, family_of
from secateur.models.scale import scalable, scale_readers, shared
from secateur.models.spaces import reader_groups
from tests import pico

# Places of a block whose channels are scaled: after the norm before attention, values, after the norm before the MLP,
# and inside that.
GATED, PLAIN, RELU = 4, 3, 4
PLACES = {
    "opt": RELU,
    "opt-350m": 2,  # the residual stream goes through its norms
    "gpt2": PLAIN,
    "gpt-neox": PLAIN,
    "gpt-neox-serial": PLAIN,
    "bloom": PLAIN,
    "falcon-7b": 2,  # one norm for attention and MLP
    "falcon-40b": PLAIN,
    "falcon-rw": PLAIN,
    "mixtral": 2,  # its router reads what its experts read
    "qwen3-moe": 2,
}


@pytest.mark.parametrize("name", pico.KNOWN)
def test_scales_keep_the_logits(name):
    model, batch = pico.build(name), pico.tokens()
    family = family_of(model)
    with torch.no_grad():
        before = model(batch).logits
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    for block in blocks_of(model, family):
        places = [group for group in reader_groups(block.linears) if scalable(family, group[0], block.linears)]
        if block.prefix.endswith("0."):
            assert len(places) == PLACES.get(name, GATED)
        for group in places:
            width = block.weight(group[0]).shape[1]
            powers = shared(torch.randint(-3, 4, (width,), generator=draw).float(), family, group[0]).round()
            scale_readers(tensors, block.prefix, family, group[0], powers.exp2())
            for linear in group:
                assert torch.equal(block.stored(linear, tensors) != 0, block.weight(linear) != 0)
    model.load_state_dict(tensors)
    with torch.no_grad():
        after = model(batch).logits
    if family.unit_offset:  # 1 + weight is rounded
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * before.abs().max().item())
    else:
        assert torch.equal(after, before)


def test_nothing_is_scaled_where_nothing_is_known():
    model = pico.build("gpt-j")
    family = family_of(model)
    assert not any(scalable(family, linear, family.linears) for linear in family.linears)


def test_linears_that_are_left_out_are_not_changed():
    family = family_of(pico.build("llama-gqa-tied"))
    for left_out in ("self_attn.v_proj", "self_attn.k_proj", "mlp.up_proj"):
        linears = [linear for linear in family.linears if linear.name != left_out]
        places = [scalable(family, group[0], linears) for group in reader_groups(linears)]
        expected = {
            "self_attn.v_proj": [False, False, True, True],  # it reads with q and k, and writes what o reads
            "self_attn.k_proj": [False, True, True, True],
            "mlp.up_proj": [True, True, False, False],
        }
        assert places == expected[left_out]


def test_heads_that_share_values_share_their_mean():
    family = family_of(pico.build("llama-gqa-tied"))  # four query heads, two value heads, of 8 channels
    reader = family.readers("value")[0]
    numbers = torch.rand(32)
    mean = numbers.reshape(2, 2, 8).mean(1)
    assert torch.equal(shared(numbers, family, reader), mean.repeat_interleave(2, 0).flatten())
