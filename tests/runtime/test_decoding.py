from typing import Any

import pytest
import torch

from secateur.runtime import graphs
from secateur.runtime.decoding import Continuation
from tests import pico
from tests.cuda import needs_gpu


def generated(model, ids, steps):
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, min_new_tokens=steps)
    return expected[:, ids.shape[1] :]


def continued(run, steps):
    with torch.inference_mode():
        run.prefill()
        found = [run.ids.clone()]
        run.prepare()
        for _ in range(steps - 1):
            run.step()
            found.append(run.ids.clone())
    return torch.cat(found, 1)


@pytest.mark.parametrize(
    "name", ["llama-mha", "mistral", "gemma2", "opt", "bloom", "falcon-rw", "lfm2", "gpt-j", "mamba", "rwkv"]
)
def test_a_continuation_is_what_generate_says(name):
    model, ids = pico.build(name), pico.tokens(2, 20)
    run = Continuation(model, ids, 5)
    assert run.graph is False
    assert torch.equal(continued(run, 5), generated(model, ids, 5))


@pytest.mark.parametrize("name", pico.ALL)
def test_steps_for_a_graph_say_the_same_each_time_the_prompt_is_processed(name, monkeypatch):
    def capture(work):  # as a graph does: warm up, and repeat the very same work
        work(), work()
        return work

    monkeypatch.setattr(graphs, "capture", capture)
    model, ids = pico.build(name), pico.tokens(2, 20)
    run, expected = Continuation(model, ids, 6), generated(model, ids, 6)
    run.graph = None  # as on a GPU
    for _ in range(2):
        assert torch.equal(continued(run, 6), expected)
    if name in ("mistral", "gemma2", "gemma3", "lfm2"):
        assert run.graph is False  # windows and states of other kinds are counted in Python
    elif name not in ("bloom", "falcon-rw"):  # whose biases of attention some versions of transformers shape otherwise
        assert run.graph


@pytest.mark.parametrize("name", ["llama-mha", "gemma2", "opt"])
def test_a_prompt_that_is_repeated_is_captured_where_steps_are(name, monkeypatch):
    captured: list[object] = []

    def capture(work):
        captured.append(work)
        work(), work()
        return work

    monkeypatch.setattr(graphs, "capture", capture)
    model, ids = pico.build(name), pico.tokens(2, 20)
    run: Any = Continuation(model, ids, 6, repeated=True)
    run.graph, expected = None, generated(model, ids, 6)  # as on a GPU
    for _ in range(3):
        assert torch.equal(continued(run, 6), expected)
    assert run.prefill_graph is run.graph and len(captured) == 2 * run.graph


@pytest.mark.parametrize("possible", [0, 1])
def test_what_cannot_be_captured_runs_as_it_is(possible, monkeypatch):
    captured: list[object] = []

    def capture(work):
        work()
        if len(captured) == possible:
            raise RuntimeError("operation not permitted when stream is capturing")
        captured.append(work)
        return work

    monkeypatch.setattr(graphs, "capture", capture)
    model, ids = pico.build("llama-mha"), pico.tokens(2, 20)
    run: Any = Continuation(model, ids, 5, repeated=True)
    run.graph = None
    for _ in range(2):
        assert torch.equal(continued(run, 5), generated(model, ids, 5))
    assert (run.graph, run.prefill_graph) == (bool(possible), False)


@needs_gpu
@pytest.mark.parametrize("name", ["llama-gqa-tied", "qwen2", "opt"])
def test_on_a_gpu_a_graph_says_what_steps_say(name):
    model, ids = pico.build(name).cuda(), pico.tokens(2, 20).cuda()
    run, plain = Continuation(model, ids, 6, repeated=True), Continuation(model, ids, 6)
    plain.graph = False
    expected = continued(plain, 6)
    for _ in range(3):
        assert torch.equal(continued(run, 6), expected)
    assert (
        run.graph is run.prefill_graph is (name != "opt")
    )  # which counts positions by a mask of as many tokens as there have been
