"""After one import transformers loads packed and gathering folders; without it, it refuses them."""

import copy
import importlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, pipeline

import secateur
from secateur import Recipe
from secateur.errors import InputError
from secateur.runtime.kernels import KERNELS
from secateur.runtime.sparse_linear import SparseLinear
from tests import pico


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    dense = pico.save("llama-biased", root / "dense", torch.bfloat16)
    secateur.prune(dense, root / "pruned", Recipe(score="magnitude", sparsity=0.5))
    secateur.prune(dense, root / "gather", Recipe(score="magnitude", pattern="2:4", fold="gather"))
    secateur.pack(root / "pruned", root / "packed")
    secateur.pack(root / "gather", root / "both")
    return root


@pytest.fixture
def registered(plain_transformers):
    """As in a program that has the import; others go on without."""
    return importlib.reload(importlib.import_module("secateur.transformers"))


@pytest.mark.parametrize("kind", ["packed", "gather", "both"])
def test_auto_classes_give_what_load_gives(folders, registered, kind):
    model = AutoModelForCausalLM.from_pretrained(folders / kind, dtype="auto", device_map="auto")
    assert isinstance(model, LlamaForCausalLM)
    tokens = pico.tokens(2, 7)
    with torch.no_grad():
        expected = secateur.load(folders / kind)(tokens).logits
        assert torch.equal(model(tokens).logits, expected)
        assert torch.equal(copy.deepcopy(model)(tokens).logits, expected)
        assert torch.equal(dispatch_model(model, {"": "cpu"})(tokens).logits, expected)
    if KERNELS and kind != "gather":
        assert any(isinstance(module, SparseLinear) for module in model.modules())


def test_a_pipeline_needs_no_more_than_a_name(folders, registered):
    write = pipeline("text-generation", str(folders / "packed"))
    (found,) = write("abc", max_new_tokens=4, do_sample=False, return_full_text=False)
    assert found["generated_text"] == secateur.generate(folders / "packed", "abc", tokens=4).text


def test_servers_find_the_architecture_by_its_name(folders, registered):
    config = AutoConfig.from_pretrained(folders / "packed")
    architecture = getattr(sys.modules["transformers"], config.architectures[0])
    model = architecture.from_pretrained(
        folders / "packed", dtype="float32", attn_implementation="eager", revision="main"
    )
    assert model.dtype == torch.float32
    assert model.config._attn_implementation == "eager"


def test_what_needs_plain_weights_is_refused(folders, registered):
    with pytest.raises(InputError, match="secateur unpack"):
        AutoModelForCausalLM.from_pretrained(folders / "packed", quantization_config={"load_in_8bit": True})
    with pytest.raises(InputError, match="one device"):
        AutoModelForCausalLM.from_pretrained(folders / "packed", device_map={"model": "cpu", "lm_head": 0})


def test_a_config_within_a_config_is_no_model(folders, registered, tmp_path):
    config = json.loads((folders / "packed" / "config.json").read_text())
    inner = {"model_type": config["model_type"], "base": config["base"]}
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"base": {"model_type": "secateur-gather", "base": inner}})
    )
    with pytest.raises(InputError, match="damaged"):
        secateur.load(tmp_path)


@pytest.mark.parametrize("kind", ["packed", "gather"])
def test_transformers_by_itself_refuses_by_name(folders, plain_transformers, kind):
    with pytest.raises(ValueError, match=f"secateur-{kind}"):
        AutoModelForCausalLM.from_pretrained(folders / kind)


@pytest.mark.slow
def test_a_served_model_answers_until_it_is_stopped(folders, tmp_path):
    pytest.importorskip("fastapi")
    packed = shutil.copytree(folders / "packed", tmp_path / "packed")
    (packed / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "secateur", "serve", packed, "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert f":{port}/v1" in next(line for line in server.stderr if "serving" in line)
            body = {"model": str(packed), "messages": [{"role": "user", "content": "abc"}], "max_tokens": 5}
            request = urllib.request.Request(
                f"http://localhost:{port}/v1/chat/completions",
                json.dumps(body | {"stream": False}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 5
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
