import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.errors import InputError
from tests import pico


@pytest.mark.parametrize(("prompt", "tokens"), [("a", 128), ("a" * 120, 9), ("a" * 3000, 1)])
def test_no_more_is_generated_than_the_context_holds(prompt, tokens, tmp_path):
    folder = pico.save("llama-mha", tmp_path)
    with pytest.raises(InputError, match="exceed the model's context of 128"):
        secateur.generate(folder, prompt, tokens=tokens, device="cpu")
    assert secateur.generate(folder, "a" * 120, tokens=8, device="cpu").tokens == 8


def test_a_prompt_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="half a character"):
        secateur.generate(pico.save("llama-mha", tmp_path), "a\udcff", device="cpu")


def test_logits_that_are_no_numbers_are_refused(tmp_path):
    folder = pico.save("llama-mha", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][0] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="NaN"):
        secateur.generate(folder, "a", device="cpu")
    (tmp_path / "text.txt").write_text("some words " * 50)
    with pytest.raises(InputError, match=r"NaN.* in 17 of 17 windows"):
        secateur.evaluate(folder, str(tmp_path / "text.txt"), window=32, device="cpu")
