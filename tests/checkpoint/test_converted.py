"""GGUF files are converted once, whatever happens at the same time, and never by trusting a folder of someone else."""

import errno
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from secateur.checkpoint import local_folder, resolve
from secateur.checkpoint.cache import DAYS
from secateur.checkpoint.converted import KEPT, converted
from secateur.errors import InputError, Notice
from tests.specimens import write_gguf


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "secateur" / "gguf"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"content")
    return path


class Maker:
    """Makes a folder of one file, and counts; on a disk that is full below ``full``."""

    def __init__(self, full=None):
        self.times, self.full = 0, full

    def __call__(self, folder):
        if self.full in folder.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.times += 1
        (folder / "made").write_text(str(self.times))


def folders(home):
    return [path for path in home.iterdir() if path.is_dir()]


def use(file, make, size=1, scratch=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        with converted(file, size, make, scratch) as folder:
            found = folder, (folder / "made").read_text()
    return *found, " ".join(str(warning.message) for warning in caught)


def test_a_file_is_converted_once_and_known_by_its_content(home, file, tmp_path):
    make = Maker()
    folder, _, said = use(file, make)
    assert folder.parent == home and f"kept in {home}" in said
    assert use(file, make) == (folder, "1", "")
    moved = file.rename(tmp_path / "moved.gguf")
    assert use(moved, make) == (folder, "1", "")
    moved.write_bytes(b"other")
    assert use(moved, make)[0] != folder
    assert make.times == 2


def test_an_error_leaves_nothing_and_stays_what_it_is(home, file):
    def fails(folder):
        (folder / "half").touch()
        raise InputError("wrong")

    with pytest.raises(InputError, match="^wrong$"):
        use(file, fails)
    assert not folders(home)
    assert use(file, Maker())[0].parent == home


@pytest.mark.parametrize("why", ["no room", "full on the way", "others can write", "a link", "a file"])
def test_where_it_cannot_be_kept_it_is_made_for_the_moment(why, home, file, tmp_path):
    make, size, elsewhere = Maker(), 1, tmp_path / "elsewhere"
    elsewhere.mkdir()
    home.parent.mkdir(parents=True)
    if why == "no room":
        size = 1 << 60
    elif why == "full on the way":
        make = Maker(full=home)
    elif why == "a link":
        home.symlink_to(elsewhere)
    elif why == "a file":
        home.touch()
    else:
        home.mkdir()
        home.chmod(0o777)
    folder, content, said = use(file, make, size, elsewhere)
    assert folder.parent == elsewhere and content == "1" and "for this run alone" in said
    assert not folder.exists() and not list(elsewhere.iterdir())
    assert not home.is_dir() or not folders(home)


def test_the_last_few_are_kept_for_some_days(home, file):
    make, made = Maker(), []
    for number in range(KEPT + 1):
        file.write_text(str(number))
        made.append(use(file, make)[0])
        os.utime(made[-1], (now := time.time() - 100 + number, now))
    assert sorted(folders(home)) == sorted(made[1:])
    old = time.time() - (DAYS + 1) * 86400
    os.utime(made[-1], (old, old))
    file.write_text("another")
    assert sorted(folders(home)) == sorted(made[1:])  # nothing goes before something comes
    new = use(file, make)[0]
    assert sorted(folders(home)) == sorted([made[1], made[2], new])
    assert len(list(home.glob("*.lock"))) == 3


def test_what_is_in_use_is_not_removed(home, file):
    make = Maker()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with converted(file, 1, make) as held:
            os.utime(held, (0, 0))
            for number in range(KEPT + 1):
                file.write_text(str(number))
                use(file, make)
            assert (held / "made").read_text() == "1"
        file.write_text("one more")
        use(file, make)
    assert not held.exists()


def test_processes_that_want_the_same_file_make_it_once(home, file, tmp_path):
    code = """
import sys, time
from pathlib import Path
from secateur.checkpoint.converted import converted
def make(folder):
    with open(sys.argv[2], "a") as log: log.write("made\\n")
    (folder / "made").touch(); time.sleep(0.5); (folder / "all").touch()
with converted(Path(sys.argv[1]), 1, make) as folder:
    assert (folder / "all").exists()
"""
    line = [sys.executable, "-W", "ignore", "-c", code, str(file), str(tmp_path / "log")]
    running = [subprocess.Popen(line) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_gguf_file_is_read_through_the_cache(home, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "model.gguf")
    model = str(tmp_path / "model.gguf")
    with local_folder(model) as first:
        assert first.parent == home and (first / "model.safetensors").is_file()
        assert len({path.stat().st_mode for path in first.iterdir()}) == 1  # the system's own for a new file
    monkeypatch.setattr(resolve, "convert", lambda *_: pytest.fail("converted again"))
    with local_folder(model) as second:
        assert second == first
    (Path(first) / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="model.safetensors"), local_folder(model):
        pass
