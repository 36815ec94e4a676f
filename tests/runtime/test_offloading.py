"""A model whose blocks are read as they run is the model that is loaded whole."""

from dataclasses import replace

import pytest
import torch

import secateur
from secateur.checkpoint import Source
from secateur.errors import InputError, Notice
from secateur.models.blocks import blocks_of, family_of
from secateur.recipe import Recipe
from secateur.runtime.loading import FREE
from secateur.runtime.offloading import offload, offloaded_bytes
from tests import pico, reads

CPU = torch.device("cpu")


def least(folder, dtype=torch.float32):
    """So much memory that a model has to be offloaded, and can be."""
    return str(offloaded_bytes(Source(folder), dtype, CPU))


def pruned(kind, tmp_path, dtype=torch.bfloat16):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense", dtype)
    (tmp_path / "text.txt").write_text("Something to calibrate on, over and over again. " * 40)
    recipe = Recipe(pattern="2:4", calibration=str(tmp_path / "text.txt"), samples=4, length=32)
    recipe = replace(recipe, fold="gather") if kind == "gather" else recipe
    secateur.prune(dense, tmp_path / "pruned", recipe)
    if kind not in ("packed", "int8"):
        return tmp_path / "pruned"
    secateur.pack(tmp_path / "pruned", tmp_path / "packed", int8=kind == "int8")
    return tmp_path / "packed"


@pytest.mark.parametrize("name", pico.ALL)
def test_logits_are_those_of_the_whole_model(name, tmp_path):
    folder, batch = pico.save(name, tmp_path), pico.tokens()
    model = offload(Source(folder), torch.float32, CPU)
    whole = secateur.load(folder)
    with torch.no_grad():
        for _ in range(2):  # what a block leaves behind would show in the second pass
            torch.testing.assert_close(model(batch).logits, whole(batch).logits, rtol=1e-4, atol=1e-5)
    assert {block.device.type for block in model.offloaded.blocks} == {"meta"}
    assert not next(model.parameters()).is_meta


@pytest.mark.parametrize("kind", ["gather", "packed", "int8"])
def test_it_reads_whatever_was_written(kind, tmp_path):
    folder, batch = pruned(kind, tmp_path), pico.tokens()
    model, whole = offload(Source(folder), torch.float32, CPU), secateur.load(folder, "float32")
    with torch.no_grad():
        torch.testing.assert_close(model(batch).logits, whole(batch).logits, rtol=1e-3, atol=1e-4)


def test_two_blocks_are_in_memory_and_each_is_read_once_a_pass(tmp_path, monkeypatch):
    folder = pico.save("llama-mha", tmp_path)
    model = offload(Source(folder), torch.float32, CPU)
    blocks, alive = blocks_of(model, family_of(model)), []
    for block in blocks:
        block.module.get_submodule("input_layernorm").register_forward_hook(
            lambda *_: alive.append([other.device.type for other in blocks].count("cpu"))
        )
    inside = sum(tensor.nbytes for block in blocks for tensor in block.module.parameters())
    with reads.counted(monkeypatch) as read, torch.no_grad():
        for _ in range(3):
            model(pico.tokens())
        model.offloaded._reader.shutdown()
        assert alive == [1] * 9
        assert read[folder] == 3 * inside + inside // 3  # the first is read again for a pass that does not come


def test_generation_is_that_of_the_whole_model(tmp_path):
    folder = pruned("gather", tmp_path)
    whole = secateur.generate(folder, "some words", tokens=12, device="cpu", dtype="float32")
    with pytest.warns(Notice, match="more than .* of memory allow: its blocks are read from disk when they run"):
        parts = secateur.generate(folder, "some words", tokens=12, device="cpu", dtype="float32", memory=least(folder))
    assert (parts.text, parts.tokens) == (whole.text, whole.tokens)


def test_what_fits_is_loaded_whole(tmp_path):
    folder = pico.save("llama-mha", tmp_path)
    assert secateur.load(folder).offloaded is None
    assert secateur.load(folder, memory=FREE).offloaded is None
    assert secateur.load(folder, memory="1GB").offloaded is None


def test_packed_weights_count_as_they_are_in_memory(tmp_path):
    folder = pruned("int8", tmp_path)
    size = reads.size_of(folder)
    assert secateur.load(folder, memory=f"{2 * size}").offloaded is None


def test_too_little_memory_is_refused(tmp_path):
    folder = pico.save("llama-mha", tmp_path)
    short = str(int(least(folder)) - 1)
    with pytest.raises(InputError, match=r"even with one block at a time in memory, and --memory allows"):
        secateur.load(folder, memory=short)
    with pytest.raises(InputError, match="blocks that are read as they run are dense"), pytest.warns(Notice):
        secateur.load(folder, memory=least(folder), form="packed")
    for ask in (
        lambda: secateur.evaluate(folder, memory="much"),
        lambda: secateur.generate(folder, "a", memory="much"),
    ):
        with pytest.raises(InputError, match="'much' is no size"):
            ask()
