import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.checkpoint.sparse import pack, pack_int4, pack_int8
from secateur.masks import select
from secateur.patterns import NM, Unstructured
from secateur.recipe import Recipe
from secateur.runtime.kernels import KERNELS
from secateur.runtime.sparse_experts import SparseExperts
from secateur.runtime.sparse_linear import MOST_TOKENS, TILE_ROWS, SparseLinear
from tests import pico

SETS = [*KERNELS, None]  # without any, torch does it all
NAMES = [kernels.name if kernels else "torch" for kernels in SETS]
# What is kept, and how: dense weights have no mask, where their format allows that.
KINDS = ["bfloat16", "int8", "int4", "dense int8", "dense int4"]


def packed_weight(rows, columns, kind, pattern=None, group=64):
    torch.manual_seed(rows * columns)
    weight = torch.randn(rows, columns)
    if not kind.startswith("dense"):
        weight = weight.where(select(weight.abs(), pattern or Unstructured(0.5)), 0)
    weight = weight.bfloat16()
    if kind == "bfloat16":
        return pack(weight)
    return pack_int8(weight, group) if kind.endswith("int8") else pack_int4(weight, group)


def sparse_linear(rows, columns, kind, pattern=None, bias=False, kernels=SETS[0]):
    packed = packed_weight(rows, columns, kind, pattern)
    linear = SparseLinear(packed, nn.Parameter(torch.randn(rows)) if bias else None)
    if kernels is not linear.kernels:
        linear.kernels = kernels
    return linear, packed


def exact(packed):
    """The weight in float64, before any rounding to the dense type."""
    return packed.to(torch.float32).dense().double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", SETS, ids=NAMES)
@pytest.mark.parametrize("columns", [8, 32, 72, 160, 576])
@pytest.mark.parametrize("tokens", [0, 1, 3, 8, 9, MOST_TOKENS, MOST_TOKENS + 1])
def test_it_is_the_dense_product(columns, tokens, kernels, kind):
    linear, packed = sparse_linear(37, columns, kind, kernels=kernels)
    inputs = torch.randn(tokens, columns)
    for dtype, tolerance in ((torch.float32, 2e-6 if kind == "bfloat16" else 1e-4), (torch.bfloat16, 5e-3)):
        given = inputs.to(dtype)
        weight = exact(packed)
        if kernels is None or tokens > MOST_TOKENS:
            weight = weight.to(dtype).double()
        expected = given.double() @ weight.T
        scale = given.double().norm(dim=-1, keepdim=True) * weight.norm(dim=-1)  # what rounding errors grow with
        out = linear(given)
        assert out.dtype == dtype
        assert ((out.double() - expected).abs() <= tolerance * scale + 1e-12).all()


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(16, 32), NM(1, 8), NM(1, 1), Unstructured(0.97)], ids=str)
@pytest.mark.parametrize("kernels", KERNELS, ids=NAMES[:-1])
def test_any_pattern_is_multiplied(pattern, kernels):
    for kind in KINDS[:3]:
        linear, packed = sparse_linear(50, 96, kind, pattern, kernels=kernels)
        inputs = torch.randn(1, 96)
        torch.testing.assert_close(linear(inputs).double(), inputs.double() @ exact(packed).T, atol=5e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(value, kind):
    linear, _ = sparse_linear(3, 64, kind, NM(1, 1))
    inputs = torch.randn(2, 64)
    inputs[1, 5] = value
    assert linear(inputs).isfinite().all(1).tolist() == [True, False]


@pytest.mark.parametrize("kernels", KERNELS, ids=NAMES[:-1])
def test_the_largest_group_does_not_overflow(kernels):
    for pack_integers in (pack_int8, pack_int4):
        linear = SparseLinear(pack_integers(torch.ones(2, 1024), 512))
        linear.kernels = kernels
        assert linear(torch.ones(1, 1024)).tolist() == [[pytest.approx(1024, rel=1e-2)] * 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", KERNELS, ids=NAMES[:-1])
def test_every_set_expands_to_the_very_same_weight(kernels, kind):
    for columns in (8, 45, 160, 224):
        linear, packed = sparse_linear(37, columns, kind, kernels=kernels)
        for dtype in (torch.bfloat16, torch.float32):
            out = torch.full((20, columns), torch.nan, dtype=dtype)
            kernels.expand(out.data_ptr(), dtype == torch.bfloat16, 7, 27, *linear._matrix())
            assert torch.equal(out, packed.to(dtype).dense()[7:27])


@pytest.mark.parametrize("kernels", KERNELS, ids=NAMES[:-1])
def test_rows_are_the_same_on_any_number_of_threads(kernels):
    threads = torch.get_num_threads()
    try:
        for kind in KINDS:
            linear, _ = sparse_linear(TILE_ROWS + 37, 512, kind, kernels=kernels)
            for inputs in (torch.randn(2, 512), torch.randn(2, 512).bfloat16()):
                products = []
                for number in (1, 2, 3):
                    torch.set_num_threads(number)
                    products.append(linear(inputs))
                assert torch.equal(products[0], products[1]) and torch.equal(products[0], products[2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kernels", SETS, ids=NAMES)
def test_many_tokens_bias_and_shape(kernels):
    linear, packed = sparse_linear(TILE_ROWS + 5, 64, kind="bfloat16", bias=True, kernels=kernels)
    inputs = torch.randn(2, 3, MOST_TOKENS, 64)
    expected = nn.functional.linear(inputs, packed.to(torch.float32).dense(), linear.bias)
    torch.testing.assert_close(linear(inputs), expected)
    torch.testing.assert_close(linear(inputs[0, 0, :1]), expected[0, 0, :1])


def test_gradients_reach_the_inputs():
    linear, packed = sparse_linear(8, 32, kind="bfloat16")
    inputs = torch.randn(1, 32, requires_grad=True)
    linear(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, packed.to(torch.float32).dense().sum(0, keepdim=True))


@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_and_saves_as_the_linear_it_stands_for(kind):
    linear, packed = sparse_linear(12, 40, kind, bias=True)
    inputs = torch.randn(1, 40)
    cast = copy.deepcopy(linear).to(torch.float16).to(torch.float32)
    torch.testing.assert_close(cast(inputs) - cast.bias, linear(inputs) - linear.bias)
    plain = nn.Linear(40, 12)
    plain.load_state_dict(linear.state_dict())
    assert torch.equal(plain.weight, packed.dense())


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_never_get_addresses_of_another_device(kind):
    linear, packed = sparse_linear(12, 40, kind, bias=True)
    inputs = torch.randn(3, 40)
    moved = copy.deepcopy(linear).to("meta")
    assert moved(inputs.to("meta")).shape == (3, 12)
    for module, given in ((moved, inputs), (linear, inputs.to("meta"))):
        with contextlib.suppress(RuntimeError, NotImplementedError):  # torch itself does not always mind
            assert module(given).is_meta
    assert torch.equal(linear(inputs), SparseLinear(packed, linear.bias)(inputs))


@pytest.fixture
def folders(tmp_path):
    dense = pico.save("llama-biased", tmp_path / "dense", torch.bfloat16)
    secateur.prune(dense, tmp_path / "pruned", Recipe(score="magnitude", sparsity=0.5))
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    secateur.pack(tmp_path / "pruned", tmp_path / "int8", int8=True)
    return tmp_path


@pytest.mark.skipif(not KERNELS, reason="installed without a compiler")
def test_a_packed_folder_runs(folders):
    tokens = pico.tokens(2, 7)
    with torch.no_grad():
        plain, packed, int8 = (secateur.load(folders / name) for name in ("pruned", "packed", "int8"))
        assert sum(isinstance(module, SparseLinear) for module in packed.modules()) == 21
        assert packed.dtype == int8.dtype == torch.bfloat16
        expected = plain.float()(tokens).logits
        scale = expected.abs().max()
        assert (packed.float()(tokens).logits - expected).abs().max() < 1e-5 * scale
        assert 1e-5 * scale < (int8.float()(tokens).logits - expected).abs().max() < 0.05 * scale
    a, b = (model.generate(tokens, max_new_tokens=9, do_sample=False) for model in (plain, packed))
    assert torch.equal(a, b)


@pytest.mark.skipif(not KERNELS, reason="installed without a compiler")
@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3"])
def test_packed_experts_run(name, tmp_path):
    dense = pico.save(name, tmp_path / "dense", torch.bfloat16)
    secateur.prune(dense, tmp_path / "pruned", Recipe(score="magnitude", sparsity=0.5))
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    secateur.pack(tmp_path / "pruned", tmp_path / "int8", int8=True)
    tokens = pico.tokens(2, 7)
    with torch.no_grad():
        plain, packed, int8 = (secateur.load(tmp_path / kind) for kind in ("pruned", "packed", "int8"))
        stacks = [part for part, module in packed.named_modules() if isinstance(module, SparseExperts)]
        assert set(stacks) == {part for part, parameter in plain.named_parameters() if parameter.dim() == 3}
        assert not any(parameter.dim() == 3 for parameter in packed.parameters())
        state, expected = packed.state_dict(), plain.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[part], expected[part]) for part in state)
        logits, exact, rounded = (model.float()(tokens).logits for model in (plain, packed, int8))
    scale = logits.abs().max()
    assert (exact - logits).abs().max() < 1e-5 * scale
    # Rounding sends a token to another expert now and then, so not all of them stay where they were.
    assert 1e-5 * scale < (rounded - logits).abs().amax(-1).median() < 0.05 * scale


@pytest.mark.parametrize("name", ["gpt-oss", "granite-moe"])
def test_experts_that_files_hold_in_stacks_are_packed_and_run_expanded(name, tmp_path):
    dense = pico.save(name, tmp_path / "dense", torch.bfloat16)
    secateur.prune(dense, tmp_path / "pruned", Recipe(score="magnitude", sparsity=0.5))
    packing = secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    assert packing.linears == 2 * 6  # four of attention and two stacks in each block
    secateur.unpack(tmp_path / "packed", tmp_path / "again")
    plain, packed, again = (secateur.load(tmp_path / kind) for kind in ("pruned", "packed", "again"))
    for part, tensor in plain.state_dict().items():
        assert torch.equal(packed.state_dict()[part], tensor)
        assert torch.equal(again.state_dict()[part], tensor)
    secateur.pack(tmp_path / "pruned", tmp_path / "int8", int8=True)
    assert secateur.verify(tmp_path / "int8", tmp_path / "pruned").passed


def test_a_layer_of_experts_answers_linear_alone():
    _, packed = sparse_linear(8, 32, kind="bfloat16")
    experts: Any = SparseExperts([packed, packed])
    inputs = torch.randn(3, 32)
    for expert in (1, torch.tensor(1)):
        assert torch.equal(nn.functional.linear(inputs, experts[expert]), SparseLinear(packed)(inputs))
    with pytest.raises(TypeError):
        torch.matmul(inputs, experts[0])
    with pytest.raises(TypeError):
        nn.functional.linear(inputs, experts[0], torch.zeros(8))


def test_without_kernels_a_packed_folder_is_expanded(folders, monkeypatch):
    monkeypatch.setattr("secateur.runtime.loading.KERNELS", [])
    with pytest.warns(UserWarning, match="without a C\\+\\+ compiler"):
        model = secateur.load(folders / "packed")
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    expected = secateur.load(folders / "pruned")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name))


def test_a_model_with_packed_weights_saves_as_a_plain_one(folders, tmp_path):
    secateur.load(folders / "packed").save_pretrained(tmp_path / "saved")
    saved, expected = (secateur.load(f).state_dict() for f in (tmp_path / "saved", folders / "pruned"))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


def test_packed_folders_are_evaluated(folders, tmp_path):
    (tmp_path / "t.txt").write_text("A law should be able to fail. " * 30)
    a, b, c = secateur.evaluate([folders / f for f in ("pruned", "packed", "int8")], str(tmp_path / "t.txt"), window=50)
    assert a.perplexity == pytest.approx(b.perplexity, rel=1e-6)
    assert a.perplexity == pytest.approx(c.perplexity, rel=0.05)


def test_generating_counts_tokens(folders):
    result = secateur.generate(folders / "packed", "some words", tokens=5, device="cpu")
    assert (result.prompt_tokens, result.tokens, result.dtype) == (10, 5, "bfloat16")
    assert (result.device, result.choices) == ("cpu", ())
    assert result.text == secateur.generate(folders / "pruned", "some words", tokens=5, device="cpu").text
    assert result.kernels == (KERNELS[0].name if KERNELS else None)
    assert secateur.generate(folders / "int8", "some words", tokens=1, device="cpu").tokens_per_second is None
