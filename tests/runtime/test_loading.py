"""A model is loaded by whatever name the commands take."""

import gc

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur.checkpoint import Source, resolve
from secateur.errors import InputError, Notice
from secateur.runtime.offloading import offloaded_bytes
from tests import pico
from tests.specimens import write_gguf

pytestmark = pytest.mark.filterwarnings("ignore::secateur.errors.Notice")


def logits(model):
    with torch.no_grad():
        return model(pico.tokens()).logits


def test_a_hub_name_is_fetched(tmp_path, monkeypatch):
    folder = pico.save("llama-mha", tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: {"org/name": str(folder)}[name])
    assert torch.equal(logits(secateur.load("org/name")), logits(secateur.load(folder)))
    with pytest.raises(InputError, match="there is no folder org/other, and the hub does not give a model"):
        secateur.load("org/other")


def test_a_gguf_file_is_what_it_converts_to(tmp_path):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "model.gguf")
    with resolve.local_folder(str(tmp_path / "model.gguf")) as folder:
        expected = logits(AutoModelForCausalLM.from_pretrained(folder).eval())
    torch.testing.assert_close(logits(secateur.load(tmp_path / "model.gguf")), expected)


def test_what_is_unpacked_for_a_model_that_is_read_as_it_runs_stays_as_long_as_it(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "model.gguf")
    expected = logits(secateur.load(tmp_path / "model.gguf"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nothing can be kept there
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with resolve.local_folder(str(tmp_path / "model.gguf")) as folder:
        memory = str(offloaded_bytes(Source(folder), torch.float32, torch.device("cpu")))
    with pytest.warns(Notice, match="read from disk when they run"):
        model = secateur.load(tmp_path / "model.gguf", "float32", memory=memory)
    torch.testing.assert_close(logits(model), expected)
    assert list((tmp_path / "scratch").iterdir())
    del model
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())
