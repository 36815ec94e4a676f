import errno
import fcntl
import json
import os
import shutil
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

from secateur.checkpoint import Workspace, Writer, durable, local_folder
from secateur.checkpoint.durable import exchange, lock, scratch_folder
from secateur.digests import file_digest
from secateur.errors import InputError, Notice
from tests import pico
from tests.stopping import stopped

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")  # here the machine goes on when a process dies


@pytest.fixture
def dense(tmp_path):
    folder = tmp_path / "dense"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "any"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write(dense, out, value, shards=2, **options):
    """A model folder whose weights are all ``value``, in resumable steps like those of a walk."""
    with Workspace(out, dense, **options) as work:
        work.begin({"value": value}, ["write", str(value)])
        writer = Writer(work, shards)
        for index in range(shards):
            if writer.has(index) and work.intact(f"record {index}"):
                writer.again()
                continue
            writer.add({f"weight {index}": torch.full((3,), float(value))})
            with work.file(f"record {index}") as path:
                path.write_text("done")
        writer.finish(dense, dense, {"value": value})


def value_of(out: Path) -> int | None:
    """What the folder was written with, None if there is none; it must be whole."""
    if not out.exists():
        return None
    manifest = json.loads((out / "secateur.json").read_text())
    found = {path.name: file_digest(path) for path in out.iterdir() if path.name != "secateur.json"}
    assert found.pop("README.md") and found == manifest["files"] and len(found) == 5
    return manifest["value"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("way", ["killed", "interrupted", "full disk"])
def test_whatever_stops_a_run_the_old_or_the_new_model_is_there(tmp_path, dense, way, exchanges):
    write(dense, tmp_path / "before", 1)
    out, steps = tmp_path / "out", 0
    for step in (*range(0, 44, 4), *range(44, 200)):
        shutil.copytree(tmp_path / "before", out)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            was_stopped = stopped(lambda: write(dense, out, 2, force=True), step, way, exchanges)
            if exchanges or way != "killed":  # else the next run sees to it
                assert value_of(out) in (1, 2), f"lost at step {step}"
            with suppress(InputError):
                write(dense, out, 2, resume=True)
            assert value_of(out) in (1, 2), f"lost after step {step}"
            write(dense, out, 2, force=True, resume=True)
        assert value_of(out) == 2
        assert names(tmp_path) == ["before", "dense", "out"], f"left at step {step}"
        shutil.rmtree(out)
        steps += was_stopped
        if not was_stopped and step > 70:
            break
    assert 20 < steps < step


def test_a_failing_swap_is_taken_back_at_once(tmp_path, dense, monkeypatch):
    write(dense, tmp_path / "out", 1)
    rename = Path.rename

    def failing(self, target):
        if self.name == "model":
            raise OSError(errno.EACCES, "not permitted")
        return rename(self, target)

    monkeypatch.setattr("secateur.checkpoint.workspace.exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="not permitted") as failure:
        write(dense, tmp_path / "out", 2, force=True)
    assert value_of(tmp_path / "out") == 1
    assert "`write 2 --resume` goes on" in failure.value.__notes__[0]
    monkeypatch.undo()
    write(dense, tmp_path / "out", 2, force=True, resume=True)
    assert value_of(tmp_path / "out") == 2


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, dense, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    replace = os.replace

    def replacing(*paths):
        calls.append("replace")
        replace(*paths)

    monkeypatch.setattr(os, "replace", replacing)
    with durable.replacing(tmp_path / "file") as aside:
        aside.write_text("content")
    assert calls == [str(aside), "replace", str(tmp_path)]
    calls.clear()
    write(dense, tmp_path / "out", 1)
    swap = len(calls) - 1 - calls[::-1].index(str(tmp_path))
    assert str(tmp_path / ".out.partial") in calls[swap:], "the exchange of names is on the disk as well"
    with pytest.raises(KeyError), durable.replacing(tmp_path / "file") as aside:
        aside.write_text("half")
        raise KeyError
    assert names(tmp_path) == ["dense", "file", "out"] and (tmp_path / "file").read_text() == "content"


def test_folders_are_exchanged_in_one_step_or_not_at_all(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if exchange(tmp_path / "a", tmp_path / "b"):
        assert names(tmp_path / "a") == ["b"] and names(tmp_path / "b") == ["a"]
    else:
        assert names(tmp_path / "a") == ["a"] and names(tmp_path / "b") == ["b"]
    with pytest.raises(OSError, match="missing"):
        exchange(tmp_path / "a", tmp_path / "missing")


def test_unfinished_work_is_named_and_never_discarded_by_a_habit(tmp_path, dense):
    out = tmp_path / "out"
    assert stopped(lambda: write(dense, out, 2), 40)
    kept = names(tmp_path / ".out.partial")
    for options in ({}, {"force": True}):
        with pytest.raises(
            InputError, match=r"cut short.*out\.partial; `write 2 --resume` goes on.*delete that folder"
        ):
            write(dense, out, 2, **options)
    with pytest.raises(InputError, match="differed in its value, and so was another one: value was 2, and is 3"):
        write(dense, out, 3, resume=True)
    assert names(tmp_path / ".out.partial") == kept
    write(dense, out, 2, resume=True)
    assert value_of(out) == 2


def test_what_cannot_be_resumed_is_removed_with_a_notice(tmp_path, dense):
    out = tmp_path / "out"
    assert stopped(lambda: write(dense, out, 2), 10)
    assert (tmp_path / ".out.partial").exists()
    with pytest.warns(Notice, match=r"removed .*out\.partial, which a run that was cut short had left"):
        write(dense, out, 3)
    assert value_of(out) == 3
    assert names(tmp_path) == ["dense", "out"]


DAMAGED = {
    "empty": b"",
    "truncated": b'{"command": ["wri',
    "list": b"[]",
    "null": b"null",
    "object": b"{}",
    "nul": bytes(40),
    "no utf-8": b'{"command": ["\xff"], "run": {}, "files": {}}',
    "deep": b"[" * 100_000,
    "files": b'{"command": ["write"], "run": {}, "files": {"model/a": 1}}',
    "run": b'{"command": ["write"], "run": 5, "files": {}}',
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_journal_loses_nothing(tmp_path, dense, content, resume):
    assert stopped(lambda: write(dense, tmp_path / "out", 2), 50, "killed")
    partial = tmp_path / ".out.partial"
    assert (partial / "record 0").exists()
    (partial / "journal.json").write_bytes(content)
    before = {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match=r"journal of .*\.out\.partial is damaged .*: delete that folder to begin anew"
    ):
        write(dense, tmp_path / "out", 2, resume=resume)
    assert before == {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()}
    for path in (*partial.iterdir(), *(partial / "model").iterdir()):
        if path.is_file() and path.name not in ("secateur.lock", "journal.json"):
            path.unlink()
    with pytest.warns(Notice, match="removed"):
        write(dense, tmp_path / "out", 2)
    assert value_of(tmp_path / "out") == 2


@pytest.mark.parametrize("out", ["/", "//", "/tmp/.."])
def test_the_root_is_no_place_for_a_model(dense, out):
    refused("give a folder inside it", dense, out, force=True)


def test_a_damaged_file_is_written_again(tmp_path, dense):
    out = tmp_path / "out"
    assert stopped(lambda: write(dense, out, 2, shards=3), 45)
    shards = sorted((tmp_path / ".out.partial" / "model").glob("*.safetensors"))
    assert len(shards) == 3
    raw = bytearray(shards[1].read_bytes())
    raw[-1] ^= 1
    shards[1].write_bytes(raw)
    (shards[1].parent / ".begun.new").touch()
    write(dense, out, 2, shards=3, resume=True)
    written = json.loads((out / "secateur.json").read_text())["files"]
    assert names(out) == sorted([*written, "secateur.json", "README.md"])
    assert all(file_digest(out / name) == digest for name, digest in written.items())
    raw[-1] ^= 1
    assert (out / shards[1].name).read_bytes() == bytes(raw)


def test_bad_input_leaves_nothing_of_its_own_run(tmp_path, dense):
    with pytest.raises(InputError, match="bad"), Workspace(tmp_path / "out", dense) as work:
        work.begin({}, ["write"])
        with work.file("record") as path:
            path.write_text("done")
        raise InputError("bad")
    assert names(tmp_path) == ["dense"]


def test_the_journal_names_nothing_that_is_not_there(tmp_path, dense, monkeypatch):
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(listed(folder), reverse=True)))

    def bad():
        with Workspace(tmp_path / "out", dense) as work:
            work.begin({}, ["write"])
            for name in ("record", "model/shard"):
                with work.file(name) as path:
                    path.write_text("done")
            raise InputError("bad")

    for step in range(40):
        stopped(bad, step)
        journal = tmp_path / ".out.partial" / "journal.json"
        for name, digest in json.loads(journal.read_text())["files"].items() if journal.exists() else ():
            assert file_digest(journal.parent / name) == digest, f"at step {step}"
        shutil.rmtree(tmp_path / ".out.partial", ignore_errors=True)


def test_a_second_process_is_told_at_its_start(tmp_path, dense):
    with Workspace(tmp_path / "out", dense) as work:
        work.begin()
        with pytest.raises(InputError, match="another process is writing to"):
            write(dense, tmp_path / "out", 2)
        assert work.folder.exists()
    assert names(tmp_path) == ["dense"]


def test_a_lock_that_was_removed_locks_nothing(tmp_path, monkeypatch):
    """Whoever held it removes it between the opening of the file and its locking."""
    path, flock = tmp_path / "lock", fcntl.flock

    def late(*args):
        monkeypatch.undo()
        path.unlink()
        flock(*args)

    monkeypatch.setattr(fcntl, "flock", late)
    held = lock(path)
    assert held is not None
    with held:
        assert lock(path) is None
    again = lock(path)
    assert again is not None
    again.close()


# ---------------------------------------------------------------- what may be replaced


def refused(message, dense, out, **options):
    with pytest.raises(InputError, match=message):
        write(dense, out, 2, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "thesis.tex").touch(), "holds thesis.tex, which secateur.json does not list"),
        (lambda out: (out / "deeper").mkdir(), "holds deeper, which secateur.json does not list"),
        (lambda out: (out / "config.json").write_text("{ }"), "config.json is no longer as it was written"),
        (lambda out: (out / "secateur.json").unlink(), "has no secateur.json"),
        (lambda out: (out / "secateur.json").write_text("{}"), "does not list the files"),
        (lambda out: (out / "secateur.json").write_text("[" * 100_000), "does not list the files"),
        (lambda out: (out / "secateur.json").write_text('{"files": ["config.json"]}'), "does not list the files"),
        (
            lambda out: (
                (out / "config.json").rename(out.parent / "c"),
                (out / "config.json").symlink_to(out.parent / "c"),
            ),
            "config.json is no longer as it was written",
        ),
    ],
)
def test_force_replaces_only_what_secateur_wrote(tmp_path, dense, change, message):
    out = tmp_path / "out"
    write(dense, out, 1)
    refused("exists; give another --out, or --force", dense, out)
    change(out)
    before = names(out)
    refused(f"{message}.*move it away, or give another --out", dense, out, force=True)
    assert names(out) == before
    assert ".out.partial" not in names(tmp_path)


def test_an_empty_folder_is_replaced_and_a_file_or_a_link_is_not(tmp_path, dense):
    (tmp_path / "empty").mkdir()
    write(dense, tmp_path / "empty", 1)
    assert value_of(tmp_path / "empty") == 1
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    refused("exists and is not a folder", dense, tmp_path / "file", force=True)
    refused("is a link", dense, tmp_path / "link", force=True)


def test_the_model_itself_is_never_replaced(tmp_path, dense, monkeypatch):
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    for out in (dense, tmp_path / "elsewhere" / "dense"):
        refused("holds the model itself", dense, out, force=True)
    refused("holds the model itself", dense, tmp_path, force=True)
    for out in (dense / "pruned", tmp_path / "elsewhere" / "dense" / "a" / "b"):
        refused("lies in the model itself", dense, out)
    monkeypatch.chdir(dense)
    for out in (".", "..", "../dense", "../dense/../dense"):
        refused("holds the model itself", dense, out, force=True)
    assert names(tmp_path) == ["dense", "elsewhere"] and names(dense) == ["config.json", "tokenizer.json"]


def test_what_the_models_files_are_links_to_is_never_replaced(tmp_path, dense):
    """As in the hub's cache, whose snapshots are links to blobs."""
    (tmp_path / "cache" / "blobs").mkdir(parents=True)
    snapshot = tmp_path / "cache" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for name in names(dense):
        (dense / name).rename(tmp_path / "cache" / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    for out in ("cache", "cache/blobs", "cache/snapshots"):
        refused("holds the model itself", snapshot, tmp_path / out, force=True)
    refused("lies in the model itself", snapshot, snapshot / "out")


def test_the_current_folder_is_not_replaced(tmp_path, dense, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for out in (".", "..", tmp_path / "here"):
        refused("holds the current folder", dense, out)


def test_what_has_come_to_lie_there_meanwhile_is_not_replaced(tmp_path, dense, monkeypatch):
    out = tmp_path / "out"
    finish = Writer.finish

    def late(*args):
        out.mkdir()
        (out / "thesis.tex").touch()
        finish(*args)

    monkeypatch.setattr(Writer, "finish", late)
    with pytest.raises(InputError, match="changed while the new model was made") as refusal:
        write(dense, out, 2)
    assert names(out) == ["thesis.tex"]
    assert "`write 2 --resume` goes on" in refusal.value.__notes__[0], "the finished model is kept"


@pytest.mark.parametrize("out", ["file/out", "x" * 250])
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, dense, out):
    (tmp_path / "file").touch()
    refused("cannot be written", dense, tmp_path / out)
    assert names(tmp_path) == ["dense", "file"]


def test_a_folder_that_only_has_the_workspaces_name_is_left_alone(tmp_path, dense):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "thesis.tex").touch()
    refused("was not made by Secateur", dense, tmp_path / "out", force=True, resume=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".other.partial").symlink_to(tmp_path / "elsewhere")
    refused("was not made by Secateur", dense, tmp_path / "other")
    assert names(tmp_path / ".out.partial") == ["thesis.tex"]


# ---------------------------------------------------------------- conversions


def test_what_killed_conversions_left_is_removed_and_living_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with ExitStack() as stack, scratch_folder(None) as living:
        if (process := os.fork()) == 0:
            with scratch_folder(None) as folder:
                (folder / "large").touch()
                os._exit(0)
        os.waitpid(process, 0)
        (dead,) = (path for path in tmp_path.iterdir() if path != living)
        with pytest.warns(Notice, match=f"removed {dead}"):
            stack.enter_context(scratch_folder(None))
        assert not dead.exists()
        assert living.exists()
        monkeypatch.setattr(durable, "fcntl", None)  # where there are no locks, nothing can be known
        with scratch_folder(None):
            assert living.exists()
    assert names(tmp_path) == []


def test_a_conversion_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    folder = pico.save("llama-mha", tmp_path / "dense")
    from safetensors.torch import load_file, save_file

    old = {name.removeprefix("model."): x for name, x in load_file(folder / "model.safetensors").items()}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    with local_folder(str(folder)) as converted:
        assert lock(converted / "lock") is None
    assert names(tmp_path / "scratch") == []
