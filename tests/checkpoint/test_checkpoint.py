import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from secateur.checkpoint import INDEX, Source, Workspace, Writer, check, load_into, local_folder
from secateur.errors import InputError
from secateur.runtime.loading import load
from tests import pico


@pytest.fixture
def folder(tmp_path):
    return pico.save("llama-gqa-tied", tmp_path / "model")


def copy(source, out):
    with Workspace(out, source.folder) as work:
        work.begin()
        writer = Writer(work, len(source.names()))
        for name in source.names():
            writer.add(source.read([name]))
        writer.finish(source.folder, source.folder, {"secateur": "test"})


def test_written_folder_is_the_same_model(folder, tmp_path):
    copy(Source(folder), tmp_path / "out")
    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", pico.ALL)
def test_every_tiny_model_is_read_in_parts(name, tmp_path):
    source = Source(pico.save(name, tmp_path))
    model = source.skeleton(torch.float32)
    assert all(p.is_meta for p in model.parameters())
    load_into(model, source.read(source.names()), "", torch.device("cpu"))
    batch = pico.tokens()
    before, after = (m.base_model(batch).last_hidden_state for m in (pico.build(name), model))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_an_index_does_not_lead_outside(folder, file):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    with pytest.raises(InputError, match="not the name of a .safetensors file"):
        Source(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(content)
    with pytest.raises(InputError, match="damaged"):
        Source(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "model-7.safetensors"}}))
    with pytest.raises(InputError, match=r"lacks model-7\.safetensors"):
        Source(folder)


def test_a_cut_off_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged or incomplete"):
        Source(folder)


def test_pickles_are_never_read(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state))
    path.unlink()
    with pytest.raises(InputError, match="pickled weights"):
        Source(folder)
    save_file({"unrelated": torch.ones(1)}, path, metadata={"format": "pt"})
    with pytest.raises(InputError), local_folder(str(folder)):
        pass


def test_stray_weights_are_not_the_models(folder):
    stray = {name: torch.ones_like(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(stray, folder / "model_old.safetensors")
    tensor = Source(folder).read(["model.norm.weight"])["model.norm.weight"]
    assert torch.equal(tensor, load_file(folder / "model.safetensors")["model.norm.weight"])


def test_quantized_models_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match=r"is quantized \(gptq\)"):
        Source(folder)


def test_remote_code_is_not_run_and_not_asked_about(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match=r"config\.json"):
        Source(folder)


def test_missing_weights_are_not_made_up(tmp_path):
    folder = pico.save("llama-mha", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights of its model.*lm_head"):
        load(folder)


def test_a_folder_without_tokenizer_is_refused(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        Source(folder).tokenizer()


def test_no_model_there():
    with pytest.raises(InputError, match=r"there is no folder .*/nowhere/at/all"), local_folder("/nowhere/at/all"):
        pass
    with pytest.raises(InputError, match="no file"), local_folder("missing.gguf"):
        pass


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"), local_folder(str(tmp_path)):
        pass


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    def download(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(InputError, match="no network.*local folder"), local_folder("org/model"):
        pass


def test_only_safe_files_are_copied(folder, tmp_path):
    (folder / "modeling_custom.py").touch()
    (folder / "optimizer.pt").touch()
    (folder / "LICENSE").write_text("terms")
    copy(Source(folder), tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "LICENSE", "secateur.json"} <= names
    assert not {"modeling_custom.py", "optimizer.pt"} & names


def test_an_older_layout_is_brought_up_to_date(folder):
    path = folder / "model.safetensors"
    old = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    save_file(old, path, metadata={"format": "pt"})
    assert not check(Source(folder))
    with local_folder(str(folder)) as converted:
        assert converted != folder
        assert check(Source(converted))
    assert not converted.exists()


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "phimoe", "granite-moe", "gpt-oss"])
def test_experts_are_stacked_as_the_model_has_them_and_split_again(name, tmp_path):
    source = Source(pico.save(name, tmp_path / "dense"))
    tensors = source.read(source.names())
    state = pico.build(name).state_dict()
    assert tensors.keys() == state.keys()
    for key, tensor in tensors.items():
        assert torch.equal(tensor, state[key])
    stored = source.stacks.split(tensors)
    files = load_file(tmp_path / "dense" / "model.safetensors")
    assert stored.keys() == files.keys()
    assert all(torch.equal(stored[key], files[key]) for key in files)
