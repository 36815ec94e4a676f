import json

import pytest

from tests import pico
from tests.cli.test_cli import run
from tests.planning.machines import slow


@pytest.fixture
def dense(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.planning.plan.measure", lambda device, dtype: slow())
    return pico.save("mixtral", tmp_path / "dense")


def test_a_plan_takes_the_options_of_prune(dense, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("score: wanda\npattern: '2:4'\nlength: 32\n")
    assert run("plan", dense, "--recipe", tmp_path / "mine.yaml", "--reconstruct", "cg", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["method"] == "wanda 2:4 (50 %) lsa exact +cg"
    assert planned["total"] > 0


def test_a_plan_says_stages_memory_and_sizes(dense, capsys):
    assert run("plan", dense, "--length", 32) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("forward passes", "hidden states", "packed int8", "tokens/s at most", "times are estimates"):
        assert words in shown
