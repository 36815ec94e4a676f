"""Packed weights in tiles, and Triton's kernels for them: on a GPU, or in Triton's interpreter."""

import pytest
import torch
from torch import nn

from secateur.checkpoint.sparse import pack, pack_int4, pack_int8
from secateur.masks import select
from secateur.patterns import NM, Unstructured
from secateur.runtime import sparse_linear
from secateur.runtime.sparse_linear import MOST_TOKENS, SparseLinear
from secateur.runtime.tiles import tile, untile

kernels = pytest.importorskip("secateur.runtime.tile_kernels", reason="needs triton", exc_type=ImportError)
expansion = pytest.importorskip("secateur.runtime.tile_expansion", reason="needs triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATTERNS = [NM(2, 4), NM(4, 8), NM(16, 32), NM(1, 4), NM(1, 1), Unstructured(0.5), Unstructured(0.97), None]
# What sums of bfloat16 products may differ by, of their norm; the interpreter cuts bfloat16 off where a GPU rounds it.
TOLERANCE = 1e-2


def packed_weight(rows, columns, pattern, int8, seed=0):
    """Random, pruned to ``pattern``, or all zeros; with an empty row."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight = weight.where(select(weight.abs(), pattern), 0) if pattern else torch.zeros_like(weight)
    weight[rows // 2] = 0
    weight = weight.bfloat16()
    return (pack_int8(weight, 64) if int8 else pack(weight)).on(torch.device(DEVICE))


def exact(weight):
    """In float32, before any rounding to the dense type."""
    return weight.to(torch.float32).dense()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(37, 96), (32, 32), (5, 8), (70, 1056), (33, 72)])
def test_tiles_hold_the_weight(rows, columns, pattern, int8):
    if isinstance(pattern, NM) and columns % pattern.group:
        pytest.skip("does not fit")
    weight = packed_weight(rows, columns, pattern, int8)
    again = untile(tile(weight))
    again.check("it")
    assert torch.equal(again.bits(), weight.bits())
    assert torch.equal(again.dense(), weight.dense())


@pytest.mark.parametrize("columns", [64, 45])
def test_codes_and_weights_without_a_mask_are_laid_out_as_int8(columns):
    torch.manual_seed(0)
    dense = torch.randn(37, columns).bfloat16()
    for weight in (dense, dense.where(torch.rand(dense.shape) < 0.5, 0)):
        for pack_integers in (pack_int4, pack_int8):
            packed = pack_integers(weight, 64)
            again = untile(tile(packed))
            again.check("it")
            assert torch.equal(again.dense(), packed.dense())
            check_product(packed.on(torch.device(DEVICE)), 2, torch.bfloat16)


@pytest.mark.parametrize("int8", [False, True])
def test_a_pattern_of_whole_words_takes_the_bytes_of_the_file(int8):
    for pattern in (NM(2, 4), NM(16, 32), NM(8, 32)):
        weight = packed_weight(64, 256, pattern, int8)
        tiles = tile(weight)
        assert tiles.rest.numel() == 0
        spare = 256 * pattern.kept // pattern.group * (1 if int8 else 2)  # the empty row has room all the same
        assert tiles.mask.nbytes + tiles.values.nbytes + tiles.scales.nbytes == weight.nbytes + spare


def test_a_rest_is_kept_only_where_it_saves_bytes():
    crowded = torch.zeros(32, 3200)
    crowded[0, :32] = 1  # one full word, and 1 of 32 everywhere else
    crowded[:, ::32] = 1
    tiles = tile(pack(crowded.bfloat16()))
    assert tiles.values.shape[2] == 1 and tiles.rest.numel() == 30 * 32
    assert tile(pack(torch.ones(32, 320).bfloat16())).rest.numel() == 0


def test_columns_that_do_not_fit_an_entry_leave_no_rest():
    weight = torch.zeros(1, (1 << 16) + 32)
    weight[0, :32], weight[0, -1] = 1, 2
    tiles = tile(pack(weight.bfloat16()))
    assert tiles.rest.numel() == 0 and torch.equal(untile(tiles).dense(), weight.bfloat16())


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_products_of_any_pattern(pattern, int8):
    weight = packed_weight(20, 64, pattern, int8)
    for tokens in (1, 2):
        check_product(weight, tokens, torch.bfloat16)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 5, 8, 9])
def test_products_of_any_number_of_tokens(tokens, dtype, int8):
    check_product(packed_weight(20, 72, Unstructured(0.5), int8), tokens, dtype)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (64, 40), (5, 1056), (33, 31)])
def test_products_of_any_shape(rows, columns, int8):
    check_product(packed_weight(rows, columns, Unstructured(0.6), int8), 2, torch.bfloat16)


def check_product(weight, tokens, dtype):
    rows, columns = weight.shape
    generator = torch.Generator().manual_seed(tokens)
    inputs = torch.randn(tokens, columns, generator=generator).to(DEVICE, dtype)
    bias = torch.randn(rows, generator=generator).to(DEVICE) if tokens % 2 else None
    tiles = tile(weight)
    out = kernels.multiply(tiles, inputs, bias)
    assert out.dtype == dtype and out.shape == (tokens, rows)
    if DEVICE == "cuda":
        assert torch.equal(out, kernels.multiply(tiles, inputs, bias))
    product = inputs.double() @ exact(weight).double().T
    expected = product if bias is None else product + bias
    scale = inputs.double().norm(dim=1, keepdim=True) * exact(weight).double().norm(dim=1) + expected.abs()
    assert ((out.double() - expected).abs() <= TOLERANCE * scale).all()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_expansion_gives_the_dense_weight(pattern, int8):
    for rows, columns in ((20, 64), (40, 160)):
        weight = packed_weight(rows, columns, pattern, int8)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            dense, expected = expansion.expand(tile(weight), dtype), weight.to(dtype).dense()
            if not int8:
                expected = exact(weight).to(dtype)
            if int8 and dtype == torch.bfloat16 and DEVICE == "cpu":  # cut off by the interpreter
                torch.testing.assert_close(dense, expected, rtol=1e-2, atol=0)
            else:
                assert torch.equal(dense, expected)


@pytest.mark.parametrize("bits", [[1], [1 << 31], [0xFFFFFFFF], [3, 1 << 17, 0x80000001, 0x10]])
def test_bits_are_counted_and_found(bits):
    """The arithmetic that the interpreter runs instead of the GPU's instructions, and on a GPU those."""
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def run(bits_ptr, highest_ptr, number_ptr, PTX: tl.constexpr):
        mask = tl.load(bits_ptr).to(tl.uint32, bitcast=True)
        tl.store(highest_ptr, kernels._highest_bit(mask, PTX).to(tl.int32))
        tl.store(number_ptr, expansion._bits_set(mask, PTX))

    for value in bits:
        given = torch.tensor([value - (1 << 32) if value >> 31 else value], dtype=torch.int32, device=DEVICE)
        for ptx in {False, DEVICE == "cuda"}:
            highest, number = torch.empty_like(given), torch.empty_like(given)
            run[(1,)](given, highest, number, PTX=ptx)
            assert (highest.item(), number.item()) == (value.bit_length() - 1, value.bit_count())


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """SparseLinear lays its weight out in tiles on any device."""
    monkeypatch.setattr(sparse_linear, "_in_tiles", lambda device: device.type != "meta")


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, MOST_TOKENS, MOST_TOKENS + 1])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_linear_multiplies_with_tiles(tokens, int8):
    weight = packed_weight(37, 96, Unstructured(0.5), int8)
    bias = nn.Parameter(torch.randn(37).to(DEVICE, torch.bfloat16))
    linear = SparseLinear(weight, bias)
    inputs = torch.randn(tokens, 96).to(DEVICE, torch.bfloat16)
    with torch.no_grad():
        out = linear(inputs)
    expected = inputs.double() @ exact(weight).double().T + bias.double()
    assert out.shape == (tokens, 37) and out.dtype == torch.bfloat16
    assert (out.double() - expected).norm() <= TOLERANCE * expected.norm()
    wide = inputs.float()[None].requires_grad_()
    bias.data = bias.data.float()
    linear(wide).sum().backward()
    torch.testing.assert_close(wide.grad, exact(weight).sum(0).expand(1, tokens, 96))


@pytest.mark.parametrize("int8", [False, True])
def test_a_linear_moves_to_tiles_and_back(int8, monkeypatch):
    weight = packed_weight(37, 96, Unstructured(0.5), int8).on(torch.device("cpu"))
    linear = SparseLinear(weight)
    state = linear.state_dict()
    layouts = [linear.tiled]
    if DEVICE == "cuda":
        linear.cuda()
    else:
        monkeypatch.setattr(sparse_linear, "_in_tiles", lambda device: True)
        linear.float()  # any move looks at the device
    layouts.append(linear.tiled)
    assert linear.mask is not None and linear.mask.dim() == 3
    if DEVICE == "cuda":
        assert torch.equal(linear.state_dict()["weight"].cpu(), state["weight"])
        linear.cpu()
    else:
        monkeypatch.setattr(sparse_linear, "_in_tiles", lambda device: False)
        linear.float()
    assert [*layouts, linear.tiled] == [False, True, False]
    assert linear.mask is not None and weight.mask is not None and torch.equal(linear.mask, weight.mask)
    assert torch.equal(linear.weight, weight.dense())
    inputs = torch.randn(1, 96).bfloat16()
    assert torch.equal(linear(inputs), SparseLinear(weight)(inputs))


def test_inputs_of_another_device_are_refused():
    linear = SparseLinear(packed_weight(8, 32, NM(2, 4), False))
    with pytest.raises(RuntimeError, match="the weight is on"):
        linear(torch.empty(1, 32, device="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("int8", [False, True])
def test_products_are_captured_in_a_graph(int8):
    linear = SparseLinear(packed_weight(64, 256, Unstructured(0.5), int8))
    for tokens in (1, MOST_TOKENS + 1):
        inputs = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            linear(inputs)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = linear(inputs)
            inputs.copy_(torch.randn_like(inputs))
            graph.replay()
            assert torch.equal(out, linear(inputs))
