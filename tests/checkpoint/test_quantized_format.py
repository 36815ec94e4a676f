"""Quantized weights in files, beside what the library that has defined the format makes of them."""

import pytest
import torch

from secateur.checkpoint.quantized import Scheme, as_tensors, check_held, config_of, from_tensors
from secateur.errors import InputError
from secateur.quantization.grid import QuantizedWeight, fit


def quantized(rows, columns, group, bits, symmetric, dtype=torch.bfloat16, size=1.0):
    weight = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    weight[weight.abs() < 0.6 * size] = 0
    grid = fit(weight, bits, group, symmetric)
    return QuantizedWeight(grid, grid.codes(weight), dtype)


SHAPES = [(8, 32, 16), (6, 48, 12), (3, 20, 20), (13, 96, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_written_is_read_again(shape, bits, symmetric):
    rows, columns, group = shape
    weight = quantized(rows, columns, group, bits, symmetric)
    again = from_tensors("a.weight", as_tensors("a.weight", weight, symmetric), Scheme(bits, group, symmetric))
    assert torch.equal(again.codes, weight.codes) and torch.equal(again.grid.zeros, weight.grid.zeros)
    assert torch.equal(again.grid.scales, weight.grid.scales)
    assert torch.equal(again.dense(), weight.dense())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_library_writes_the_same_words_and_reads_the_same_values(bits, symmetric, dtype):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(config_of(Scheme(bits, 16, symmetric), ["lm_head"]))
    scheme = config.config_groups["group_0"]
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    for rows in (5, 8, 19):
        weight = quantized(rows, 48, 16, bits, symmetric, dtype, 0.03)
        ours = as_tensors("weight", weight, symmetric)
        middle = 1 << (bits - 1)
        signed = [(codes.int() - middle).to(torch.int8) for codes in (weight.codes, weight.grid.zeros)]
        theirs = {
            "weight_packed": pack_to_int32(signed[0], bits),
            "weight_scale": weight.grid.scales.to(dtype),
            "weight_shape": torch.tensor([rows, 48]),
            "weight_zero_point": pack_to_int32(signed[1], bits, packed_dim=0),
        }
        assert {*ours} == {*library.compression_param_names(scheme)}
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
        dense = library.decompress(ours, scheme)["weight"]
        assert dense.dtype == dtype and torch.equal(dense, weight.dense())


def test_a_type_that_does_not_hold_the_scales_is_refused():
    check_held("a", quantized(8, 32, 16, 4, False, torch.float16))
    with pytest.raises(InputError, match="a: float16 does not hold the scales"):
        check_held("a", quantized(8, 32, 16, 4, False, torch.float16, 1e-5))
