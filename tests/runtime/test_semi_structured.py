import copy

import pytest
import torch
from torch import nn

from secateur.patterns import NM
from secateur.runtime.semi_structured import BACKENDS, SemiStructuredLinear, compress, form_bytes, is_2of4, multiply
from tests.cuda import TYPES, needs_gpu, pruned


def read_cutlass(values, meta):
    """The weight as floats, read one by one from the layout that CUTLASS documents.

    Four bits for a group of four columns: the places of its two values, the lower one in the lower bits; four groups
    to an integer, the first one lowest. Where these integers lie is reorder_meta of CUTLASS (host_reorder.h),
    then the layout ColumnMajorInterleaved<2>.
    """
    rows, columns = values.shape[0], 2 * values.shape[1]
    dense = [[0.0] * columns for _ in range(rows)]
    flat, numbers = meta.flatten().tolist(), values.float().tolist()
    for row in range(rows):
        for column in range(columns // 16):
            to_row, to_column = row // 32 * 32 + row % 8 * 4 + row % 32 // 8, column
            if to_row % 2 == 0 and to_column % 2 == 1:
                to_row, to_column = to_row + 1, to_column - 1
            elif to_row % 2 == 1 and to_column % 2 == 0:
                to_row, to_column = to_row - 1, to_column + 1
            bits = flat[to_column // 2 * rows * 2 + to_row * 2 + to_column % 2]
            for group in range(4):
                first, second = bits >> 4 * group & 3, bits >> 4 * group + 2 & 3
                assert first < second, "the hardware wants the places in order"
                for nth, place in enumerate((first, second)):
                    dense[row][16 * column + 4 * group + place] = numbers[row][8 * column + 2 * group + nth]
    return torch.tensor(dense)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(32, 64), (64, 192)])
def test_packing_for_cutlass_is_what_a_plain_reader_reads(shape, dtype, kernels):
    weight = pruned(shape[0], shape[1], dtype)
    form = compress(weight, "cutlass")
    assert torch.equal(read_cutlass(form.packed, form.meta), weight.float())
    assert form_bytes(form) == 0.5625 * weight.nbytes


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4)], ids=str)
def test_compressing_gives_the_very_same_weight_back(pattern, backend, dtype, kernels):
    weight = pruned(96, 128, dtype, pattern)
    assert is_2of4(weight)
    form = compress(weight, backend)
    assert torch.equal(form.to_dense().view(torch.int16), weight.view(torch.int16))
    assert form_bytes(form) < 0.6 * weight.nbytes


def test_what_cannot_be_sparse_is_told_from_what_can():
    assert is_2of4(pruned(32, 64))
    assert not is_2of4(pruned(32, 64, pattern=NM(4, 8)))
    assert not is_2of4(pruned(32, 64, pattern=NM(3, 4)))
    assert not is_2of4(pruned(32, 64, torch.float32))
    for value in (torch.nan, torch.inf):
        weight = pruned(32, 64)
        weight[0, 0] = value
        assert not is_2of4(weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_that_is_not_2of4_is_never_compressed(backend, kernels):
    with pytest.raises(RuntimeError, match="does not give back"):
        compress(pruned(32, 64, pattern=NM(3, 4)), backend)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_dense_product_for_any_number_of_tokens(backend, bias, mode, kernels):
    weight, added = pruned(64, 128), nn.Parameter(torch.randn(64).bfloat16()) if bias else None
    linear = SemiStructuredLinear({backend: compress(weight, backend)}, {1: backend}, added)
    for shape in ((1, 128), (7, 128), (8, 128), (2, 3, 128), (128,), (0, 128), (2, 0, 128)):
        inputs = torch.randn(shape).bfloat16()
        with mode():
            out = linear(inputs)
        torch.testing.assert_close(out, nn.functional.linear(inputs, weight, added).detach(), atol=0.1, rtol=0.02)
        assert out.is_contiguous()
    for inputs in (torch.randn(5, 128, 3).bfloat16().transpose(1, 2), torch.randn(8, 256).bfloat16()[:, ::2]):
        with mode():
            torch.testing.assert_close(linear(inputs), nn.functional.linear(inputs, weight, added), atol=0.1, rtol=0.02)


def test_the_number_of_tokens_decides_which_form_multiplies():
    weight = torch.eye(4)
    linear = SemiStructuredLinear({"a": weight, "b": 2 * weight}, {1: "a", 16: "b", 128: "a"})
    factors = {tokens: linear(torch.ones(tokens, 4))[0, 0].item() for tokens in (1, 4, 5, 16, 45, 46, 1000)}
    assert factors == {1: 1, 4: 1, 5: 2, 16: 2, 45: 2, 46: 1, 1000: 1}
    assert linear(torch.ones(2, 3, 4)).tolist() == [[[2.0] * 4] * 3] * 2  # six tokens, not two or three


def test_gradients_reach_the_inputs(kernels):
    weight = pruned(32, 64)
    linear = SemiStructuredLinear({"cutlass": compress(weight, "cutlass")}, {1: "cutlass"})
    inputs = torch.ones(2, 64, dtype=torch.bfloat16, requires_grad=True)
    linear(inputs).sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad[0], weight.float().sum(0).bfloat16(), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_saves_as_the_linear_it_stands_for_and_is_dense_when_it_is_cast(backend, kernels):
    weight = pruned(32, 64)
    linear = SemiStructuredLinear({backend: compress(weight, backend)}, {1: backend}, nn.Parameter(torch.ones(32)))
    plain = nn.Linear(64, 32, dtype=torch.bfloat16)
    plain.load_state_dict(linear.state_dict())
    assert torch.equal(plain.weight, weight)
    assert list(linear.to("cpu").forms) == [backend]
    cast = copy.deepcopy(linear.to(torch.float32))
    inputs = torch.randn(3, 64)
    assert torch.equal(cast(inputs), nn.functional.linear(inputs, weight.float(), cast.bias))


@needs_gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_a_gpu_it_is_the_dense_product(backend, dtype):
    weight, bias = pruned(256, 512, dtype, device="cuda"), torch.randn(256, device="cuda", dtype=dtype)
    try:
        form = compress(weight, backend)
        multiply(weight.new_ones(8, 512), form, None)
    except RuntimeError as error:
        pytest.skip(f"{backend} does not run here: {error}")
    assert torch.equal(form.to_dense(), weight)
    for added in (None, nn.Parameter(bias)):
        linear = SemiStructuredLinear({backend: form}, {1: backend}, added)
        for tokens in (1, 8, 33, 1024):
            inputs = torch.randn(tokens, 512, device="cuda", dtype=dtype)
            with torch.inference_mode():
                expected = nn.functional.linear(inputs, weight, added)
                torch.testing.assert_close(linear(inputs), expected, atol=0.2, rtol=0.02)
