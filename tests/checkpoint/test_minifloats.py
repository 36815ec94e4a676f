"""FP8 in blocks and MXFP4 are read as what they stand for, and what is written of them is plain."""

import json

import pytest
import torch

import secateur
from secateur.checkpoint import Source
from secateur.checkpoint.minifloats import decode_fp8, decode_mxfp4
from secateur.masks import obeys
from secateur.patterns import NM
from secateur.recipe import Recipe
from tests import pico
from tests.specimens import FP8, MXFP4, as_fp8, as_mxfp4, rewrite

RECIPE = Recipe(pattern="2:4", score="magnitude")


@pytest.mark.parametrize("block", [(3, 4), (5, 8), None])
def test_fp8_is_codes_times_the_scales_of_their_blocks(block):
    codes = torch.randn(5, 11).to(torch.float8_e4m3fn)
    rows, columns = block or (5, 11)
    scales = torch.rand(-(-5 // rows), -(-11 // columns))
    weight = decode_fp8(codes, scales if block else scales.reshape(()), block)
    for i in range(5):
        for j in range(11):
            assert weight[i, j] == (codes[i, j].float() * scales[i // rows, j // columns]).bfloat16()


def test_mxfp4_is_floats_of_four_bits_times_powers_of_two():
    codes = torch.randint(256, (2, 3, 2, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (2, 3, 2), dtype=torch.uint8)
    stack = decode_mxfp4(codes, scales)
    assert stack.shape == (2, 64, 3)
    for e, o, i in [(0, 0, 0), (0, 0, 1), (1, 2, 63), (1, 0, 31), (0, 1, 32), (1, 1, 40)]:
        byte = int(codes[e, o, i // 32, i % 32 // 2])
        code = byte >> 4 if i % 2 else byte & 15
        exponent, mantissa = code >> 1 & 3, code & 1
        size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
        assert stack[e, i, o] == (-size if code & 8 else size) * 2.0 ** (int(scales[e, o, i // 32]) - 127)


@pytest.mark.parametrize(
    ("name", "quantization", "change"), [("deepseek-v3", FP8, as_fp8), ("gpt-oss", MXFP4, as_mxfp4)]
)
def test_what_is_pruned_of_minifloats_is_plain(name, quantization, change, tmp_path):
    folder = rewrite(pico.save(name, tmp_path / "coded", torch.bfloat16), quantization, change)
    further = {"model.layers.61.eh_proj.weight": torch.ones(4, 8)} if name == "deepseek-v3" else {}
    rewrite(folder, quantization, lambda tensors: tensors.update(further))  # which predicts further tokens
    secateur.prune(folder, tmp_path / "out", RECIPE)
    assert secateur.verify(tmp_path / "out", folder).passed
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert all(obeys(weight, NM(2, 4)) for weight in pico.linears(tmp_path / "out").values())
    source, tokens = Source(folder), pico.tokens()
    state, decoded = secateur.load(folder).state_dict(), source.read(source.names())
    assert all(torch.equal(state[name], decoded[name]) for name in decoded)
    assert secateur.load(tmp_path / "out")(tokens).logits.isfinite().all()


def without_scales(tensors):
    as_mxfp4(tensors)
    del tensors["model.layers.0.mlp.experts.down_proj_scales"]


@pytest.mark.parametrize(
    ("name", "quantization", "change", "message"),
    [
        ("deepseek-v3", FP8 | {"expert_dtype": "fp4"}, as_fp8, "fp8 that is not read.*expert_dtype"),
        ("deepseek-v3", FP8 | {"weight_block_size": [16, 0]}, as_fp8, "make no sense"),
        ("deepseek-v3", FP8 | {"weight_block_size": [16, 8]}, as_fp8, "cannot be the scales of"),
        (
            "gpt-oss",
            MXFP4,
            without_scales,
            "lacks .*_scales",
        ),
    ],
)
def test_other_minifloats_are_refused(name, quantization, change, message, tmp_path):
    folder = rewrite(pico.save(name, tmp_path, torch.bfloat16), quantization, change)
    with pytest.raises(secateur.InputError, match=message):
        Source(folder)
