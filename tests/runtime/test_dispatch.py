import copy

import pytest
import torch
from torch import nn

from secateur.checkpoint.sparse import pack
from secateur.runtime.dispatch import DispatchedLinear, dense_linear, form_bytes
from secateur.runtime.semi_structured import SemiStructuredLinear
from secateur.runtime.sparse_linear import SparseLinear
from tests.cuda import pruned


def forms(weight, bias=None):
    return {
        "dense": dense_linear(weight, bias),
        "2:4": SemiStructuredLinear(weight, bias),
        "packed": SparseLinear(pack(weight), bias),
    }


def test_the_number_of_tokens_decides_which_form_multiplies():
    weight = torch.eye(4)
    made = {"a": dense_linear(weight, None), "b": dense_linear(2 * weight, None)}
    linear = DispatchedLinear(made, {1: "a", 16: "b", 128: "a"}, torch.float32)
    factors = {tokens: linear(torch.ones(tokens, 4))[0, 0].item() for tokens in (1, 4, 5, 16, 45, 46, 1000)}
    assert factors == {1: 1, 4: 1, 5: 2, 16: 2, 45: 2, 46: 1, 1000: 1}
    assert linear(torch.ones(2, 3, 4)).tolist() == [[[2.0] * 4] * 3] * 2  # six tokens, not two or three
    assert linear(torch.ones(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("name", ["dense", "2:4", "packed"])
def test_it_saves_as_the_linear_it_stands_for_and_is_dense_when_it_is_cast(name, cusparselt_stand_in):
    weight, bias = pruned(32, 64), nn.Parameter(torch.ones(32).bfloat16())
    linear = DispatchedLinear({name: forms(weight, bias)[name]}, {1: name}, torch.bfloat16)
    plain = nn.Linear(64, 32, dtype=torch.bfloat16)
    plain.load_state_dict(linear.state_dict())
    assert torch.equal(plain.weight, weight) and torch.equal(plain.bias, bias)
    assert list(linear.to("cpu").forms) == [name]
    cast = copy.deepcopy(linear).to(torch.float32)
    inputs = torch.randn(3, 64)
    assert torch.equal(cast(inputs), nn.functional.linear(inputs, weight.float(), cast.bias))
    assert cast.bias is not None and cast.bias.dtype == torch.float32 and list(cast.forms) == ["dense"]


def test_what_walks_through_a_model_sees_one_linear(cusparselt_stand_in):
    weight = pruned(32, 64)
    linear = DispatchedLinear(forms(weight), {1: "packed", 64: "2:4", 1024: "dense"}, torch.bfloat16)
    assert list(linear.modules()) == [linear] and list(linear.state_dict()) == ["weight"]
    assert linear.nbytes == sum(map(form_bytes, linear.forms.values())) > 2 * 0.5 * weight.nbytes
