import ctypes
import gc
from typing import Any

import pytest
import torch

from secateur.runtime import cusparselt
from secateur.runtime.cusparselt import Algorithm, Library, Plan, Problem, compress, token_multiple
from tests.cuda import TYPES, pruned
from tests.cusparselt import CONFIGS, StandIn


def the_library():
    library: Any = cusparselt.library()
    return library


def product(weight, inputs, bias=None, out_dtype=None, config=0):
    library = the_library()
    out_dtype = out_dtype or weight.dtype
    rows, columns = weight.shape
    address = 0 if bias is None else bias.data_ptr()
    problem = Problem(rows, columns, len(inputs), weight.dtype, out_dtype, address)
    out = torch.full((len(inputs), len(weight)), torch.nan, dtype=out_dtype)
    Plan(problem, Algorithm(config), 0, library).launch(compress(weight, library), inputs, out)
    return out


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_plan_multiplies_rows_by_the_weight(dtype, with_bias, cusparselt_stand_in):
    weight, inputs = pruned(32, 64, dtype), torch.randn(16, 64).to(dtype)
    bias = torch.randn(32).to(dtype) if with_bias else None
    expected = inputs.double() @ weight.double().T + (0 if bias is None else bias)
    torch.testing.assert_close(product(weight, inputs, bias).double(), expected, atol=0.05, rtol=0.01)


def test_eight_bit_floats_give_sixteen_bit_products(cusparselt_stand_in):
    weight, inputs = pruned(32, 64).to(torch.float8_e4m3fn), torch.randn(16, 64).to(torch.float8_e4m3fn)
    out = product(weight, inputs, out_dtype=torch.bfloat16)
    torch.testing.assert_close(out.float(), inputs.float() @ weight.float().T, atol=0.05, rtol=0.01)
    assert (token_multiple(torch.float8_e4m3fn), token_multiple(torch.bfloat16)) == (16, 8)


def test_a_plan_says_how_many_algorithms_there_are_and_refuses_others(cusparselt_stand_in):
    problem = Problem(32, 64, 8, torch.bfloat16, torch.bfloat16)
    assert Plan(problem, Algorithm(), 0, the_library()).configs == CONFIGS
    with pytest.raises(RuntimeError, match="cusparseLtMatmulAlgSetAttribute: operation not supported"):
        Plan(problem, Algorithm(CONFIGS), 0, the_library())


def test_what_a_plan_is_made_of_lives_as_long_as_the_plan(cusparselt_stand_in):
    problem = Problem(32, 64, 8, torch.bfloat16, torch.bfloat16)
    plan = Plan(problem, Algorithm(1), 0, the_library())
    held = len(cusparselt_stand_in.alive)
    with pytest.raises(RuntimeError):
        Plan(problem, Algorithm(CONFIGS), 0, the_library())
    gc.collect()
    # One handle for all; a product's description cannot be destroyed in the library's interface.
    products = sum(isinstance(made, dict) and "a" in made for made in cusparselt_stand_in.alive.values())
    assert held >= 6 and len(cusparselt_stand_in.alive) <= held + 1
    del plan
    gc.collect()
    assert len(cusparselt_stand_in.alive) <= 1 + products


def test_versions_of_another_interface_are_refused():
    for version in ((0, 5, 2), (1, 0, 0)):
        with pytest.raises(RuntimeError, match="not one of the versions"):
            Library(StandIn(version))
    assert Library(StandIn((0, 7, 1))).version == 701


def test_structs_begin_at_a_multiple_of_64_bytes():
    for _ in range(5):
        assert (cusparselt.Struct()._as_parameter_.value or 0) % 64 == 0


def test_where_there_is_no_library_there_is_none(monkeypatch):
    def missing(file):
        raise OSError(file)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    cusparselt.library.cache_clear()
    assert cusparselt.library() is None
    cusparselt.library.cache_clear()
