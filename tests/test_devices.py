import pytest
import torch

import secateur
from secateur.devices import full_precision
from secateur.recipe import Recipe
from tests import pico

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def settings_of_the_process():
    before = [backend.fp32_precision for backend in BACKENDS]
    yield
    torch.set_float32_matmul_precision("highest")
    for backend, precision in zip(BACKENDS, before, strict=True):
        backend.fp32_precision = precision


def set_apart(precision):
    BACKENDS[1].fp32_precision = precision


COARSE = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "allow_tf32": lambda: setattr(BACKENDS[0], "allow_tf32", True),
    "one backend": lambda: set_apart("bf16"),
}


def state():
    try:
        name = torch.get_float32_matmul_precision()
    except RuntimeError:
        name = "set apart"
    return name, *(backend.fp32_precision for backend in BACKENDS)


@pytest.mark.parametrize("coarse", COARSE.values(), ids=COARSE)
def test_full_precision_is_for_a_while(coarse):
    coarse()
    before = state()
    with pytest.raises(KeyError), full_precision():
        assert state() == ("highest", "ieee", "ieee")
        raise KeyError
    assert state() == before


@pytest.mark.parametrize(
    "recipe", [{"reconstruct": "cg", "refine": True}, {"reconstruct": "admm"}, {"score": "sparsegpt"}]
)
def test_what_is_pruned_does_not_depend_on_the_precision_of_products(recipe):
    """Coarse products show where the processor has them: AMX, TF32."""

    def digests():
        model = pico.build("llama-gqa-tied")
        manifest = secateur.prune_module(model, list(pico.tokens(8, 64).split(1)), Recipe(pattern="2:4", **recipe))
        return [(layer["weight_sha256"], layer["relative_error"]) for layer in manifest["layers"]]

    expected = digests()
    for coarse in COARSE.values():
        coarse()
        assert digests() == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert digests() == expected
