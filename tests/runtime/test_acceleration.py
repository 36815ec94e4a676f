from functools import partial

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import InputError
from secateur.recipe import Recipe
from secateur.runtime.acceleration import accelerate, cuda_milliseconds, measure
from secateur.runtime.choosing import BUCKETS
from secateur.runtime.semi_structured import BACKENDS, SemiStructuredLinear, compress, multiply
from secateur.runtime.sparse_linear import SparseLinear
from tests import pico
from tests.cuda import AsGPU, needs_gpu, pretend, pruned


def linears(number=1, rows=64, columns=128):
    made = [nn.Linear(columns, rows, dtype=torch.bfloat16) for _ in range(number)]
    for seed, linear in enumerate(made):
        linear.weight.data = pruned(rows, columns, seed=seed)
    return made


def test_the_clock_leaves_out_warm_ups_and_odd_rounds(monkeypatch):
    now, rounds = [0.0], iter([50.0, 50.0, 3.0, 99.0, 3.0, 99.0, 3.0, 99.0, 3.0])

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            self.at = now[0]

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    def first():
        now[0] += 2 * next(rounds)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert cuda_milliseconds([first, lambda: None]) == 3
    assert next(rounds, None) is None


def test_every_form_is_timed_for_every_number_of_tokens(kernels):
    measured = measure(linears(), pretend(float, lambda tokens: tokens / 2))
    assert measured.times == {t: {"dense": t, "cusparselt": t / 2, "cutlass": t / 2} for t in BUCKETS}
    assert measured.nbytes == {"dense": 16384, "cusparselt": 9216, "cutlass": 9216}
    assert measured.refused == {}


def test_what_is_timed_are_the_products_of_all_the_linears(kernels):
    given, timed = linears(3), []

    def milliseconds(products):
        timed.append(products)
        return 1.0

    measure(given, milliseconds)
    assert len(timed) == 3 * len(BUCKETS)
    with torch.no_grad():
        for products in timed:
            rows = products[0].args[0]
            for product, linear in zip(products, given, strict=True):
                torch.testing.assert_close(product(), linear(rows), atol=0.1, rtol=0.02)


def test_backends_that_are_not_there_or_do_not_fit_are_refused_and_named(request):
    measured = measure(linears(), pretend(float, float))
    assert measured.refused.keys() == BACKENDS.keys() and "cpu" in measured.refused["cutlass"]
    assert measured.nbytes.keys() == {"dense"}
    request.getfixturevalue("kernels")
    measured = measure(linears(1, 16, 48), pretend(float, float))
    assert measured.refused == {"cutlass": "(16, 48) is not supported"}
    assert all(taken.keys() == {"dense", "cusparselt"} for taken in measured.times.values())


@pytest.mark.parametrize("wrong", [lambda out: 1.1 * out, lambda out: out * torch.nan])
def test_a_backend_that_multiplies_wrongly_is_refused(wrong, kernels, monkeypatch):
    def broken(rows, form, bias):
        out = multiply(rows, form, bias)
        return wrong(out) if type(form) is BACKENDS["cutlass"] and len(rows) == 128 else out

    monkeypatch.setattr("secateur.runtime.acceleration.multiply", broken)
    measured = measure(linears(), lambda products: 1.0)
    assert measured.refused == {"cutlass": "its product for 128 tokens is not the dense one"}
    assert all(taken.keys() == {"dense", "cusparselt"} for taken in measured.times.values())


@pytest.fixture
def folders(tmp_path):
    dense = pico.save("llama-biased", tmp_path / "dense", torch.bfloat16)
    recipe = Recipe(score="magnitude", pattern="2:4", permute="none", skip=("*.1.self_attn.q_proj",))
    secateur.prune(dense, tmp_path / "pruned", recipe)
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    return tmp_path


def test_a_model_takes_the_faster_forms_and_computes_the_same(folders, tmp_path, kernels):
    tokens = pico.tokens(2, 24)
    plain, model = (secateur.load(folders / "pruned") for _ in range(2))
    choices = accelerate(model, pretend(lambda tokens: 1.0, lambda tokens: 2.0 if tokens < 16 else 0.5))
    found = {name: module for name, module in model.named_modules() if isinstance(module, SemiStructuredLinear)}
    # The queries of one block were left dense; keys and values are too small for any backend.
    assert {choice.shape: choice.layers for choice in choices} == {(32, 32): 5, (8, 32): 6, (64, 32): 6, (32, 64): 3}
    assert len(found) == 14 and "model.layers.1.self_attn.q_proj" not in found
    for choice in choices:
        sparse = "dense" if choice.shape == (8, 32) else "cusparselt"
        assert choice.forms == dict(zip(BUCKETS, ["dense", *[sparse] * 4], strict=True))
    with torch.no_grad():
        difference = (model(tokens).logits - plain(tokens).logits).abs().max()
        assert difference < 0.02 * plain(tokens).logits.abs().max()
    model.save_pretrained(tmp_path / "saved")
    saved, expected = (secateur.load(folder).state_dict() for folder in (tmp_path / "saved", folders / "pruned"))
    assert saved.keys() == expected.keys() and all(torch.equal(saved[name], expected[name]) for name in saved)


def test_a_model_stays_as_it_is_where_dense_is_faster(folders, kernels):
    model = secateur.load(folders / "pruned")
    modules = dict(model.named_modules())
    choices = accelerate(model, pretend(lambda tokens: 1.0, lambda tokens: 2.0))
    assert {form for choice in choices for form in choice.forms.values()} == {"dense"}
    assert dict(model.named_modules()) == modules


def test_a_second_form_must_leave_memory_for_the_rest(folders, kernels, monkeypatch):
    clock = pretend(lambda tokens: 1.0, lambda tokens: 2.0 if tokens < 16 else 0.5)
    (choice, *_) = accelerate(secateur.load(folders / "pruned"), clock)
    beside = choice.layers * choice.measured.nbytes["cusparselt"]
    for free, accelerated in ((2 * beside, True), (2 * beside - 2, False)):
        monkeypatch.setattr("secateur.runtime.acceleration.free_memory", lambda linears, free=free: free)
        (choice, *_) = accelerate(secateur.load(folders / "pruned"), clock)
        assert ("cusparselt" in choice.forms.values()) == accelerated
        assert ("too little memory" in choice.measured.refused.get("cusparselt", "")) != accelerated
    # In the place of the dense weight a sparse form saves memory.
    monkeypatch.setattr("secateur.runtime.acceleration.free_memory", lambda linears: 0)
    (choice, *_) = accelerate(secateur.load(folders / "pruned"), pretend(lambda tokens: 1.0, lambda tokens: 0.5))
    assert set(choice.forms.values()) == {"cusparselt"}


def test_products_that_overflow_make_no_form_unusable_but_sparse_ones(kernels):
    linear = nn.Linear(64, 64, bias=False, dtype=torch.float16)
    linear.weight = nn.Parameter(pruned(64, 64, torch.float16).sign() * 60000, requires_grad=False)
    measured = measure([linear], lambda products: 1.0)
    assert measured.nbytes.keys() == {"dense"} and measured.refused.keys() == {"cusparselt", "cutlass"}


def test_a_layer_that_fails_after_all_stays_dense_and_is_named(folders, kernels, monkeypatch):
    model = secateur.load(folders / "pruned")
    name = "model.layers.2.mlp.gate_proj"
    seen: list[str] = []

    def at_first(weight, backend):
        if weight is model.get_submodule(name).weight:
            if seen:
                raise RuntimeError("out of memory\nin some kernel")
            seen.append(backend)
        return compress(weight, backend)

    monkeypatch.setattr("secateur.runtime.acceleration.compress", at_first)
    with pytest.warns(UserWarning, match=f"^{name} stays dense: out of memory$"):
        accelerate(model, pretend(lambda tokens: 1.0, lambda tokens: 0.5))
    assert type(model.get_submodule(name)) is nn.Linear
    assert type(model.get_submodule(name.replace("gate", "up"))) is SemiStructuredLinear


def test_only_what_can_be_compressed_takes_part(tmp_path, kernels):
    for name in ("mixtral", "gpt2"):  # experts in a stack, transposed weights
        dense = pico.save(name, tmp_path / name, torch.bfloat16)
        secateur.prune(dense, tmp_path / f"{name}-2of4", Recipe(score="magnitude", pattern="2:4", permute="none"))
        model = secateur.load(tmp_path / f"{name}-2of4")
        accelerate(model, pretend(lambda tokens: 1.0, lambda tokens: 0.5))
        kinds = [type(module) for module in model.modules()]
        assert kinds.count(SemiStructuredLinear) == (12 if name == "mixtral" else 0)


@pytest.mark.parametrize("name", ["pruned", "packed"])
def test_what_was_loaded_for_a_gpu_generates_and_says_how(name, folders, kernels, monkeypatch):
    clock = pretend(lambda tokens: 1.0, lambda tokens: 0.5)
    monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=clock))
    for module in ("loading", "generation"):
        monkeypatch.setattr(f"secateur.runtime.{module}.choose_device", lambda name: AsGPU("cpu"))
    result = secateur.generate(folders / name, "some words", tokens=5)
    assert result.tokens == 5 and result.kernels is None
    assert sum(choice.layers for choice in result.choices) == 20
    assert {choice.forms[1] for choice in result.choices if choice.shape != (8, 32)} == {"cusparselt"}


def test_everything_moves_to_the_device(tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense", torch.bfloat16)
    secateur.prune(dense, tmp_path / "out", Recipe(score="magnitude", pattern="2:4", fold="gather"))
    secateur.pack(tmp_path / "out", tmp_path / "packed")
    for folder in (tmp_path / "out", tmp_path / "packed"):
        model = secateur.load(folder, device="meta")  # stands in for a GPU
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert all(tensor.is_meta for tensor in tensors.values())
        assert sum(name.endswith(".order") for name in tensors) == 6
        assert not any(isinstance(module, SparseLinear) for module in model.modules())


def test_a_device_that_is_not_there_is_refused_before_any_work(tmp_path):
    for run in (secateur.load, lambda folder, device: secateur.generate(folder, "a", device=device)):
        with pytest.raises(InputError, match="device 'cuda:99' cannot be used"):
            run(tmp_path / "nowhere", device="cuda:99")


@needs_gpu
@pytest.mark.parametrize("name", ["pruned", "packed"])
def test_on_a_gpu_a_folder_runs_and_says_how(name, folders):
    plain, model = secateur.load(folders / "pruned"), secateur.load(folders / name, device="cuda")
    tokens = pico.tokens(2, 24)
    with torch.inference_mode():
        expected, logits = plain(tokens).logits, model(tokens.cuda()).logits.cpu()
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert sum(choice.layers for choice in model.choices) == 20
    result = secateur.generate(folders / name, "some words", tokens=5, device="cuda")
    assert result.device.startswith("cuda") and result.choices and result.kernels is None
