import pytest
import torch

from secateur.benchmark.structured import half_width, half_width_model
from secateur.errors import InputError
from tests import pico


@pytest.mark.parametrize("name", ["llama-mha", "llama-gqa-tied", "llama-biased", "qwen3"])
def test_a_model_of_half_the_width_has_half_the_heads_and_channels(name):
    config = pico.ALL[name]()
    model = half_width_model(config, torch.bfloat16, torch.device("cpu"))
    block, head = model.model.layers[0], getattr(config, "head_dim", None) or 8
    assert block.mlp.down_proj.weight.shape == (32, 32)
    assert block.self_attn.o_proj.weight.shape == (32, 2 * head)
    assert block.self_attn.k_proj.weight.shape == (max(1, config.num_key_value_heads // 2) * head, 32)
    assert model(pico.tokens()).logits.isfinite().all()
    assert pico.ALL[name]().to_dict() == config.to_dict(), "the config it is made from stays as it was"


def test_what_has_no_such_width_is_refused():
    with pytest.raises(InputError, match="needs an even intermediate_size; its config has None"):
        half_width(pico.ALL["gpt2"]())
