import copy

import pytest
import torch
from torch import nn

from secateur.patterns import NM
from secateur.runtime import cusparselt
from secateur.runtime.cusparselt import Algorithm
from secateur.runtime.semi_structured import SemiStructuredLinear, is_2of4, plan_for
from tests.cuda import TYPES, needs_gpu, pruned


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4)], ids=str)
def test_compressing_gives_the_very_same_weight_back(pattern, dtype, cusparselt_stand_in):
    weight = pruned(96, 1280, dtype, pattern)
    assert is_2of4(weight)
    linear = SemiStructuredLinear(weight)
    assert torch.equal(linear.weight.view(torch.int16), weight.view(torch.int16))
    assert linear.packed.nbytes == 0.5625 * weight.nbytes


def test_what_cannot_be_2of4_is_told_from_what_can():
    assert is_2of4(pruned(32, 64))
    assert not is_2of4(pruned(32, 64, pattern=NM(4, 8)))
    assert not is_2of4(pruned(32, 64, pattern=NM(3, 4)))
    assert not is_2of4(pruned(32, 64, torch.float32))
    for value in (torch.nan, torch.inf):
        weight = pruned(32, 64)
        weight[0, 0] = value
        assert not is_2of4(weight)


def test_a_weight_that_is_not_2of4_is_never_compressed(cusparselt_stand_in):
    with pytest.raises(RuntimeError, match="does not give back"):
        SemiStructuredLinear(pruned(32, 64, pattern=NM(3, 4)))


def test_shapes_that_the_library_has_no_kernels_for_are_refused(cusparselt_stand_in):
    with pytest.raises(RuntimeError, match="StructuredDescriptorInit: operation not supported"):
        SemiStructuredLinear(pruned(36, 64))


def test_without_the_library_it_is_refused(monkeypatch):
    monkeypatch.setattr(cusparselt, "library", lambda: None)
    with pytest.raises(RuntimeError, match="was not found"):
        SemiStructuredLinear(pruned(32, 64))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_dense_product_for_any_number_of_tokens(bias, mode, cusparselt_stand_in):
    weight, added = pruned(64, 128), nn.Parameter(torch.randn(64).bfloat16()) if bias else None
    linear = SemiStructuredLinear(weight, added)
    for shape in ((1, 128), (7, 128), (8, 128), (2, 3, 128), (128,), (0, 128), (2, 0, 128)):
        inputs = torch.randn(shape).bfloat16()
        with mode():
            out = linear(inputs)
        torch.testing.assert_close(out, nn.functional.linear(inputs, weight, added).detach(), atol=0.1, rtol=0.02)
        assert out.is_contiguous()
    for inputs in (torch.randn(5, 128, 3).bfloat16().transpose(1, 2), torch.randn(8, 256).bfloat16()[:, ::2]):
        with mode():
            torch.testing.assert_close(linear(inputs), nn.functional.linear(inputs, weight, added), atol=0.1, rtol=0.02)


def test_the_number_of_tokens_decides_the_algorithm(cusparselt_stand_in):
    linear = SemiStructuredLinear(pruned(64, 128), None, {1: Algorithm(1), 64: Algorithm(2)})
    cusparselt_stand_in.launched.clear()
    with torch.no_grad():
        for tokens in (1, 7, 10, 64, 200):
            linear(torch.randn(tokens, 128).bfloat16())
    ran = [(tokens, config) for *_, tokens, config in cusparselt_stand_in.launched]
    assert ran == [(8, 1), (8, 1), (16, 2), (64, 2), (200, 2)]  # padded to a multiple of 8


def test_linears_of_one_shape_share_their_plans_but_not_their_bias(cusparselt_stand_in):
    first, second = (SemiStructuredLinear(pruned(64, 128, seed=seed)) for seed in (0, 1))
    biases = [nn.Parameter(torch.full((64,), float(value)).bfloat16()) for value in (3, 5)]
    third, fourth = (SemiStructuredLinear(pruned(64, 128), bias) for bias in biases)
    inputs = torch.zeros(8, 128).bfloat16()
    plan_for.cache_clear()
    with torch.no_grad():
        first(inputs), second(inputs)
        assert plan_for.cache_info().currsize == 1
        assert third(inputs).eq(3).all() and fourth(inputs).eq(5).all()


def test_gradients_reach_the_inputs(cusparselt_stand_in):
    weight = pruned(32, 64)
    inputs = torch.ones(2, 64, dtype=torch.bfloat16, requires_grad=True)
    SemiStructuredLinear(weight)(inputs).sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad[0], weight.float().sum(0).bfloat16(), atol=0.1, rtol=0.02)


def test_it_saves_as_the_linear_it_stands_for(cusparselt_stand_in):
    weight = pruned(32, 64)
    linear = copy.deepcopy(SemiStructuredLinear(weight, nn.Parameter(torch.ones(32).bfloat16())))
    plain = nn.Linear(64, 32, dtype=torch.bfloat16)
    plain.load_state_dict(linear.state_dict())
    assert torch.equal(plain.weight, weight)


@needs_gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_on_a_gpu_it_is_the_dense_product(with_bias, dtype):
    weight = pruned(256, 512, dtype, device="cuda")
    bias = nn.Parameter(torch.randn(256, device="cuda", dtype=dtype)) if with_bias else None
    try:
        linear = SemiStructuredLinear(weight, bias)
    except RuntimeError as error:
        pytest.skip(f"cuSPARSELt does not run here: {error}")
    assert torch.equal(linear.weight, weight)
    for tokens in (1, 8, 33, 1024):
        inputs = torch.randn(tokens, 512, device="cuda", dtype=dtype)
        with torch.inference_mode():
            expected = nn.functional.linear(inputs, weight, bias)
            torch.testing.assert_close(linear(inputs), expected, atol=0.2, rtol=0.02)
