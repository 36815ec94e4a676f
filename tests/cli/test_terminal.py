"""What reaches a terminal of 80 columns, and what reaches a pipe."""

import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from secateur.cli import main
from secateur.cli.common import app
from secateur.console import terminal
from secateur.console.tables import Grid
from secateur.console.terminal import BarProgress, LineProgress, show
from secateur.errors import install
from tests import pico
from tests.specimens import write_gguf

LONG = "an-organisation-of-a-long-name/" + "a-model-of-a-still-longer-name-" * 3
COMMANDS = [name for name in app if not name.startswith("-")]


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def wide(names=("first", "second"), columns=9):
    """A table that no terminal has room for."""
    grid = Grid("a title", ["model", *[(f"perplexity {n}", "95 % interval") for n in range(columns)]], group="part")
    for row, name in enumerate(names):
        cells = [(f"{row}{n},123.45", f"{row}{n}.10 – {row}{n}.30") for n in range(columns)]
        grid.add(name, *cells, group="all", style="bold")
    return grid


def shown(*what, width=80, is_terminal):
    file = io.StringIO()
    show(*what, console=Console(file=file, width=width, force_terminal=is_terminal, color_system=None))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 80, 300])
def test_a_pipe_gets_a_line_for_each_row_whatever_the_width(width):
    names = ["first", LONG, "of two\nlines"]
    title, head, *rows = shown(wide(names), width=width, is_terminal=False)
    assert title == "a title" and len(rows) == 3
    cells = [re.split("  +", line) for line in (head, *rows)]
    assert [line[1] for line in cells] == ["model", "first", LONG, "of two lines"]
    assert {len(line) for line in cells} == {2 + 2 * 9}  # each part is a column
    assert cells[3][2:4] == ["20,123.45", "20.10 – 20.30"]
    ends = [[match.end() for match in re.finditer(r"\S+(?: \S+)*", line)][2:] for line in (head, *rows)]
    assert all(line == ends[0] for line in ends)  # the numbers end below each other


def test_cells_that_are_empty_keep_their_place_in_a_pipe():
    grid = Grid("", ["name", "a", "b", "c"])
    grid.add("x", "1", "", "")
    grid.add("y", "", "2", "")
    assert shown(grid, is_terminal=False) == ["name  a  b", "x     1  -", "y     -  2"]


@pytest.mark.parametrize("width", [60, 80, 132])
def test_a_terminal_gets_tables_that_fit_and_whole_numbers(width):
    names = ["first", LONG]
    lines = shown(wide(names), width=width, is_terminal=True)
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    assert all(f"{row}{n},123.45" in text and f"{row}{n}.10 – {row}{n}.30" in text for row in (0, 1) for n in range(9))
    assert (
        text.count("first") == len([line for line in lines if line.startswith("all")]) > 1
    )  # said again in each piece


def test_lines_to_be_copied_are_not_broken():
    from secateur.console.models import folder_notes

    costs = {"elapsed_seconds": 61.0, "bytes_on_disk": 10**9}
    for is_terminal in (False, True):
        took, written, following = shown(
            *folder_notes(Path(LONG), costs, [["eval", "a b", LONG]]), is_terminal=is_terminal
        )
        assert (took, written) == ("took 61.0 s", f"written to {LONG}: 1.0 GB on disk")
        assert following == f"next: secateur eval 'a b' {LONG}"


def test_commands_end_with_time_size_and_what_comes_next(tmp_path, capsys):
    dense = pico.save("llama-mha", tmp_path / "dense")
    out, bits, small, packed = (tmp_path / name for name in ("out", "bits", "small", "packed"))
    text = tmp_path / "text.txt"
    text.write_text("some words to calibrate on, and then some more of them. " * 40)
    sampled = ["--calibration", text, "--samples", 2, "--length", 16, "--quiet"]
    for words, following in (
        (["prune", dense, "--out", out, "--pattern", "2:4", *sampled], ["eval", dense, out]),
        (["quantize", out, "--out", bits, "--method", "rtn", "--group-size", 16, "--quiet"], ["eval", out, bits]),
        (["shrink", dense, "--out", small, *sampled], ["eval", dense, small]),
        (["pack", out, "--out", packed, "--quiet"], ["generate", packed]),
    ):
        assert run(*words) == 0
        folder = words[words.index("--out") + 1]
        *_, took, written, first, last = [
            line for line in capsys.readouterr().out.splitlines() if "packed'" not in line
        ]
        lines = [took, written, first, last]
        assert any(re.fullmatch(r"took [\d.]+ s", line) for line in lines)
        assert any(re.fullmatch(rf"written to {folder}: [\d.]+ [kM]?B on disk", line) for line in lines)
        assert any(line.startswith(f"next: secateur {' '.join(map(str, following))}") for line in lines)
        assert run(*words, "--force", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["elapsed_seconds"] > 0
        assert document["bytes_on_disk"] == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_what_is_positional_by_its_place(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert not re.search(r"[A-Z]+ --(model|models|prompt|grid)\b", text)
    assert max(map(cell_len, text.splitlines())) <= 80


def test_a_narrow_bar_keeps_speed_and_time_left(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=file, width=80, force_terminal=True, color_system=None))
    progress = BarProgress()
    with progress:
        progress.start(f"perplexity of {LONG} on {LONG}", 10**7)
        progress.at("block 3/30 · model.layers.2.mlp.down_proj")
        task = progress._bars.tasks[0]
        now = progress._bars.get_time()
        for seconds, done in ((now - 2, 0), (now - 1, 123_456), (now, 123_456)):
            monkeypatch.setattr(progress._bars, "get_time", lambda seconds=seconds: seconds)
            monkeypatch.setattr(task, "get_time", progress._bars.get_time)
            progress.advance(done)
        file.truncate(0)
        progress._bars.refresh()
        line = next(line for line in file.getvalue().splitlines() if "tokens/s" in line)
    line = re.sub(r"\x1b\[[0-9;?]*\w|[\x00\r]", "", line)
    assert cell_len(line) <= 80 and "123,456 tokens/s" in line and re.search(r"\d\d:\d\d", line) and "2 %" in line
    assert line.startswith("perplexity of") and "…" in line and "block" in line


def test_without_a_terminal_progress_is_a_line_a_minute(capsys):
    now = [0.0]
    progress = LineProgress(lambda: now[0])
    with progress:
        progress.start("short", 60)
        for _ in range(59):
            now[0] += 1
            progress.advance(1)
        assert capsys.readouterr().err == ""
        progress.start("prune", 1000)
        progress.at("block 1/3")
        for second in range(200):
            now[0] += 1
            progress.advance(2)
            if second == 100:
                progress.at("block 2/3")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "prune: 120 of 1,000 tokens, 2.00 tokens/s, 7 min left (block 1/3)",
        "prune: 240 of 1,000 tokens, 2.00 tokens/s, 6 min left (block 2/3)",
        "prune: 360 of 1,000 tokens, 2.00 tokens/s, 5 min left (block 2/3)",
    ]


def test_what_is_no_terminal_gets_lines_and_not_bars(monkeypatch):
    assert isinstance(terminal.progress(), LineProgress)
    monkeypatch.setattr(terminal, "err", Console(file=io.StringIO(), force_terminal=True))
    assert isinstance(terminal.progress(), BarProgress)


def test_warnings_of_other_libraries_are_for_who_asks(monkeypatch, capsys):
    def noisy(*_):
        warnings.simplefilter("always")
        warnings.warn("a library's own concern", FutureWarning, stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.inspect", noisy)
    for options, said in ([], False), (["default"], True):
        monkeypatch.setattr(sys, "warnoptions", options)
        run("inspect", "model")
        assert ("own concern" in capsys.readouterr().err) == said


def test_nothing_of_other_libraries_is_seen_while_a_gguf_file_is_converted(tmp_path):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "model.gguf")
    line = [sys.executable, "-m", "secateur", "inspect", str(tmp_path / "model.gguf")]
    found = subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "40"})
    assert re.fullmatch(r"note: \S+ is converted once, and kept in [^\n]*\n", found.stderr)
    assert len(found.stdout.splitlines()) == 2 + 7


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_what_is_written_can_be_read_by_whom_the_umask_says(umask, tmp_path):
    dense = pico.save("llama-mha", tmp_path / "dense")
    before = os.umask(umask)
    try:
        assert (
            run("prune", dense, "--out", tmp_path / "out", "--score", "magnitude", "--pattern", "2:4", "--quiet") == 0
        )
        assert run("pack", tmp_path / "out", "--out", tmp_path / "packed", "--quiet") == 0
        assert run("unpack", tmp_path / "packed", "--out", tmp_path / "plain", "--quiet") == 0
        assert (
            run(
                "quantize",
                tmp_path / "out",
                "--out",
                tmp_path / "bits",
                "--method",
                "rtn",
                "--group-size",
                16,
                "--quiet",
            )
            == 0
        )
        text = tmp_path / "text.txt"
        text.write_text("some words to calibrate on, and then some more of them. " * 40)
        few = ["--calibration", text, "--samples", 2, "--length", 16, "--quiet"]
        assert run("shrink", dense, "--out", tmp_path / "small", *few) == 0
    finally:
        os.umask(before)
    for name in ("out", "packed", "plain", "bits", "small"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o777 & ~umask
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / name).iterdir()}
        assert set(modes.values()) == {0o666 & ~umask}, modes


def test_advice_on_extras_names_packages_that_any_index_has():
    assert install("plot").startswith("pip install 'matplotlib>=")
    assert "secateur" not in install("tasks") and "lm-eval" in install("tasks")
    assert "pip" not in install("none-such")  # a package of that name could be anyone's
