"""What goes to the hub, and what never does. A stand-in for the hub takes what it is given."""

import json
from fnmatch import fnmatch

import huggingface_hub
import pytest
import torch

import secateur
from secateur.errors import InputError, Notice
from secateur.recipe import Recipe
from tests import pico
from tests.specimens import TEXT

NAME = "org/name"


class Hub:
    """Takes what HfApi would send, and keeps it."""

    def __init__(self, *, held_publicly=False, fails=None):
        self.calls, self.files, self.private, self._fails = [], {}, not held_publicly, fails

    def create_repo(self, name, *, private, exist_ok):
        self.calls.append((name, private))
        assert exist_ok
        self.private &= private
        return f"address of {name}"

    def repo_info(self, name):
        return self

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self._fails:
            raise self._fails
        assert repo_id == NAME and "/" not in commit_message
        self.files = {path.name: path.read_bytes() for path in folder_path.iterdir()}


@pytest.fixture
def push(monkeypatch):
    """``push`` to a stand-in, by somebody who is logged in."""

    def to(hub, folder, *, token="token", **options):
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        return secateur.push(folder, NAME, **options)

    return to


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pruned model, made of a folder and a text of this machine."""
    root = tmp_path_factory.mktemp("secret")
    dense = pico.save("llama-gqa-tied", root / "dense")
    (root / "notes.txt").write_text(TEXT)
    recipe = Recipe(score="wanda", sparsity=0.5, calibration=str(root / "notes.txt"), samples=2, length=16)
    secateur.prune(dense, root / "pruned", recipe)
    return root / "pruned"


def test_what_secateur_wrote_goes_there_and_nothing_else(push, folder):
    hub = Hub()
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "key.pem").write_text("private")
    with pytest.warns(Notice, match=r"key\.pem stay here"):
        assert push(hub, folder) == f"address of {NAME}"
    (folder / "key.pem").unlink()
    (folder / "model.gguf").rename(folder.parent / "model.gguf")
    assert hub.calls == [(NAME, True)]  # private
    assert hub.files.keys() == {path.name for path in folder.iterdir()} | {"model.gguf"}
    weights = [name for name in hub.files if name.endswith(".safetensors")]
    assert weights and all(hub.files[name] == (folder / name).read_bytes() for name in weights)


def test_no_path_of_this_machine_is_told(push, folder):
    hub = Hub()
    push(hub, folder, public=True)
    assert hub.calls == [(NAME, False)]
    assert str(folder.parent).encode() in (folder / "secateur.json").read_bytes()
    assert not [name for name, content in hub.files.items() if str(folder.parent).encode() in content]
    told, own = json.loads(hub.files["secateur.json"]), json.loads((folder / "secateur.json").read_text())
    assert (told.pop("model"), told["recipe"].pop("calibration")) == ("dense", "notes.txt")
    own.pop("model"), own["recipe"].pop("calibration")
    told["calibration"].pop("source"), own["calibration"].pop("source")
    assert told == own


def test_the_card_calls_the_model_by_its_name(push, folder):
    hub = Hub()
    push(hub, folder)
    card = hub.files["README.md"].decode()
    assert f'from_pretrained("{NAME}"' in card and "THIS_FOLDER" not in card
    assert "THIS_FOLDER" in (folder / "README.md").read_text()


def test_what_is_pushed_is_all_there_when_it_is_loaded_by_its_name(push, folder, tmp_path, monkeypatch):
    hub = Hub()
    push(hub, folder)

    def download(name, *, allow_patterns):
        assert name == NAME
        for file, content in hub.files.items():
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).write_bytes(content)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = secateur.load(NAME)
    assert hub.files.keys() == {path.name for path in tmp_path.iterdir()}
    assert torch.equal(loaded.model.norm.weight, secateur.load(folder).model.norm.weight)
    assert secateur.verify(tmp_path).passed


@pytest.mark.parametrize(
    ("hub", "options", "said"),
    [
        (Hub(), {"token": None}, "hf auth login"),
        (Hub(held_publicly=True), {}, "and public"),
        (Hub(fails=ConnectionError("offline mode")), {}, "does not take org/name .offline mode"),
    ],
    ids=["nobody is logged in", "public already", "no connection"],
)
def test_nothing_is_sent(hub, options, said, push, folder):
    with pytest.raises(InputError, match=said):
        push(hub, folder, **options)
    assert not hub.files


def test_a_folder_that_was_changed_is_refused(push, folder, tmp_path):
    hub = Hub()
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    with pytest.raises(InputError, match="not written by secateur"):
        push(hub, dense)
    config = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(config + b" ")
    with pytest.raises(InputError, match="no longer as it was written"):
        push(hub, folder)
    (folder / "config.json").write_bytes(config)
    with pytest.raises(InputError, match="is no name on the hub"):
        secateur.push(folder, "name")
    assert not hub.calls
