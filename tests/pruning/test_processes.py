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
from secateur import ranks
from secateur.errors import RankError
from secateur.pruning import group, prepare
from secateur.pruning import walk as walking
from secateur.pruning.visit import Visit
from secateur.recipe import Recipe
from tests import pico
from tests.together import ended, start

pytestmark = pytest.mark.slow
TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "50 %": ("llama-gqa-tied", {}),
    "2:4": ("llama-gqa-tied", {"pattern": "2:4"}),
    "gather": ("llama-gqa-tied", {"pattern": "2:4", "fold": "gather"}),
    "own orders": ("llama-gqa-tied", {"pattern": "2:4", "fold": "none"}),
    "best": ("llama-gqa-tied", {"score": "sparsegpt", "pattern": "2:4", "reconstruct": "admm", "refine": True}),
    "tuned": ("llama-gqa-tied", {"pattern": "2:4", "tune": True, "epochs": 2}),
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


def _prune(rank: int, root: Path, to: Path, names: list[str], resume: bool = False) -> None:
    for name in names:
        with mock.patch.multiple(
            prepare, TOKENS_ON_CPU=64, TOKENS_OF_A_STEP=64
        ):  # eight batches to learn from, and one to judge by
            manifest = secateur.prune(root / RECIPES[name][0], to / name, _recipe(root, name), resume=resume)
        assert json.loads(json.dumps(manifest)) == json.loads((to / name / "secateur.json").read_text())


def _prune_until(rank: int, root: Path, to: Path, name: str, dying: int) -> None:
    """Let one process be killed in the second block, while others are at work on it."""
    prune_groups = group.prune_groups

    def pruning(visit: Visit, *arguments: Any) -> None:
        if rank == dying and visit.where == "block 2/3":
            os.kill(os.getpid(), signal.SIGKILL)
        prune_groups(visit, *arguments)

    nobody_left = mock.patch.object(ranks, "FAREWELL", 0.5)
    try:
        with mock.patch.object(walking, "prune_groups", pruning), nobody_left:
            _prune(rank, root, to, [name])
    except RankError as error:
        (to / "said").write_text("\n".join([str(error), *getattr(error, "__notes__", ())]))
        raise SystemExit(3) from None


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
        assert layer["retained"] == pytest.approx(other["retained"], rel=1e-3)
        if layer["relative_error"] or other["relative_error"]:
            assert layer["relative_error"] == pytest.approx(other["relative_error"], rel=1e-3)
    for trial, other in zip(first["guard"], second["guard"], strict=True):
        assert trial["before"] == pytest.approx(other["before"], rel=1e-3)
        assert trial["after"] == pytest.approx(other["after"], rel=1e-3)
        undecided = trial["after"] == pytest.approx(trial["before"], rel=1e-6)
        assert undecided or trial["kept"] == other["kept"]


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_prune_to_what_one_does(size, given, tmp_path):
    assert ended(start(size, _prune, given, tmp_path, list(RECIPES)), 300) == [0] * size
    for name in RECIPES:
        check_alike(given / name, tmp_path / name)
        secateur.verify(tmp_path / name)


@pytest.mark.parametrize(("dying", "code"), [(0, [-9, 3]), (1, [3, -9])])
def test_one_that_is_killed_ends_all_and_any_number_goes_on(dying, code, given, tmp_path):
    name, begun = "best", tmp_path / ".best.partial"
    assert ended(start(2, _prune_until, given, tmp_path, name, dying)) == code
    said = (tmp_path / "said").read_text()
    assert f"rank {dying} of 2 does not answer any more" in said
    assert ("--resume` goes on" in said) == (dying == 1)  # who is killed says nothing
    blocks = "model-0000[2-4]*.safetensors"  # what lies outside of them is written anew
    written = {path.name: path.stat().st_mtime_ns for path in (begun / "model").glob(blocks)}
    assert (written or dying == 0) and not (tmp_path / name).exists()
    if dying == 0:
        _prune(0, given, tmp_path, [name], True)
    else:
        assert ended(start(3, _prune, given, tmp_path, [name], True)) == [0] * 3
    check_alike(given / name, tmp_path / name)
    assert written.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / name).glob(blocks)}.items()
