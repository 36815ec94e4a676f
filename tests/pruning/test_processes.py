"""Several processes prune to what one does: their sums differ in the last digits, and nothing else does."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.errors import RankError
from secateur.pruning import prepare
from secateur.pruning import walk as walking
from secateur.recipe import Recipe
from tests import pico
from tests.together import ended, start

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "50 %": ("llama-gqa-tied", {}),
    "2:4": ("llama-gqa-tied", {"pattern": "2:4"}),
    "gather": ("llama-gqa-tied", {"pattern": "2:4", "fold": "gather"}),
    "own orders": ("llama-gqa-tied", {"pattern": "2:4", "fold": "none"}),
    "best": ("llama-gqa-tied", {"score": "sparsegpt", "pattern": "2:4", "reconstruct": "admm", "refine": True}),
    "experts": ("mixtral", {"score": "wanda", "reconstruct": "cg", "one_shot": True}),
    "weights alone": ("llama-gqa-tied", {"score": "magnitude"}),
    "few samples": ("llama-gqa-tied", {"samples": 2, "reconstruct": "cg"}),  # a rank has none to be judged by
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The dense models, and what one process makes of them."""
    root = tmp_path_factory.mktemp("one")
    (root / "text.txt").write_text(TEXT)
    for model in ("llama-gqa-tied", "mixtral"):
        pico.save(model, root / model)
    for name in RECIPES:
        _prune(0, root, root, [name])
    return root


def _recipe(root: Path, name: str) -> Recipe:
    return replace(
        Recipe(calibration=str(root / "text.txt"), samples=18, length=32, dtype="float32"), **RECIPES[name][1]
    )


def _prune(rank: int, root: Path, to: Path, names: list[str]) -> None:
    for name in names:
        with mock.patch.object(prepare, "TOKENS_ON_CPU", 64):  # eight batches to learn from, and one to judge by
            manifest = secateur.prune(root / RECIPES[name][0], to / name, _recipe(root, name))
        assert json.loads(json.dumps(manifest)) == json.loads((to / name / "secateur.json").read_text())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def check_alike(one: Path, several: Path) -> None:
    """The laws of docs/processes.md."""
    mine, theirs = tensors(one), tensors(several)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        if tensor.dtype == torch.int64:
            assert torch.equal(tensor, theirs[name]), name  # orders
        else:
            assert ((tensor == 0) != (theirs[name] == 0)).float().mean() <= 1e-3, name
            difference = (tensor - theirs[name]).norm() / tensor.norm()
            assert difference <= 1e-3, (name, difference)
    first, second = (json.loads((folder / "secateur.json").read_text()) for folder in (one, several))
    assert first.keys() == second.keys() and first["unpruned_sha256"].keys() == second["unpruned_sha256"].keys()
    for layer, other in zip(first["layers"], second["layers"], strict=True):
        for key in ("name", "shape", "sparsity", "score", "tokens", "dead_channels", "refused"):
            assert layer[key] == other[key]
        for key in ("retained", "relative_error"):
            assert layer[key] == pytest.approx(other[key], rel=1e-3)
    for trial, other in zip(first["guard"], second["guard"], strict=True):
        assert trial["kept"] == other["kept"] and trial["after"] == pytest.approx(other["after"], rel=1e-3)


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_prune_to_what_one_does(size, given, tmp_path):
    assert ended(start(size, _prune, given, tmp_path, list(RECIPES)), 300) == [0] * size
    for name in RECIPES:
        check_alike(given / name, tmp_path / name)
        secateur.verify(tmp_path / name)
