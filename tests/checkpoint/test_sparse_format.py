import json
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import secateur
from secateur.checkpoint import MANIFEST, Source
from secateur.checkpoint.packed import KEY
from secateur.checkpoint.sparse import (
    SparseWeight,
    pack,
    pack_int4,
    pack_int8,
    pack_quantized,
    stack_rows,
)
from secateur.errors import InputError
from secateur.masks import select
from secateur.models.blocks import blocks_of, family_of
from secateur.patterns import NM, Unstructured
from secateur.quantization.grid import QuantizedWeight, fit
from secateur.recipe import Recipe
from tests import pico

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
UP = "model.layers.1.mlp.up_proj.weight"


def pruned_weight(shape, pattern, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    weight = torch.randn(shape).to(dtype)
    return weight.where(select(weight.abs().float(), pattern), 0)


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def by_the_page(mask, values, shape):
    """docs/format.md, read literally: bit j of byte b of a row is column 8b + j, values in that order."""
    dense, values = torch.zeros(shape, dtype=values.dtype), iter(values)
    for row in range(shape[0]):
        for column in range(shape[1]):
            if mask[row, column // 8].item() >> column % 8 & 1:
                dense[row, column] = next(values)
    assert next(values, None) is None
    return dense


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(16, 32), NM(1, 1), Unstructured(0.5), Unstructured(0.999)], ids=str)
@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (5, 40)])
def test_packing_loses_nothing(shape, pattern, dtype):
    pattern = NM(2, 4) if isinstance(pattern, NM) and shape[1] % pattern.group else pattern
    weight = pruned_weight(shape, pattern, dtype)
    packed = pack(weight)
    packed.check("w")
    assert same_bits(packed.dense(), weight)
    assert torch.equal(by_the_page(packed.mask, packed.values, shape), weight)


@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (0, 0)])
def test_empty_weights(shape):
    packed = pack(torch.zeros(shape))
    packed.check("w")
    assert packed.dense().shape == shape


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_kept_is_decided_by_bits(dtype):
    weight = torch.tensor([[0.0, -0.0, torch.inf, 1.0] + [0.0] * 4]).to(dtype)
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    weight.view(integers)[0, 4] = -3  # a NaN with a sign and a payload
    packed = pack(weight)
    assert len(packed.values) == 4
    assert same_bits(packed.dense(), weight)


def test_the_bytes_are_those_of_the_arithmetic():
    weight = pruned_weight((64, 256), NM(2, 4), torch.bfloat16)
    assert pack(weight).nbytes == 0.5625 * weight.nbytes
    assert pack_int8(weight).nbytes == (0.25 + 1 / 16 + 1 / 128) * weight.nbytes
    assert pack_int4(weight).nbytes == (0.125 + 1 / 16 + 1.5 / 128) * weight.nbytes


@pytest.mark.parametrize("columns", [96, 128, 200])
def test_int8_is_within_half_a_step(columns):
    weight = pruned_weight((16, columns), NM(2, 4)) * torch.logspace(-30, 3, 16)[:, None]
    packed = pack_int8(weight)
    packed.check("w")
    assert packed.scales is not None
    steps = packed.scales.float().repeat_interleave(128, 1)[:, :columns]
    assert ((packed.dense() - weight).abs() <= 0.5 * steps * (1 + 1e-5)).all()
    assert torch.equal(packed.kept(), weight != 0)
    assert int(packed.values.abs().max()) <= 127
    with pytest.raises(InputError, match="not finite"):
        pack_int8(weight.log())


@pytest.mark.parametrize("stored", FLOATS)
def test_int8_weights_are_exact_products_rounded_once(stored):
    weight = pruned_weight((24, 200), NM(2, 4)) * torch.logspace(-36, 3, 24)[:, None]
    packed = pack_int8(weight.to(stored))
    assert packed.scales is not None
    exact = by_the_page(packed.mask, packed.values.double(), packed.shape)
    exact *= packed.scales.double().repeat_interleave(128, 1)[:, :200]
    assert torch.equal(packed.to(torch.float32).dense().double(), exact)
    for dtype in FLOATS:
        assert same_bits(packed.to(dtype).dense() + 0, exact.to(dtype) + 0)
    assert packed.dense().dtype == stored


def codes_by_the_page(packed):
    """docs/format.md, read literally, in float64: the codes of kept weights, two in a byte, less those of zero."""
    rows, columns = packed.shape
    kept = torch.ones(rows, columns, dtype=torch.bool)
    if packed.mask is not None:
        for row in range(rows):
            for column in range(columns):
                kept[row, column] = bool(packed.mask[row, column // 8].item() >> column % 8 & 1)
    dense, number = torch.zeros(rows, columns, dtype=torch.float64), 0
    for row, column in kept.nonzero().tolist():
        code = packed.values[number // 2].item() >> 4 * (number % 2) & 15
        number += 1
        group = column // packed.group
        zero = 8 if packed.zeros is None else packed.zeros[row, group].item()
        dense[row, column] = (code - zero) * packed.scales[row, group].item()
    assert (number + 1) // 2 == len(packed.values)
    return dense


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("share", [0.5, 0.1, 0])
@pytest.mark.parametrize("shape", [(9, 200), (3, 45), (5, 64)])
def test_codes_are_what_the_page_says_rounded_once(shape, share, stored):
    weight = pruned_weight(shape, Unstructured(share)) * torch.logspace(-3, 3, shape[0])[:, None]
    packed = pack_int4(weight.to(stored), 64)
    packed.check("w")
    # A mask takes a bit of each weight, and saves four of each zero; and without one rows have to be whole bytes.
    assert (packed.mask is None) == (share < 0.25 and shape[1] % 2 == 0)
    exact = codes_by_the_page(packed)
    assert torch.equal(packed.to(torch.float32).dense().double(), exact)
    for dtype in FLOATS:
        assert same_bits(packed.to(dtype).dense() + 0, exact.to(dtype) + 0)
    assert (packed.dense()[weight == 0] == 0).all()


def test_smaller_ranges_are_chosen_where_they_are_nearer():
    """Never worse than the whole range in any group, better in most; and a lone outlier is not cut off."""
    weight = pruned_weight((32, 256), Unstructured(0.5))
    weight[0, 5] = 100
    grid = fit(weight, 4, 128)
    whole, ours = grid.values(grid.codes(weight)), pack_int4(weight).dense()
    before, after = (((x - weight) ** 2).unflatten(1, (-1, 128)).sum(-1) for x in (whole, ours))
    assert (after <= before).all() and (after < 0.95 * before).float().mean() > 0.5
    assert ours[0, 5] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 96, 192, 1536])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_a_quantized_weight_is_packed_without_loss(bits, group, symmetric):
    symmetric = symmetric or bits == 8
    for share in (0.0, 0.5):
        weight = pruned_weight((7, 1536), Unstructured(share))
        grid = fit(weight, bits, group, symmetric)
        quantized = QuantizedWeight(grid, grid.codes(weight), torch.bfloat16)
        packed = pack_quantized(quantized)
        assert packed is not None and packed.scales is not None
        packed.check("w")
        assert torch.equal(packed.dense(), quantized.dense())
        assert packed.width == (4 if bits <= 4 else 8)
        assert packed.nbytes <= 7 * 1536 * (packed.width * (1 - share) + (share > 0)) / 8 + 3 * packed.scales.numel()


def test_what_the_format_does_not_hold_is_not_packed_as_codes():
    weight = pruned_weight((4, 96), Unstructured(0.5))
    for group, bits, change in ((48, 4, 1), (96, 8, 1), (96, 4, 1 + 2**-12)):
        grid = fit(weight - (bits == 8) * 0.5 * (weight != 0), bits, group)
        grid.scales.mul_(change)
        assert pack_quantized(QuantizedWeight(grid, grid.codes(weight), torch.float32)) is None


@pytest.mark.parametrize("group", [96, 2**40, 2**62])
def test_a_group_may_be_wider_than_the_weight(group):
    packed = replace(pack_int4(pruned_weight((3, 70), NM(1, 2)), 96), group=group)
    packed.check("w")
    assert torch.equal(packed.dense(), replace(packed, group=96).dense())


@pytest.mark.parametrize("pack_integers", [pack_int8, pack_int4])
@pytest.mark.parametrize("columns", [64, 45])
def test_stacked_rows_are_those_that_were_packed(columns, pack_integers):
    """Some of them without a mask, some with all codes of zero in the middle, and with odd numbers of codes."""
    even = torch.tensor([-1.0, 1.0]).repeat(columns)[None, :columns].clone()
    weights = [pruned_weight((rows, columns), Unstructured(share)) for rows, share in ((3, 0.6), (5, 0), (1, 0.5))]
    packed = [pack_integers(weight) for weight in [*weights, even]]
    stacked = stack_rows(packed, "w")
    stacked.check("w")
    assert torch.equal(stacked.dense(), torch.cat([weight.dense() for weight in packed]))
    with pytest.raises(InputError, match="differ in columns, type or group"):
        stack_rows([pack_int8(even), pack_int4(even)], "w")


@pytest.mark.parametrize(("dtype", "fits"), [(torch.float16, False), (torch.bfloat16, False), (torch.float32, True)])
def test_int8_never_rounds_a_weight_to_infinity(dtype, fits):
    weight = torch.zeros(1, 128, dtype=dtype)
    weight[0, 0] = torch.finfo(dtype).max
    if fits:
        assert pack_int8(weight).dense().isfinite().all()
        return
    with pytest.raises(InputError, match="cannot be rounded to int8: it is too near"):
        pack_int8(weight)


def test_int4_never_rounds_a_weight_to_infinity():
    weight = torch.tensor([[3.3e38, -3.3e38] * 16])
    with pytest.raises(InputError, match="cannot be rounded to int4: it is too near"):
        pack_int4(weight)
    weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite cannot be rounded to int4"):
        pack_int4(weight)


@pytest.fixture
def pruned(tmp_path):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense", torch.bfloat16)
    secateur.prune(dense, tmp_path / "pruned", Recipe(score="magnitude", pattern="2:4"))
    return tmp_path / "pruned"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_unpacking_gives_back_every_byte(pruned, tmp_path):
    packing = secateur.pack(pruned, tmp_path / "packed")
    assert packing.packed_bytes == 0.5625 * packing.dense_bytes
    assert packing.linears == 21
    with_headers = sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.safetensors"))
    assert packing.total_packed_bytes < with_headers < packing.total_packed_bytes + 4 * 4096
    secateur.unpack(tmp_path / "packed", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(pruned)


@pytest.mark.parametrize("name", pico.ALL)
def test_any_sparse_folder_can_be_packed(name, tmp_path):
    model = pico.build(name, dtype=torch.float16)
    for block in blocks_of(model, family_of(model)):
        for linear in block.linears:
            block.weight(linear)[:, ::2] = 0
    model.save_pretrained(tmp_path / "sparse")
    packing = secateur.pack(tmp_path / "sparse", tmp_path / "packed")
    assert packing.packed_bytes < 0.65 * packing.dense_bytes
    secateur.unpack(tmp_path / "packed", tmp_path / "again")
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / f).state_dict() for f in ("sparse", "again"))
    assert before.keys() == after.keys() and all(same_bits(before[key], after[key]) for key in before)
    a, b = (secateur.load(tmp_path / f, torch.float32)(pico.tokens()).logits for f in ("sparse", "packed"))
    torch.testing.assert_close(a, b)


def test_orders_of_norms_are_packed_along(tmp_path):
    (tmp_path / "t.txt").write_text("words to calibrate on. " * 60)
    dense = pico.save("llama-mha", tmp_path / "dense", torch.bfloat16)
    recipe = Recipe(pattern="2:4", fold="gather", calibration=str(tmp_path / "t.txt"), samples=2, length=32)
    secateur.prune(dense, tmp_path / "pruned", recipe)
    secateur.pack(tmp_path / "pruned", tmp_path / "packed")
    secateur.unpack(tmp_path / "packed", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "pruned")
    a, b = (secateur.load(tmp_path / f, torch.float32)(pico.tokens()).logits for f in ("pruned", "packed"))
    torch.testing.assert_close(a, b)


def test_to_readers_a_packed_folder_is_the_one_that_was_packed(pruned, tmp_path):
    secateur.pack(pruned, tmp_path / "packed")
    assert secateur.inspect(tmp_path / "packed").layers == secateur.inspect(pruned).layers
    assert secateur.verify(tmp_path / "packed", tmp_path / "dense").passed
    secateur.pack(pruned, tmp_path / "int8", int8=True)
    assert secateur.verify(tmp_path / "int8", pruned).passed


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_a_dense_model_is_rounded_and_packed_without_masks(values, pruned, tmp_path):
    packing = secateur.pack(tmp_path / "dense", tmp_path / "packed", int8=values == "int8", int4=values == "int4")
    bits = 8 if values == "int8" else 4
    assert packing.linears == 21
    assert packing.packed_bytes < packing.dense_bytes * (bits + 1) / 16
    source, dense = Source(tmp_path / "packed"), Source(tmp_path / "dense")
    assert all((entry.bits, entry.masked) == (bits, False) for entry in source.sparse.values())
    ours, theirs = (x.read([UP])[UP] for x in (source, dense))
    assert 0 < (ours - theirs).abs().max() < theirs.abs().max() * 4 / 2**bits
    secateur.unpack(tmp_path / "packed", tmp_path / "again")
    assert torch.equal(Source(tmp_path / "again").read([UP])[UP], ours)
    a, b = (secateur.load(tmp_path / f, torch.float32)(pico.tokens()).logits for f in ("packed", "again"))
    assert (a - b).abs().max() < 0.05 * b.abs().max()  # unpacked weights are rounded to bfloat16
    with pytest.raises(InputError, match="not both"):
        secateur.pack(pruned, tmp_path / "out", int8=True, int4=True)


def test_plain_transformers_refuses_it(pruned, plain_transformers, tmp_path):
    secateur.pack(pruned, tmp_path / "packed")
    with pytest.raises(ValueError, match="secateur-packed"):
        AutoConfig.from_pretrained(tmp_path / "packed")
    with pytest.raises(ValueError, match="secateur-packed"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


def test_what_cannot_be_packed(pruned, tmp_path):
    out = tmp_path / "packed"
    with pytest.raises(InputError, match="too few zeros .* their type is none of bfloat16, float16, float32"):
        secateur.pack(tmp_path / "dense", out)
    with pytest.raises(InputError, match="not packed"):
        secateur.unpack(pruned, out)
    assert not out.exists()
    secateur.pack(pruned, out)
    with pytest.raises(InputError, match="--force"):
        secateur.pack(pruned, out)
    with pytest.raises(InputError, match="packed already"):
        secateur.pack(out, tmp_path / "twice")
    with pytest.raises(InputError, match="unpack it first"):
        secateur.prune(out, tmp_path / "twice", Recipe(score="magnitude"))
    assert not (tmp_path / "twice").exists()


# ---------------------------------------------------------------- damage


def tampered(name, change):
    """A change of one tensor, or its absence."""

    def apply(tensors, metadata):
        tensor = tensors.pop(f"{UP}.{name}")
        if (changed := change(tensor)) is not None:
            tensors[f"{UP}.{name}"] = changed

    return apply


def declared(**fields):
    def apply(tensors, metadata):
        header = json.loads(metadata[KEY])
        header["weights"][UP] |= fields
        metadata[KEY] = json.dumps(header)

    return apply


def header(text):
    return lambda tensors, metadata: metadata.update({KEY: text})


def also_dense(tensors, metadata):
    tensors[UP] = torch.zeros(64, 32)


def flip(mask):
    return mask ^ torch.tensor([1] + [0] * (mask.shape[1] - 1), dtype=torch.uint8)


LIES = {
    "popcount": (tampered("mask", flip), "keeps .* weights, but its values"),
    "values cut": (tampered("values", lambda v: v[:-1].clone()), "its values are"),
    "values of another type": (tampered("values", lambda v: v.half()), "values is F16"),
    "no values": (tampered("values", lambda v: None), "lacks .*values"),
    "no mask": (tampered("mask", lambda v: None), "lacks .*mask"),
    "mask of another shape": (tampered("mask", lambda m: m[:, :-1].clone()), "mask is .* needs U8"),
    "mask of another type": (tampered("mask", lambda m: m.to(torch.int16)), "mask is .* needs U8"),
    "another shape": (declared(shape=[64, 64]), "mask is .* needs U8"),
    "fewer columns": (declared(shape=[64, 31]), "64 × 31, and config.json says 64 × 32"),
    "negative shape": (declared(shape=[-64, 32]), "cannot have the shape"),
    "three dimensions": (declared(shape=[64, 32, 1]), "cannot be read"),
    "unknown dtype": (declared(dtype="float8"), "unknown type 'float8'"),
    "unknown field": (declared(order="column"), "cannot be read"),
    "int8 without scales": (declared(group=128), "lacks .*scales"),
    "dense as well": (also_dense, "also holds it dense"),
    "version": (header('{"version": 2, "tensors": []}'), "version 2 .* reads 1"),
    "no version": (header('{"weights": {}}'), "cannot be read"),
    "no JSON": (header("{"), "cannot be read"),
}


def rewrite(path, apply):
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
    apply(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def shard_of(folder):
    return Source(folder).held[UP].file


@pytest.mark.parametrize(("apply", "message"), LIES.values(), ids=LIES)
def test_lies_are_refused(pruned, tmp_path, apply, message):
    secateur.pack(pruned, tmp_path / "packed")
    rewrite(shard_of(tmp_path / "packed"), apply)
    (tmp_path / "packed" / MANIFEST).unlink()  # by its digests unpack would refuse any change
    for use in (secateur.load, secateur.inspect, lambda folder: secateur.unpack(folder, tmp_path / "out")):
        with pytest.raises(InputError, match=message):
            use(tmp_path / "packed")
    assert not (tmp_path / "out").exists()


INT4_LIES = {
    "values cut": (tampered("values", lambda v: v[:-1].clone()), "its values are"),
    "int8 values": (tampered("values", lambda v: v.view(torch.int8)), "values is I8 .* needs U8"),
    "eight bits": (declared(bits=8, zeros=False), "values is U8 .* needs I8"),
    "other bits": (declared(bits=3), "cannot have values of 3 bits"),
    "bits of floats": (declared(group=0), "cannot have values of 4 bits, groups of 0"),
    "zeros of int8": (declared(bits=8), "cannot have values of 8 bits, .* codes of zero"),
    "no zeros": (tampered("zeros", lambda z: None), "lacks .*zeros"),
    "zeros of another shape": (tampered("zeros", lambda z: z[:-1].clone()), "zeros is .* needs U8"),
    "zeros of another type": (tampered("zeros", lambda z: z.to(torch.int16)), "zeros is .* needs U8"),
    "a zero beyond the codes": (tampered("zeros", lambda z: z | 16), "more than 4 bits"),
    "no mask": (tampered("mask", lambda m: None), "lacks .*mask"),
    "no mask declared": (declared(masked=False), "values is .* needs U8 1024"),
    "twice the columns": (declared(shape=[64, 64]), "mask is .* needs U8"),
}


@pytest.mark.parametrize(("apply", "message"), INT4_LIES.values(), ids=INT4_LIES)
def test_lies_about_codes_are_refused(pruned, tmp_path, apply, message):
    secateur.pack(pruned, tmp_path / "packed", int4=True)
    rewrite(shard_of(tmp_path / "packed"), apply)
    with pytest.raises(InputError, match=message):
        secateur.load(tmp_path / "packed")


def test_a_row_without_a_mask_begins_with_a_byte():
    weight = pack_int4(torch.ones(2, 34))
    with pytest.raises(InputError, match="begins within a byte"):
        SparseWeight((4, 17), torch.float32, None, weight.values, torch.ones(4, 1).bfloat16(), 128).check("w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.float(), "needs BF16"),
        (lambda s: s[:-1].clone(), "needs BF16"),
        (lambda s: s * torch.nan, "not finite"),
        (lambda s: None, "lacks .*scales"),
    ],
)
def test_lies_about_scales_are_refused(pruned, tmp_path, change, message):
    secateur.pack(pruned, tmp_path / "packed", int8=True)
    rewrite(shard_of(tmp_path / "packed"), tampered("scales", change))
    with pytest.raises(InputError, match=message):
        secateur.load(tmp_path / "packed")


def test_a_group_that_is_no_multiple_of_a_word_is_refused(pruned, tmp_path):
    secateur.pack(pruned, tmp_path / "packed", int8=True)
    rewrite(shard_of(tmp_path / "packed"), declared(group=33))
    with pytest.raises(InputError, match="groups of 33"):
        secateur.load(tmp_path / "packed")


def test_a_cut_off_file_is_refused(pruned, tmp_path):
    secateur.pack(pruned, tmp_path / "packed")
    path = shard_of(tmp_path / "packed")
    whole = path.read_bytes()
    for length in (len(whole) - 1, struct.unpack("<Q", whole[:8])[0] - 1, 4, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged or incomplete"):
            secateur.load(tmp_path / "packed")


def test_a_weight_that_the_model_does_not_have_is_refused(pruned, tmp_path):
    secateur.pack(pruned, tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["base"]["num_hidden_layers"] = 1
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="its model, by config.json, does not have"):
        secateur.load(tmp_path / "packed")
    config["base"]["num_hidden_layers"] = 4
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="lacks weights of its model"):
        secateur.load(tmp_path / "packed")
