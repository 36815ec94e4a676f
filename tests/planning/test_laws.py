"""What the plan says exactly, against runs of tiny models: tokens, FLOPs, bytes; and how its costs grow."""

import json
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur.calibrate.lesson import Lesson
from secateur.calibrate.stream import Stream
from secateur.checkpoint import outline
from secateur.errors import InputError
from secateur.pruning.linear import LinearPruning
from secateur.recipe import Recipe
from secateur.stats.inputs import InputStats
from tests import pico
from tests.counting import Counting
from tests.planning.machines import slow

SETTING: dict[str, Any] = {"samples": 8, "length": 16, "dtype": "float32"}
RECIPES: list[dict[str, Any]] = [
    {},
    {"score": "magnitude"},
    {"score": "wanda", "pattern": "2:4"},
    {"score": "ri", "pattern": "2:4"},
    {"pattern": "2:4", "fold": "none", "one_shot": True},
    {"reconstruct": "cg"},
    {"reconstruct": "cg", "one_shot": True, "guard": False},
    {"reconstruct": "cg", "refine": True, "pattern": "2:4"},
    {"reconstruct": "sparsegpt", "score": "sparsegpt", "pattern": "2:4"},
    {"reconstruct": "admm", "score": "sparsegpt", "sparsity": 0.6},
    {"refine": True, "reconstruct": "sparsegpt"},
    {"allocate": True},
    {"tune": True, "epochs": 2},
    {"tune": True, "epochs": 1, "correct": 0.0, "guard": False},
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return path


def recipe_of(text, **options):
    return Recipe(calibration=str(text), **SETTING | options)


def plan(model, recipe, **more):
    return secateur.plan(model, recipe, rates=slow(), rate=lambda number: 1e9, **more)


@pytest.mark.parametrize("options", RECIPES, ids=str)
@pytest.mark.parametrize("name", ["llama-gqa-tied", "qwen3-moe"])
def test_the_bar_counts_the_tokens_of_the_plan(name, options, text, tmp_path):
    model, recipe, progress = pico.save(name, tmp_path / "dense"), recipe_of(text, **options), Counting()
    secateur.prune(model, tmp_path / "pruned", recipe, progress=progress)
    planned = plan(model, recipe)
    assert progress.done == progress.total
    assert planned.tokens == (progress.total if progress.unit == "tokens" else 0)


@pytest.fixture
def counted(monkeypatch):
    """FLOPs that torch counts in passes over blocks, and in what is done to linears."""
    flops: dict[str, int] = defaultdict(int)

    def count(owner, name, what):
        genuine = getattr(owner, name)
        function: Any = genuine.fget if isinstance(genuine, property) else genuine

        def counting(*args, **kwargs):
            with FlopCounterMode(display=False) as counter:
                try:
                    return function(*args, **kwargs)
                finally:
                    flops[what] += counter.get_total_flops()

        monkeypatch.setattr(owner, name, property(counting) if isinstance(genuine, property) else counting)

    def update(stats, inputs, *args):
        if stats.gram is not None:  # of a product that is added in place torch counts nothing
            flops["grams"] += 2 * inputs[..., 0].numel() * inputs.shape[-1] ** 2
        return genuine_update(stats, inputs, *args)

    genuine_update = InputStats.update
    monkeypatch.setattr(InputStats, "update", update)
    count(Stream, "run", "passes")
    count(Lesson, "slope", "epochs")
    for name in ("__init__", "step", "result", "loses"):
        count(LinearPruning, name, "linears")
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel of a CPU is not counted
        yield flops


@pytest.mark.parametrize("options", [one for one in RECIPES if "allocate" not in one], ids=str)
@pytest.mark.parametrize("name", ["llama-gqa-tied", "gpt2", "gpt-j"])
def test_flops_are_those_that_torch_counts(name, options, counted, text, tmp_path):
    model, recipe = pico.save(name, tmp_path / "dense"), recipe_of(text, **options)
    secateur.prune(model, tmp_path / "pruned", recipe)
    planned = plan(model, recipe).flops
    passes, guard, grams = (planned.pop(what, 0) for what in ("forward passes", "guard", "Gram matrices"))
    assert passes + guard == counted["passes"]
    assert grams == counted["grams"]
    assert planned.pop("epochs", 0) == pytest.approx(counted["epochs"], rel=0.1)  # nobody asks for some gradients
    planned.pop("search", None)  # which goes on as long as it gains
    assert sum(planned.values()) == counted["linears"]


def test_flops_of_experts_are_those_of_the_tokens_that_come_to_them(counted, text, tmp_path):
    model, recipe = pico.save("mixtral", tmp_path / "dense"), recipe_of(text)
    secateur.prune(model, tmp_path / "pruned", recipe)
    planned = plan(model, recipe).flops["forward passes"]
    assert 0.9 * planned < counted["passes"] <= planned  # a pass that observes ends before the last expert's output


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("name", pico.ALL)
def test_what_is_written_has_the_planned_bytes(name, dtype, tmp_path):
    model, recipe = pico.save(name, tmp_path / "dense", dtype), Recipe(score="magnitude")
    manifest = secateur.prune(model, tmp_path / "pruned", recipe)
    planned = plan(model, recipe)
    index = json.loads((tmp_path / "pruned" / "model.safetensors.index.json").read_text())
    assert planned.disk.written == index["metadata"]["total_size"]
    assert planned.prunable == sum(rows * columns for rows, columns in (x["shape"] for x in manifest["layers"]))
    assert planned.removed == round(manifest["sparsity"] * planned.prunable)
    assert planned.left_dense == manifest["left_dense"]
    assert planned.parameters == sum(p.numel() for p in outline(str(model)).parameters())


def test_a_survey_reads_the_blocks_twice(tmp_path):
    model = pico.save("llama-mha", tmp_path)
    once, twice = (plan(model, Recipe(length=16, pattern="2:4", fold=fold)).disk.read for fold in ("none", "exact"))
    outer = 2 * 256 * 32 + 32  # embedding, head and last norm
    assert twice - once == once - 4 * outer


def amounts(model, recipe, **more):
    """Of a plan, by stage, purpose and kind."""
    return {(x.stage, x.what, x.kind): x.amount for x in plan(model, recipe, **more).costs}


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_twice_the_samples_cost_twice_the_passes_and_nothing_else(options, tmp_path):
    model = pico.save("llama-mha", tmp_path)
    long, short = (
        amounts(model, Recipe(**SETTING | options | {"samples": samples})) for samples in (8 * 128, 16 * 128)
    )
    for key, amount in long.items():
        of_tokens = key[0] in ("calibrate", "tune") or key[1] == "guard" or key[2] == "tokenized"
        assert short[key] / amount == pytest.approx(2 if of_tokens else 1, rel=0.03), key


def test_stages_grow_with_the_width_as_their_arithmetic_does(tmp_path):
    """A factor of a Gram matrix with its cube, a product with the square of the width times the tokens."""
    recipe = Recipe(**SETTING | {"score": "sparsegpt", "reconstruct": "admm", "pattern": "2:4"})
    small, large = (amounts(save_wide(tmp_path / str(width), width), recipe) for width in (512, 1024))
    growth = {key: large[key] / amount for key, amount in small.items()}
    assert growth["calibrate", "Gram matrices", "grams"] == 4
    assert growth["prune", "factors", "factored"] == growth["prune", "factors", "diagonalized"] == 8
    assert growth["prune", "reconstruction", "products32"] == 8
    assert growth["calibrate", "forward passes", "products"] == pytest.approx(4, rel=0.05)  # attention grows less
    assert growth["prune", "scores and masks", "pruned"] == 4


def save_wide(folder, width):
    """The config of a LLaMA of this width; it has no weights."""
    config = pico.ALL["llama-mha"]()
    config.hidden_size, config.intermediate_size, config.head_dim = width, 2 * width, width // 4
    config.save_pretrained(folder)
    return folder


def test_ranks_share_the_samples(tmp_path):
    model, recipe = pico.save("llama-mha", tmp_path), Recipe(**SETTING | {"reconstruct": "cg"})
    alone, four = plan(model, recipe), plan(model, recipe, ranks=4)
    assert four.seconds["calibrate"] == pytest.approx(alone.seconds["calibrate"] / 4, rel=0.01)
    assert four.flops == alone.flops
    assert four.memory.host["hidden states"] == alone.memory.host["hidden states"] / 4


def test_a_plan_asks_what_pruning_asks(tmp_path):
    model = pico.save("llama-mha", tmp_path)
    with pytest.raises(InputError, match="exceed the model's context of 128"):
        plan(model, Recipe(length=129))
    with pytest.raises(InputError, match="names no layer"):
        plan(model, Recipe(length=16, skip=("*.none",)))
    with pytest.raises(InputError, match="too few to prune with"):
        plan(model, Recipe(length=16), ranks=0)


def test_seconds_are_amounts_over_rates(tmp_path):
    planned = plan(pico.save("llama-mha", tmp_path), Recipe(**SETTING))
    assert sum(planned.seconds.values()) == pytest.approx(sum(cost.amount for cost in planned.costs) / 1e6, abs=0.01)
    computing = sum(planned.seconds[stage] for stage in ("calibrate", "order", "prune", "tune"))
    beside = planned.seconds["read"], planned.seconds["write"]
    assert planned.total == pytest.approx(planned.seconds["load"] + max(computing, *beside), abs=0.01)
