from functools import partial

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import InputError
from secateur.patterns import Unstructured
from secateur.recipe import Recipe
from secateur.runtime.acceleration import accelerate, cuda_milliseconds, measure
from secateur.runtime.choosing import BUCKETS
from secateur.runtime.dispatch import DispatchedLinear
from secateur.runtime.semi_structured import SemiStructuredLinear
from secateur.runtime.sparse_linear import SparseLinear
from tests import pico
from tests.cuda import TWO_OF_FOUR, AsGPU, algorithms, needs_gpu, pretend, pruned
from tests.cusparselt import CONFIGS


def linears(number=1, rows=64, columns=128, pattern=TWO_OF_FOUR):
    made = [nn.Linear(columns, rows, dtype=torch.bfloat16) for _ in range(number)]
    for seed, linear in enumerate(made):
        linear.weight.data = pruned(rows, columns, pattern=pattern, seed=seed)
    return made


class Stopped:
    """A GPU and a processor whose time only passes when work says so."""

    def __init__(self, monkeypatch):
        self.gpu, self.cpu = 0.0, 0.0
        self.waits: list[float] = []
        self.late = False  # whether the GPU begins before all is launched
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Stamp(self))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "_sleep", self.waits.append)
        monkeypatch.setattr("time.perf_counter", lambda: self.cpu)


class Stamp:
    def __init__(self, clocks):
        self.clocks, self.at = clocks, 0.0

    def record(self):
        self.at = self.clocks.gpu

    def synchronize(self):
        pass

    def query(self):
        return self.clocks.late

    def elapsed_time(self, end):
        return end.at - self.at


def test_the_clock_leaves_out_launching_first_calls_and_odd_rounds(monkeypatch):
    clocks = Stopped(monkeypatch)
    rounds = iter([50.0, 50.0, 3.0, 3.0, 99.0, 3.0, 99.0, 3.0])

    def first():
        clocks.gpu += 2 * next(rounds)
        clocks.cpu += 0.25

    assert cuda_milliseconds([[first, lambda: None]]) == [3]
    assert next(rounds, None) is None
    assert len(clocks.waits) == 6 and min(clocks.waits) > 0.25 * 2.6e9  # longer than launching, at any GPU's clock


def test_groups_of_products_take_turns_that_are_long_enough(monkeypatch):
    clocks = Stopped(monkeypatch)
    ran = []

    def product(name, milliseconds):
        def run():
            clocks.gpu += milliseconds
            ran.append(name)

        return run

    groups = [[product("a", 0.01), product("b", 0.04)], [product("c", 5.0)], [product("d", 0.025)]]
    assert cuda_milliseconds(groups) == pytest.approx([0.025, 5.0, 0.025])
    # Twice, once to see how often a turn repeats it; then the turns, of half a millisecond each if products are short.
    first, third = ["a", "b"] * 10, ["d"] * 20
    seen = ["a", "b"] * 3 + ["c"] * 3 + ["d"] * 3
    assert ran == seen + [*first, "c", *third] * 2 + (first + third) * 3  # no more of what is far behind


def test_a_turn_that_waited_for_its_launches_is_begun_anew(monkeypatch):
    clocks = Stopped(monkeypatch)
    slow = iter([0.0] * 3 + [9.0] * 2)  # the processor is held up twice, in the first round

    def product():
        held_up = next(slow, 0.0)
        clocks.late = held_up > 0
        clocks.gpu += 1.0 + held_up
        clocks.cpu += 0.5

    assert cuda_milliseconds([[product]]) == [1.0]
    first, *rest = clocks.waits[1:]
    assert rest[:2] == [2 * first, 4 * first]
    slow = iter([9.0] * 1000)  # always
    assert cuda_milliseconds([[product]]) == [10.0]


def test_every_form_is_timed_for_every_number_of_tokens(cusparselt_stand_in, tmp_path):
    clock = pretend(float, lambda tokens: tokens / 2, lambda tokens: tokens / 4)
    measured = measure(linears(), clock, algorithms(tmp_path))
    assert measured.times == {t: {"dense": t, "2:4": t / 2, "packed": t / 4} for t in BUCKETS}
    assert (measured.nbytes["dense"], measured.nbytes["2:4"]) == (16384, 9216)
    assert measured.nbytes["packed"] < 9216  # some groups keep fewer than two
    assert measured.refused == {} and measured.algorithms.keys() == set(BUCKETS)


def test_what_is_timed_are_the_products_of_all_the_linears(cusparselt_stand_in, tmp_path):
    given, timed = linears(3), []

    def milliseconds(groups):
        timed.append(groups)
        return [1.0 for _ in groups]

    measure(given, milliseconds, algorithms(tmp_path))
    # All algorithms of the library but the one that multiplies wrongly in turn, first by themselves; then all forms.
    alone = [groups for groups in timed if {len(products) for products in groups} == {1}]
    together = [groups for groups in timed if {len(products) for products in groups} == {3}]
    assert [len(groups) for groups in alone] == [CONFIGS - 1] * len(BUCKETS)
    assert [len(groups) for groups in together] == [CONFIGS - 1] * len(BUCKETS) + [3] * len(BUCKETS)
    with torch.no_grad():
        for products in (products for groups in together for products in groups):
            rows = products[0].args[0]
            for product, linear in zip(products, given, strict=True):
                torch.testing.assert_close(product(), linear(rows), atol=0.1, rtol=0.02)


def test_only_the_forms_that_are_asked_for_are_measured(cusparselt_stand_in, tmp_path):
    measured = measure(linears(), pretend(float, float), algorithms(tmp_path), ("2:4",))
    assert measured.nbytes.keys() == {"dense", "2:4"} and measured.algorithms.keys() == set(BUCKETS)
    measured = measure(linears(), pretend(float, float), algorithms(tmp_path), ("dense",))
    assert measured.nbytes.keys() == {"dense"} and measured.algorithms == {}


def test_forms_that_a_linear_cannot_have_are_refused_and_named(cusparselt_stand_in, tmp_path, monkeypatch):
    measured = measure(linears(pattern=Unstructured(0.5)), pretend(float, float), algorithms(tmp_path))
    assert measured.refused == {"2:4": "the weight is not 2:4"} and measured.nbytes.keys() == {"dense", "packed"}
    measured = measure(linears(1, 20, 64), pretend(float, float), algorithms(tmp_path))
    assert "not supported" in measured.refused["2:4"]
    monkeypatch.setattr("secateur.runtime.cusparselt.library", lambda: None)
    measured = measure(linears(), pretend(float, float), algorithms(tmp_path))
    assert measured.refused == {"2:4": "cuSPARSELt was not found"}
    half = nn.Linear(64, 64, dtype=torch.float16)
    half.weight.data = pruned(64, 64, torch.float16)
    measured = measure([half], pretend(float, float), algorithms(tmp_path))
    assert measured.refused.keys() == {"2:4", "packed"}


@pytest.mark.parametrize("wrong", [lambda out: 1.1 * out, lambda out: out * torch.nan])
def test_a_form_that_multiplies_wrongly_is_refused(wrong, cusparselt_stand_in, monkeypatch, tmp_path):
    forward = SparseLinear.forward

    def broken(self, rows):
        out = forward(self, rows)
        return wrong(out) if len(rows) == 64 else out

    monkeypatch.setattr(SparseLinear, "forward", broken)
    measured = measure(linears(), pretend(float, float), algorithms(tmp_path))
    assert measured.refused == {"packed": "its product for 64 tokens is not the dense one"}
    assert all(taken.keys() == {"dense", "2:4"} for taken in measured.times.values())


@pytest.fixture
def folders(tmp_path):
    dense = pico.save("llama-biased", tmp_path / "dense", torch.bfloat16)
    recipe = Recipe(score="magnitude", pattern="2:4", permute="none", skip=("*.1.self_attn.q_proj",))
    secateur.prune(dense, tmp_path / "pruned", recipe)
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    return tmp_path


def forms_of(choices):
    return {form for choice in choices for form in choice.forms.values()}


def test_a_model_takes_the_faster_forms_and_computes_the_same(folders, tmp_path, cusparselt_stand_in):
    tokens = pico.tokens(2, 24)
    plain, model = (secateur.load(folders / "pruned") for _ in range(2))
    clock = pretend(lambda tokens: 1.0, lambda tokens: 2.0 if tokens < 64 else 0.5)
    choices = accelerate(model, milliseconds=clock)
    found = {name: module for name, module in model.named_modules() if isinstance(module, DispatchedLinear)}
    # The queries of one block were left dense.
    assert {choice.shape: choice.layers for choice in choices} == {(32, 32): 5, (8, 32): 6, (64, 32): 6, (32, 64): 3}
    assert len(found) == 20 and "model.layers.1.self_attn.q_proj" not in found
    for choice in choices:
        assert choice.forms == {tokens: "dense" if tokens < 64 else "2:4" for tokens in BUCKETS}
    with torch.no_grad():
        difference = (model(tokens).logits - plain(tokens).logits).abs().max()
        assert difference < 0.02 * plain(tokens).logits.abs().max()
    model.save_pretrained(tmp_path / "saved")
    saved, expected = (secateur.load(folder).state_dict() for folder in (tmp_path / "saved", folders / "pruned"))
    assert saved.keys() == expected.keys() and all(torch.equal(saved[name], expected[name]) for name in saved)


def test_packed_weights_decode_and_2of4_ones_process_prompts(folders, cusparselt_stand_in):
    clock = pretend(
        lambda tokens: 1.0,
        lambda tokens: 2.0 if tokens < 64 else 0.5,
        lambda tokens: 0.5 if tokens < 64 else 2.0,
    )
    model = secateur.load(folders / "packed")
    choices = accelerate(model, milliseconds=clock)
    for choice in choices:
        assert choice.forms == {tokens: "packed" if tokens < 64 else "2:4" for tokens in BUCKETS}
        assert choice.memory < 1.13
    module = model.model.layers[0].mlp.down_proj
    assert {name: type(form) for name, form in module.forms.items()} == {
        "packed": SparseLinear,
        "2:4": SemiStructuredLinear,
    }


def test_a_model_stays_as_it_is_where_dense_is_faster(folders, cusparselt_stand_in):
    model = secateur.load(folders / "pruned")
    modules = dict(model.named_modules())
    choices = accelerate(model, milliseconds=pretend(lambda tokens: 1.0, lambda tokens: 2.0))
    assert forms_of(choices) == {"dense"}
    assert dict(model.named_modules()) == modules


def test_what_came_packed_is_a_plain_linear_where_dense_is_faster(folders, cusparselt_stand_in):
    plain, model = secateur.load(folders / "pruned"), secateur.load(folders / "packed")
    assert any(isinstance(module, SparseLinear) for module in model.modules())
    choices = accelerate(model, milliseconds=pretend(lambda tokens: 1.0, lambda tokens: 2.0))
    assert forms_of(choices) == {"dense"}
    assert {name: type(x) for name, x in model.named_modules()} == {n: type(x) for n, x in plain.named_modules()}
    expected, state = plain.state_dict(), model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("form", ["dense", "2:4", "packed"])
@pytest.mark.parametrize("name", ["pruned", "packed"])
def test_a_form_can_be_forced(name, form, folders, cusparselt_stand_in):
    model = secateur.load(folders / name)
    choices = accelerate(model, form, pretend(lambda tokens: 1.0, lambda tokens: 2.0))
    assert forms_of(choices) == {form}
    module = model.model.layers[0].mlp.down_proj
    if isinstance(module, DispatchedLinear):
        assert set(module.forms) == {form}
    else:
        assert type(module) is {"dense": nn.Linear, "packed": SparseLinear}[form]
    with pytest.raises(InputError, match="form 'sparse' is not one of auto, dense, 2:4, packed"):
        accelerate(model, "sparse")


def test_forms_on_top_of_the_loaded_one_must_leave_memory_for_the_rest(folders, cusparselt_stand_in, monkeypatch):
    clock = pretend(lambda tokens: 1.0, lambda tokens: 4.0 if tokens < 64 else 0.5)
    (choice, *_) = accelerate(secateur.load(folders / "pruned"), milliseconds=clock)
    beside = choice.layers * choice.measured.nbytes["2:4"]
    for free, forms in ((2 * beside, {"dense", "2:4"}), (2 * beside - 2, {"dense"})):
        monkeypatch.setattr("secateur.runtime.acceleration.free_memory", lambda device, free=free: free)
        (choice, *_) = accelerate(secateur.load(folders / "pruned"), milliseconds=clock)
        assert set(choice.forms.values()) == forms
    # In the place of the dense weight a sparse form saves memory.
    monkeypatch.setattr("secateur.runtime.acceleration.free_memory", lambda device: 0)
    clock = pretend(lambda tokens: 1.0, lambda tokens: 0.5)
    (choice, *_) = accelerate(secateur.load(folders / "pruned"), milliseconds=clock)
    assert set(choice.forms.values()) == {"2:4"}


def test_a_layer_that_fails_after_all_stays_as_it_was_and_is_named(folders, cusparselt_stand_in, monkeypatch):
    model = secateur.load(folders / "pruned")
    name = "model.layers.2.mlp.gate_proj"
    genuine = SemiStructuredLinear.__init__
    seen: list[torch.Tensor] = []

    def at_first(self, weight, *more):
        if weight.data_ptr() == model.get_submodule(name).weight.data_ptr():
            if seen:
                raise RuntimeError("out of memory\nin some kernel")
            seen.append(weight)
        genuine(self, weight, *more)

    monkeypatch.setattr(SemiStructuredLinear, "__init__", at_first)
    with pytest.warns(UserWarning, match=f"^{name} stays dense: out of memory$"):
        accelerate(model, milliseconds=pretend(lambda tokens: 1.0, lambda tokens: 0.5))
    assert type(model.get_submodule(name)) is nn.Linear
    assert type(model.get_submodule(name.replace("gate", "up"))) is DispatchedLinear


def test_only_linears_that_are_modules_take_part(tmp_path, cusparselt_stand_in):
    for name in ("mixtral", "gpt2"):  # experts in a stack, transposed weights
        dense = pico.save(name, tmp_path / name, torch.bfloat16)
        secateur.prune(dense, tmp_path / f"{name}-2of4", Recipe(score="magnitude", pattern="2:4", permute="none"))
        model = secateur.load(tmp_path / f"{name}-2of4")
        accelerate(model, milliseconds=pretend(lambda tokens: 1.0, lambda tokens: 0.5))
        types = [type(module) for module in model.modules()]
        assert types.count(DispatchedLinear) == (12 if name == "mixtral" else 0)


@pytest.mark.parametrize("name", ["pruned", "packed"])
def test_what_was_loaded_for_a_gpu_generates_and_says_how(name, folders, cusparselt_stand_in, monkeypatch):
    clock = pretend(lambda tokens: 1.0, lambda tokens: 0.5)
    monkeypatch.setattr("secateur.runtime.loading.accelerate", partial(accelerate, milliseconds=clock))
    monkeypatch.setattr("secateur.runtime.loading.free_memory", lambda device: 1 << 40)
    for module in ("loading", "generation"):
        monkeypatch.setattr(f"secateur.runtime.{module}.choose_device", lambda name: AsGPU("cpu"))
    result = secateur.generate(folders / name, "some words", tokens=5)
    assert result.tokens == 5 and result.kernels is None
    assert sum(choice.layers for choice in result.choices) == 20
    assert forms_of(result.choices) == {"2:4"}
    assert forms_of(secateur.generate(folders / name, "some words", tokens=5, form="dense").choices) == {"dense"}


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
def test_on_a_gpu_a_folder_runs_and_says_how(name, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, model = secateur.load(folders / "pruned"), secateur.load(folders / name, device="cuda")
    tokens = pico.tokens(2, 24)
    with torch.inference_mode():
        expected, logits = plain(tokens).logits, model(tokens.cuda()).logits.cpu()
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert sum(choice.layers for choice in model.choices) == 20
    result = secateur.generate(folders / name, "some words", tokens=5, device="cuda")
    assert result.device.startswith("cuda") and result.choices and result.kernels is None and result.graph
