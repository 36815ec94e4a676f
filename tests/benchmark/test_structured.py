import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur.benchmark.structured import half_width, half_width_model
from secateur.cli import main
from secateur.errors import InputError
from secateur.shrinkage import Shrinkage
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


def test_a_shrunk_model_is_timed_beside_its_dense_one(tmp_path, capsys):
    dense = pico.save("llama-mha", tmp_path / "dense", torch.bfloat16)
    (tmp_path / "text.txt").write_text("all that is written here is read by a byte at a time. " * 20)
    given = Shrinkage(calibration=str(tmp_path / "text.txt"), samples=2, length=16)
    secateur.shrink(dense, tmp_path / "shrunk", given)
    words = [str(dense), "--shrunk", str(tmp_path / "shrunk"), "--batch", "1", "2", "--length", "8", "--tokens", "2"]
    with pytest.raises(SystemExit) as end:
        main(["bench", *words, "--rounds", "2", "--quiet", "--device", "cpu"])
    assert not end.value.code
    said = capsys.readouterr().out
    assert "decode, tokens/s" in said and "shrunk" in said and "MB" not in said
    result = secateur.bench(
        dense, shrunk=tmp_path / "shrunk", batch=[1, 2], length=[8], tokens=2, rounds=2, device="cpu"
    )
    assert {(row.workload.phase, row.workload.batch) for row in result.structured} == {
        (phase, batch) for phase in ("prefill", "decode") for batch in (1, 2)
    }
    assert not result.modules and not result.end_to_end


def test_a_shrunk_model_of_another_kind_is_refused(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense", torch.bfloat16)
    config = pico.ALL["llama-mha"]()
    config.max_position_embeddings = 64
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="has 64 tokens of context, and the model beside it 128"):
        secateur.bench(dense, shrunk=tmp_path / "other", batch=[1], length=[8], tokens=2, device="cpu")
    with pytest.raises(InputError, match="give one"):
        secateur.bench(dense, shrunk=tmp_path / "other", structured=True)
