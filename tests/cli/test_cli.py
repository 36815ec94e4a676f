import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from secateur.cli import main
from secateur.console import speed
from secateur.runtime.choosing import BUCKETS, Choice, Measured
from secateur.runtime.generation import Generation
from tests import pico

LM_EVAL = importlib.util.find_spec("lm_eval") is not None
TEXT = "some words to calibrate on, and then some more of them. " * 40


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


@pytest.fixture
def dense(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return pico.save("llama-gqa-tied", tmp_path / "dense")


def calibration(tmp_path):
    return ["--calibration", tmp_path / "text.txt", "--samples", 4, "--length", 32]


def test_prune_eval_inspect_print_one_json_document(tmp_path, dense, capsys):
    assert run("prune", dense, "--out", tmp_path / "out", "--pattern", "2:4", "--json", *calibration(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "ria 2:4 (50 %) lsa exact"
    assert run("eval", dense, tmp_path / "out", "--data", tmp_path / "text.txt", "--window", 64, "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["models"]
    assert first["texts"][0]["perplexity"] != second["texts"][0]["perplexity"]
    assert run("inspect", tmp_path / "out", "--json") == 0
    assert {layer["pattern"] for layer in json.loads(capsys.readouterr().out)["layers"]} == {"2:4"}


def test_tables_for_people(tmp_path, dense, capsys):
    assert run("prune", dense, "--out", tmp_path / "out", "--quiet", *calibration(tmp_path)) == 0
    assert "score retained" in " ".join(capsys.readouterr().out.split())
    assert run("eval", dense, "--data", tmp_path / "text.txt", "--window", 64) == 0
    assert "perplexity" in capsys.readouterr().out
    line = ["eval", dense, tmp_path / "out", dense, "--data", tmp_path / "text.txt", "--data", tmp_path / "text.txt"]
    assert run(*line, "--window", 64, "--stride", 32) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert "every 32" in title and head.count("of it prevented") == 2
    assert [row.count("100%") for row in rows] == [0, 0, 2]
    assert run("inspect", dense) == 0
    head, rows = (shown := capsys.readouterr().out.splitlines())[1], shown[2:]
    assert head.split() == ["linears", "number", "shape", "dtype", "sparsity"]  # no N:M, since none is obeyed
    assert rows[0].split() == ["self_attn.q_proj", "3", "32×32", "float32", "0.0%"]
    assert run("inspect", dense, "--layers") == 0
    shown = capsys.readouterr().out
    assert shown.count("self_attn.q_proj") == 3 and "residual" in shown


def test_pack_generate_unpack(tmp_path, capsys):
    dense = pico.save("llama-mha", tmp_path / "dense", torch.bfloat16)
    assert run("prune", dense, "--out", tmp_path / "out", "--score", "magnitude", "--pattern", "2:4", "--quiet") == 0
    assert run("pack", tmp_path / "out", "--out", tmp_path / "packed", "--quiet") == 0
    assert "(0.5625)" in " ".join(capsys.readouterr().out.split())
    assert run("pack", tmp_path / "out", "--out", tmp_path / "int8", "--int8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["int8"]
    assert run("generate", tmp_path / "packed", "[a] prompt", "--tokens", 4, "--device", "cpu") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("[a] prompt") and "tokens/s" in captured.err
    assert run("generate", tmp_path / "int8", "a prompt", "--tokens", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 4
    assert run("unpack", tmp_path / "packed", "--out", tmp_path / "plain", "--quiet") == 0
    assert (tmp_path / "plain" / "secateur.json").is_file()


def test_what_was_chosen_on_a_gpu_is_shown():
    times = {tokens: {"dense": 3.0, "2:4": 2.0 if tokens > 64 else 4.0} for tokens in BUCKETS}
    measured = Measured(times, {"dense": 32, "2:4": 18}, {"packed": "not [here]"}, {})
    forms = {tokens: "2:4" if tokens > 64 else "dense" for tokens in BUCKETS}
    choice = Choice((64, 128), "bfloat16", True, "2:4", 7, forms, measured)
    result = Generation("m", "text", 3, 9, 0.5, 20.0, None, "bfloat16", "cuda:0", True, (choice,))
    json.dumps(dataclasses.asdict(result))
    assert "(dense and 2:4 weights, in a CUDA graph, bfloat16, cuda:0)" in speed.speed_text(result).plain
    text = " ".join(speed.choices_table(result.choices).plain().split())
    assert "64×128 + bias 2:4 7 dense dense dense" + 5 * " 2:4 1.50×" + " 1.56×" in text
    assert speed.choices_notes(result.choices) == ["not used: packed: not [here]"]


def test_options_win_over_the_recipe_file(tmp_path, dense, capsys):
    (tmp_path / "r.yaml").write_text("score: wanda\npattern: 4:8\nsamples: 4\nlength: 32\n")
    line = ["prune", dense, "--out", tmp_path / "out", "--recipe", tmp_path / "r.yaml", "--json"]
    assert run(*line, "--score", "magnitude", "--calibration", tmp_path / "text.txt") == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert (recipe["score"], recipe["pattern"], recipe["samples"]) == ("magnitude", "4:8", 4)
    assert run(*line, "--force", "--sparsity=0.25", "--calibration", tmp_path / "text.txt") == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert (recipe["score"], recipe["pattern"], recipe["sparsity"]) == ("wanda", None, 0.25)
    (tmp_path / "r.yaml").write_text("score: magnitude\nsparsity: {'*.down_proj': 0.25, '*': 0.5}\n")
    assert run(*line, "--force", "--pattern", "*.0.*=2:4") == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["pattern"] == {"*.0.*": "2:4"}
    assert recipe["sparsity"] == {"*.down_proj": 0.25, "*": 0.5}, "of what the pattern does not name"


def test_a_budget_reads_a_recipe_but_for_its_pattern(tmp_path, dense, capsys):
    (tmp_path / "r.yaml").write_text("pattern: 4:8\n")
    line = ["compress", dense, "--out", tmp_path / "out", "--recipe", tmp_path / "r.yaml", "--target-size", "51KB"]
    assert run(*line, "--quiet", *calibration(tmp_path)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "dense, 4 bits" in shown and "4 bits for all weights are enough" in shown


def test_a_preset_can_be_changed_and_its_steps_are_reported(tmp_path, dense, capsys):
    line = ["prune", dense, "--out", tmp_path / "out", "--recipe", "good", "--quiet", *calibration(tmp_path)]
    assert run(*line, "--refine") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "sparsegpt 2:4 (50 %) lsa exact +admm +refine" in shown
    assert "reconstruct: kept for" in shown
    assert "refine: kept for" in shown
    assert run(*line, "--force", "--json", "--no-guard") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["method"] == "sparsegpt 2:4 (50 %) lsa exact +admm"
    assert manifest["guard"] == []


def test_too_few_tokens_and_dead_channels_are_reported(tmp_path, dense, capsys):
    line = ["prune", dense, "--out", tmp_path / "out", "--quiet", "--calibration", tmp_path / "text.txt"]
    assert run(*line, "--samples", 1, "--length", 40) == 0
    assert "3 linears have more input channels than calibration tokens" in " ".join(capsys.readouterr().out.split())
    assert run(*line, "--force", "--samples", 1, "--length", 8) == 0
    assert "21 linears saw fewer than 32 calibration tokens" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune", "nowhere/at/all", "--out", "out"], "no folder"),
        (["prune", "DENSE", "--out", "OUT", "--pattern", "2:5"], "not a multiple of 5"),
        (["prune", "DENSE", "--out", "OUT", "--sparsity", "1"], "not in"),
        (["prune", "DENSE", "--out", "OUT", "--score", "best"], "best"),
        (["prune", "DENSE", "--out", "OUT", "--scor", "ria"], "--score"),
        (["prune", "DENSE", "--out", "DENSE"], "holds the model itself"),
        (["prune", "DENSE"], "--out"),
        (["compress", "DENSE", "--out", "OUT"], "give one budget"),
        (["prune", "DENSE", "--out", "OUT", "--recipe", "none.yaml"], "none.yaml"),
        (["eval", "DENSE", "--data", "missing.txt"], "no file missing.txt"),
        (["eval", "DENSE", "--task-files", "missing"], "--task-files" if LM_EVAL else "pip install"),
        (["inspect", "missing"], "no folder"),
        (["pack", "DENSE", "--out", "OUT"], "too few zeros"),
        (["unpack", "DENSE", "--out", "OUT"], "not packed"),
        (["generate", "DENSE", ""], "no tokens"),
        (["generate", "DENSE", "a", "--tokens", "0"], "0 tokens"),
        (["generate", "DENSE", "a", "--dtype", "int3"], "int3"),
        (["generate", "nowhere/at/all", "a", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["prone"], "prone"),
    ],
)
def test_bad_input_exits_with_2_and_one_message(tmp_path, dense, capsys, words, message):
    words = [{"DENSE": dense, "OUT": tmp_path / "out"}.get(word, word) for word in words]
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_the_command_is_installed():
    result = subprocess.run([sys.executable, "-m", "secateur", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip()


@pytest.mark.parametrize(
    ("name", "said"), [("llama-mha", ""), ("olmoe", "mlp.gate.weight"), ("lfm2", "conv.conv.weight")]
)
def test_what_stays_dense_is_said(name, said, tmp_path, capsys):
    dense = pico.save(name, tmp_path / name)
    assert run("prune", dense, "--out", tmp_path / "out", "--score", "magnitude", "--quiet") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("stay dense, in " in shown) == bool(said)
    assert said in shown
