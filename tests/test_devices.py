import pytest
import torch

import secateur
from secateur import devices
from secateur.devices import (
    bfloat16_products,
    choose_calibration_dtype,
    choose_dtype,
    free_memory,
    full_precision,
)
from secateur.digests import tensors_digest
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
        return tensors_digest(model.state_dict()), [layer["relative_error"] for layer in manifest["layers"]]

    expected = digests()
    for coarse in COARSE.values():
        coarse()
        assert digests() == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert digests() == expected


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_calibration_runs_in_bfloat16_where_that_is_fast_and_evaluation_does_not(stored, monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_calibration_dtype("auto", stored, cpu) == choose_dtype("auto", stored, cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    fast = torch.float32 if stored == torch.float16 else torch.bfloat16  # float16 reaches less far
    assert choose_calibration_dtype("auto", stored, cpu) == fast
    assert choose_calibration_dtype("float32", stored, cpu) == choose_dtype("auto", stored, cpu) == torch.float32
    assert choose_calibration_dtype("auto", stored, gpu) == stored


def test_bfloat16_products_are_for_a_while():
    before = state()
    with pytest.raises(KeyError), bfloat16_products():
        raise KeyError
    assert state() == before


@pytest.mark.parametrize(("most", "free"), [("1000000", 650_000), ("300000", 0), ("max", None), (None, None)])
def test_a_container_has_no_more_than_it_is_given(most, free, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    machine = free_memory(torch.device("cpu"))
    if most:
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text("400000\n")
        (tmp_path / "memory.stat").write_text("anon 350000\ninactive_file 50000\nactive_file 0\n")
    now = free_memory(torch.device("cpu"))
    assert now == free if free is not None else now > machine / 4
