import json
import os
import shlex
import shutil
import signal
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.cli import main
from secateur.devices import threads
from secateur.digests import file_digest
from secateur.errors import InputError
from secateur.pruning import group, job, journal, prepare
from secateur.pruning import walk as walking
from secateur.pruning.journal import command_of
from secateur.recipe import Recipe
from tests import pico
from tests.stopping import WAYS, stopped, stopping

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40
# Steps of the file system: the journal, then the outer tensors and each of three blocks with its record.
FIRST, PER_FILE = 6, 6


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return Recipe(calibration=str(tmp_path / "text.txt"), samples=6, length=32)


def content(folder):
    """The digest of every file, without the times in the manifest."""
    manifest = json.loads((folder / "secateur.json").read_text())
    manifest = {key: value for key, value in manifest.items() if key != "seconds"}
    return {path.name: file_digest(path) for path in folder.iterdir() if path.name != "secateur.json"} | {"": manifest}


def pruned_blocks(monkeypatch):
    """The blocks whose work is done from now on, by name."""
    seen = []
    prune_groups = group.prune_groups

    def noting(visit, groups, task, ranks):
        if visit.where not in seen:
            seen.append(visit.where)
        prune_groups(visit, groups, task, ranks)

    monkeypatch.setattr(walking, "prune_groups", noting)
    return seen


RECIPES: dict[str, dict[str, Any]] = {
    "50 %": {},
    "one shot": {"score": "wanda", "one_shot": True},
    "2:4, model-wide order": {"pattern": "2:4"},
    "2:4, gather": {"pattern": "2:4", "fold": "gather"},
    "2:4, own orders": {"pattern": "2:4", "fold": "none"},
    "2:4, folds compared": {"pattern": "2:4", "compare_folds": True},
    "reconstructed": {"score": "sparsegpt", "pattern": "2:4", "reconstruct": "cg", "refine": True},
    "tuned": {"pattern": "2:4", "reconstruct": "cg", "tune": True, "epochs": 2},
    "weights alone": {"score": "magnitude"},
    "allocated": {"allocate": True},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_ends_in_the_bytes_of_one_that_was_not(name, tmp_path, recipe, monkeypatch):
    dense, recipe = pico.save("llama-gqa-tied", tmp_path / "dense"), replace(recipe, **RECIPES[name])
    secateur.prune(dense, tmp_path / "whole", recipe)
    out, blocks = tmp_path / "out", 3
    for stop in (30, 12, 28):  # again and again, at another place
        assert stopped(lambda: secateur.prune(dense, out, recipe, resume=True), stop)
        journal = json.loads((tmp_path / ".out.partial" / "journal.json").read_text())
        blocks = 3 - sum(name.endswith(".results") for name in journal["files"])
    assert blocks in (1, 2)
    seen = pruned_blocks(monkeypatch)
    secateur.prune(dense, out, recipe, resume=True)
    assert len(seen) == blocks, "what is finished is not done again"
    assert content(out) == content(tmp_path / "whole")
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "gemma3"])
def test_other_families_as_well(name, tmp_path, recipe):
    dense, recipe = pico.save(name, tmp_path / "dense", torch.bfloat16), replace(recipe, pattern="2:4")
    secateur.prune(dense, tmp_path / "whole", recipe)
    assert stopped(lambda: secateur.prune(dense, tmp_path / "out", recipe), 33)
    secateur.prune(dense, tmp_path / "out", recipe, resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::secateur.errors.Notice")  # a disk that is full when all but cleaning up is done
@pytest.mark.parametrize(("way", "step"), [("killed", 0), ("interrupted", 4), ("full disk", 8)])
def test_at_steps_from_first_to_last(way, step, tmp_path, recipe):
    dense, recipe = pico.save("llama-gqa-tied", tmp_path / "dense"), replace(recipe, pattern="2:4")
    secateur.prune(dense, tmp_path / "whole", recipe)
    out, wanted = tmp_path / "out", content(tmp_path / "whole")
    while stopped(lambda: secateur.prune(dense, out, recipe), step, way):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not out.exists():
                secateur.prune(dense, out, recipe, resume=True)
            else:
                secateur.prune(dense, out, recipe, resume=True, force=True)
        assert content(out) == wanted
        shutil.rmtree(out)
        step += 12
    assert step > 90


@pytest.fixture
def unfinished(tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    assert stopped(lambda: secateur.prune(dense, tmp_path / "out", recipe), 45)
    assert (tmp_path / ".out.partial" / "model.layers.0.results").exists()
    return dense


def kept(tmp_path):
    """The digests of all files that are finished."""
    folder = tmp_path / ".out.partial"
    names = json.loads((folder / "journal.json").read_text())["files"]
    return {name: file_digest(folder / name) for name in names}


def test_an_unfinished_run_is_named_with_the_command_that_continues_it(unfinished, tmp_path, recipe):
    before = kept(tmp_path)
    with pytest.raises(InputError, match=r"cut short.*\.out\.partial") as refusal:
        secateur.prune(unfinished, tmp_path / "out", recipe, force=True)
    assert kept(tmp_path) == before
    command = str(refusal.value).split("`")[1]
    with pytest.raises(SystemExit) as end:
        main([*shlex.split(command)[1:], "--quiet"])
    assert end.value.code == 0
    assert json.loads((tmp_path / "out" / "secateur.json").read_text())["recipe"]["samples"] == 6


def test_the_command_says_every_option(tmp_path, monkeypatch, capsys):
    recipe = Recipe(
        score="wanda", pattern="2:4", skip=("*.q_proj", "a b"), permute="greedy", communities=2, guard=False,
        reconstruct="cg", refine=True, one_shot=True, seed=3, alpha=0.25,
    )  # fmt: skip
    got: dict[str, Any] = {}
    monkeypatch.setattr(secateur, "prune", lambda *args, **options: got.update(args=args, **options) or {})
    with pytest.raises((SystemExit, KeyError)):
        main([*command_of("a model", tmp_path / "out", recipe, True)[1:], "--resume", "--json"])
    assert got["args"] == ("a model", tmp_path / "out", recipe)
    assert got["force"] and got["resume"]


def test_another_run_is_not_resumed(unfinished, tmp_path, recipe, monkeypatch):
    before = kept(tmp_path)

    def refused(message, recipe=recipe):
        with pytest.raises(InputError, match=message) as refusal:
            secateur.prune(unfinished, tmp_path / "out", recipe, resume=True)
        assert "--resume` goes on" in refusal.value.__notes__[0]
        assert kept(tmp_path) == before

    refused("another one: recipe sparsity was None, and is 0.25", replace(recipe, sparsity=0.25))
    (tmp_path / "text.txt").write_text(TEXT[1:])
    refused("another one: calibration token_ids_sha256 was")
    (tmp_path / "text.txt").write_text(TEXT)
    with monkeypatch.context() as patch:
        patch.setattr("secateur.pruning.job.__version__", "9.9")
        refused("another one: versions secateur was .*, and is 9.9")
    path, whole = unfinished / "model.safetensors", (unfinished / "model.safetensors").read_bytes()
    state = load_file(path)
    for name, message in (
        ("model.embed_tokens.weight", "another one: model outer was"),
        ("model.layers.0.mlp.up_proj.weight", r"model\.layers\.0 of the model is not what it was"),
    ):
        save_file(state | {name: state[name] + 1}, path, metadata={"format": "pt"})
        refused(message)
    save_file(state, path, metadata={"format": "pt", "other": "header"})
    refused(r"another one: model files model\.safetensors was")
    path.write_bytes(whole)
    config = (unfinished / "config.json").read_text()
    (unfinished / "config.json").write_text(config + " ")
    refused(r"another one: model files config\.json was")
    (unfinished / "config.json").write_text(config)
    secateur.prune(unfinished, tmp_path / "out", recipe, resume=True)
    assert not (tmp_path / ".out.partial").exists()


def test_threads_batches_and_precision_stay_those_of_the_start(tmp_path, recipe, monkeypatch):
    dense, recipe = pico.save("llama-gqa-tied", tmp_path / "dense"), replace(recipe, dtype="auto")
    with threads(2):
        assert stopped(lambda: secateur.prune(dense, tmp_path / "out", recipe), 45)
    used: dict[str, int] = {}

    def draw(source, recipe, batch, *more):
        used.update(batch=batch, threads=torch.get_num_threads())
        return real(source, recipe, batch, *more)

    real = prepare.draw_samples
    monkeypatch.setattr(job, "draw_samples", draw)
    monkeypatch.setattr(journal, "batch_size", lambda *_: 1)
    monkeypatch.setattr(journal, "choose_calibration_dtype", lambda *_: torch.bfloat16)
    with threads(1):
        manifest = secateur.prune(dense, tmp_path / "out", recipe, resume=True)
        assert torch.get_num_threads() == 1
    assert used == {"batch": 64, "threads": 2}
    assert manifest["computed_in"] == "float32"


def test_a_finished_survey_is_not_made_again(tmp_path, recipe, monkeypatch):
    dense, recipe = pico.save("llama-gqa-tied", tmp_path / "dense"), replace(recipe, pattern="2:4")
    secateur.prune(dense, tmp_path / "whole", recipe)
    assert stopped(lambda: secateur.prune(dense, tmp_path / "out", recipe), FIRST + PER_FILE + 3)
    assert (tmp_path / ".out.partial" / "shared.orders").exists()
    monkeypatch.setattr("secateur.pruning.folder._survey", None)
    secateur.prune(dense, tmp_path / "out", recipe, resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_after_the_last_block_no_sample_has_to_move(tmp_path, recipe, monkeypatch):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    secateur.prune(dense, tmp_path / "whole", recipe)
    assert stopped(lambda: secateur.prune(dense, tmp_path / "out", recipe), 60)
    monkeypatch.setattr("secateur.calibrate.calibration.Stream", None)
    secateur.prune(dense, tmp_path / "out", recipe, resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_to_resume_what_was_never_begun_is_to_begin(tmp_path, recipe):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    secateur.prune(dense, tmp_path / "out", recipe, resume=True)
    with pytest.raises(InputError, match="exists; give another --out"):
        secateur.prune(dense, tmp_path / "out", recipe, resume=True)


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGHUP, "SIGHUP", 129), (signal.SIGINT, "SIGINT", 130)],
)
def test_signals_leave_what_resume_needs_and_say_so(number, name, code, tmp_path, recipe, monkeypatch, capsys):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    monkeypatch.setitem(WAYS, "signal", lambda: os.kill(os.getpid(), number))
    words = [*command_of(dense, tmp_path / "out", recipe, False)[1:], "--quiet"]
    for step, message in ((5, ""), (45, "4 finished files of it are in")):
        with pytest.raises(SystemExit) as end, stopping(step, "signal"):
            main(words)
        assert end.value.code == code
        said = " ".join(capsys.readouterr().err.split())
        assert f"stopped by {name}" in said and message in said
        assert ("--resume`" in said) == bool(message) == (tmp_path / ".out.partial").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with pytest.raises(SystemExit) as end:
        main([*words, "--resume"])
    assert end.value.code == 0


def test_a_signal_that_is_to_be_ignored_stays_so(tmp_path, recipe, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        dense = pico.save("llama-gqa-tied", tmp_path / "dense")
        monkeypatch.setitem(WAYS, "signal", lambda: os.kill(os.getpid(), signal.SIGHUP))
        with pytest.raises(SystemExit) as end, stopping(45, "signal"):
            main([*command_of(dense, tmp_path / "out", recipe, False)[1:], "--quiet"])
        assert end.value.code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_removed_is_named(tmp_path, recipe, capsys):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    assert stopped(lambda: secateur.prune(dense, tmp_path / "out", recipe), 10)
    with pytest.raises(SystemExit) as end:
        main([*command_of(dense, tmp_path / "out", recipe, False)[1:], "--quiet"])
    assert end.value.code == 0
    assert "note: removed" in capsys.readouterr().err


def test_a_full_disk_is_said_and_what_is_finished_is_kept(tmp_path, recipe, capsys):
    dense = pico.save("llama-gqa-tied", tmp_path / "dense")
    with pytest.raises(SystemExit) as end, stopping(45, "full disk"):
        main([*command_of(dense, tmp_path / "out", recipe, False)[1:], "--quiet"])
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in said and "--resume`" in said and "Traceback" not in said
    secateur.prune(dense, tmp_path / "out", recipe, resume=True)
