"""What is said when something fails, and what reaches the terminal."""

import errno
import io

import pytest
import torch
from rich.console import Console
from rich.table import Table

from secateur.cli import main
from secateur.cli.failures import explain
from secateur.console import terminal
from secateur.console.terminal import visible
from secateur.errors import InputError
from tests import pico


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("wrong"), "^wrong$"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), "^out: No space left on device; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "^out: Permission denied$"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "out"), "shorter name"),
        (MemoryError(), "--samples"),
        (ValueError("embedded null byte"), "null byte"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "not enough memory",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "not enough memory"),
        (torch.linalg.LinAlgError("not positive-definite"), "--reconstruct"),  # type: ignore[attr-defined]
    ],
)
def test_what_a_user_can_mend_is_said_in_words(error, message):
    with pytest.raises(InputError, match=message):
        raise InputError(explain(error))


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x"), AssertionError()])
def test_what_a_user_cannot_mend_is_called_a_bug(error, monkeypatch, capsys):
    assert explain(error) is None

    def broken(*_, **__):
        raise error

    monkeypatch.setattr("secateur.generate", broken)
    with pytest.raises(SystemExit) as stop:
        main(["generate", "model", "a"])
    assert stop.value.code == 70
    shown = capsys.readouterr().err
    assert "bug in Secateur" in shown and "Traceback" in shown


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202egpj", "\ud800", "\x00", "\x7f"])
def test_nothing_from_a_file_acts_on_the_terminal(text):
    assert visible(text).isprintable()
    file = io.StringIO()
    console = Console(file=file, width=60)
    console.push_render_hook(terminal._Visible())
    table = Table(title=text)
    table.add_row(text)
    console.print(table)
    console.print(text, markup=False)
    assert not set(text) - set("0;title31mgpjab]") & set(file.getvalue())


def test_ordinary_text_stays_as_it_is():
    assert visible("naïve 中文\u3000 e\u0301 👩\u200d🔬\n\tfine") == "naïve 中文\u3000 e\u0301 👩\u200d🔬\n\tfine"


def test_both_consoles_are_guarded(capsys):
    for console, name in ((terminal.out, "out"), (terminal.err, "err")):
        console.print("a\x1b[2Jb", markup=False)
        assert getattr(capsys.readouterr(), name) == "a\\x1b[2Jb\n"


def test_a_wrong_model_is_named_before_a_text_is_fetched(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("secateur.data.load_text", lambda *_: pytest.fail("fetched"))
    dense = pico.save("llama-mha", tmp_path / "dense")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(dense), "nosuchdir"])
    assert stop.value.code == 2
    assert "there is no folder nosuchdir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "50"], "50 % is 0.5"),
        (["--recipe", "bset"], "did you mean 'best'"),
        (["--alpha", "inf"], "alpha inf"),
        (["--seed", "-1"], "seed -1"),
    ],
)
def test_messages_say_what_was_meant(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prune", "model", "--out", "out", *words])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_is_no_bug(tmp_path, capsys, monkeypatch):
    dense = pico.save("llama-mha", tmp_path / "dense")
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("secateur.checkpoint.writer.save_file", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as stop:
        main(["prune", str(dense), "--out", str(tmp_path / "out"), "--score", "magnitude", "--quiet"])
    assert stop.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
