"""Rows of several steps: what a grid says of them, and that they come to what the commands one by one make."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.checkpoint.durable import lock
from secateur.errors import InputError
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.shrinkage import Shrinkage
from secateur.sweeps import work
from secateur.sweeps.chains import as_data, chain_of, named
from secateur.sweeps.folder import identifier
from secateur.sweeps.grid import Grid
from secateur.sweeps.tables import markdown, table
from secateur.sweeps.work import Outcome, decode_outcome, encode
from tests import pico
from tests.sweeps.test_sweep import TEXT, here

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")

DOC = Path(__file__).parents[2] / "docs" / "sweep.md"


def kinds(chain):
    return [named(step) for step in chain]


def chains(grid):
    return {variant.labels: kinds(variant.chains[0]) for variant in grid.variants}


# ---------------------------------------------------------------- what a grid says


def test_a_step_is_done_where_it_is_named_and_in_the_order_that_makes_sense():
    assert kinds(chain_of({})) == ["prune"]
    everything = {"quantize.method": "awq", "shrink.sparsity": 0.25}
    assert kinds(chain_of(everything)) == ["shrink", "prune", "quantize"]
    assert kinds(chain_of(everything | {"quantize.first": True})) == ["shrink", "quantize", "prune"]
    assert kinds(chain_of(everything | {"score": "none"})) == ["shrink", "quantize"]
    for none in (None, "none"):
        assert chain_of({"score": none, "quantize.method": none, "quantize.bits": 8, "shrink.method": none}) == ()


def test_the_order_of_what_is_said_by_layer_tells_rows_apart():
    values = {"*.down_proj": 0.4, "*": 0.6}
    steps = [as_data(chain_of({"sparsity": dict(some)})) for some in (values.items(), reversed(values.items()))]
    assert len({identifier({"steps": some}) for some in steps}) == 2
    both = Grid.from_dict({"models": ["m"], "base": {"sparsity": 0.5, "pattern": {"*.q_proj": "2:4"}}})
    assert both.variants[0].chains[0][0].to_dict()["sparsity"] == 0.5, "a pattern by layer stands beside it"


def test_steps_calibrate_and_compute_as_the_row_does_unless_they_say_otherwise():
    said = {"calibration": "c4", "samples": 9, "length": 33, "seed": 5, "dtype": "bfloat16", "skip": ["*.down_proj"]}
    steps = chain_of(said | {"one_shot": True, "quantize.samples": 3, "shrink.method": "taylor", "memory": "9GB"})
    shrinkage, pruning, quantization = steps
    assert isinstance(quantization, QuantizationRecipe)
    assert (shrinkage.samples, pruning.samples, quantization.samples) == (9, 9, 3)
    assert {(step.length, step.seed, step.dtype) for step in steps} == {(33, 5, "bfloat16")}
    assert (quantization.one_shot, quantization.memory, quantization.skip) == (True, "9GB", ())


def test_what_does_nothing_makes_no_difference():
    assert chain_of({"score": "none", "pattern": "2:4"}) == ()
    plain = {"score": "none", "quantize.method": "rtn"}
    assert chain_of(plain | {"quantize.first": True, "samples": 7, "seed": 3}) == chain_of(plain)
    eight = plain | {"quantize.bits": 8}
    assert chain_of(eight | {"quantize.symmetric": True}) == chain_of(eight)
    assert chain_of(plain | {"quantize.method": "gptq", "seed": 3}) != chain_of(plain | {"quantize.method": "gptq"})


def test_later_layers_win_option_by_option_inside_a_step_too():
    grid = Grid.from_dict(
        {
            "models": ["a"],
            "base": {"quantize": {"method": "none", "group-size": 16}, "score": "none"},
            "recipes": {"half": {"score": "ria"}, "all": {}},
            "grid": {"quantize": ["none", "gptq", "awq"], "quantize.bits": [4, 8]},
            "seeds": [1, 2],
        }
    )
    assert chains(grid) == {
        ("half", "none", "4"): ["prune"],
        **{("half", method, bits): ["prune", "quantize"] for method in ("gptq", "awq") for bits in "48"},
        **{("all", method, bits): ["quantize"] for method in ("gptq", "awq") for bits in "48"},
    }
    steps = [step for variant in grid.variants for step in variant.chains[0]]
    assert {step.group_size for step in steps if isinstance(step, QuantizationRecipe)} == {16}
    assert [one.reason for one in grid.skipped] == ["it is the same as half none 4", *["it is the same as dense"] * 2]
    assert [len(variant.rows) for variant in grid.variants] == [2] * 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": {"bit": 4}}, "quantize has an unknown key 'bit'; did you mean 'bits'"),
        ({"shrink": {"pattern": "2:4"}}, "shrink has an unknown key 'pattern'"),
        ({"quantize": "gtpq"}, "no row can have recipe x: quantize: Invalid enum value 'gtpq'"),
        ({"quantize": {"bits": 5}}, "no row can have recipe x: quantize: Invalid enum value 5"),
        ({"quantize": {"first": "yes"}}, "quantize.first is true or false, not 'yes'"),
        ({"shrink": {"sparsity": 1.5}}, "no row can have recipe x: shrink: sparsity must be at least 0"),
        ({"quantize": {"bits": 4}, "quantize.bits": 8}, "recipes: x says quantize.bits twice"),
        ({"reconstruct": "cg", "quantize": {"method": "gptq", "first": True}}, "cg changes the weights that stay"),
        ({"pattern": "2:4", "fold": "gather", "quantize": "gptq"}, "cannot be quantized"),
    ],
)
def test_steps_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Grid.from_dict({"models": ["a"], "recipes": {"x": options}})


def test_two_axes_do_not_both_say_one_option_of_a_step():
    axes = {"quantize": ["gptq"], "x": {"y": {"quantize": {"method": "awq", "bits": 8}}}}
    with pytest.raises(InputError, match=r"quantize and x both set quantize\.method"):
        Grid.from_dict({"models": ["a"], "grid": axes})


def in_doc(beginning):
    """The grid in the documentation whose text begins so."""
    (found,) = [
        text
        for text in re.findall("```yaml\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)
        if text.startswith(beginning)
    ]
    return found


def test_the_papers_tables_are_grids(tmp_path):
    (tmp_path / "12.yaml").write_text(in_doc("# RIA, Table 12"))
    grid = Grid.load(tmp_path / "12.yaml")
    pruned = ["magnitude", "sparsegpt", "wanda", "ria"]
    methods = ["gptq", "awq"]
    assert chains(grid) == {
        **{(name, "none"): ["prune"] for name in pruned},
        **{(name, method): ["prune", "quantize"] for name in pruned for method in methods},
        **{("not pruned", method): ["quantize"] for method in methods},
        **{
            (name, f"{method} first"): ["quantize", "prune"]
            for name in pruned
            if name != "sparsegpt"
            for method in methods
        },
    }
    reasons = {one.labels: one.reason for one in grid.skipped}
    assert "sparsegpt changes the weights" in reasons["sparsegpt", "awq first"]
    assert reasons["not pruned", "none"] == "it is the same as dense"
    assert reasons["not pruned", "gptq first"] == "it is the same as not pruned gptq"

    (tmp_path / "10.yaml").write_text(in_doc("# RIA, Table 10"))
    grid = Grid.load(tmp_path / "10.yaml")
    shares, patterns = ["25 %", "50 %", "75 %"], ["3:4", "2:4", "1:4"]
    assert chains(grid) == {
        **{(name, share): ["shrink"] for name in ("activation", "taylor", "depth") for share in shares},
        **{("ria", target): ["prune"] for target in shares + patterns},
    }
    (depth,) = next(variant for variant in grid.variants if variant.labels == ("depth", "75 %")).chains[0]
    assert depth == Shrinkage(method="depth", sparsity=0.75)


# ---------------------------------------------------------------- what becomes of it


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


@pytest.fixture
def grid(tmp_path, text):
    """One pruned model that serves three rows, and one that is quantized first."""
    return {
        "models": {"m": str(pico.save("llama-mha", tmp_path / "dense"))},
        "base": {"calibration": text, "samples": 4, "length": 32, "quantize": {"method": "none", "group_size": 16}},
        "recipes": {"ria": {"score": "ria"}},
        "grid": {"quantize": {"none": {}, "gptq": {"quantize": "gptq"}, "rtn": {"quantize": "rtn"}}},
        "evaluate": {"data": text, "window": 64},
    }


def written(folder):
    """The bytes of a model without its card, and what its manifest says but for the names of folders, and times."""
    said_of_folders = ("secateur.json", "README.md")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in said_of_folders}
    said = json.loads((folder / "secateur.json").read_text())
    for one in (said, said.get("quantization", {})):
        for name in ("model", "seconds"):
            one.pop(name, None)
    return files, said


def _noted(done, name, step, *given, **more):
    done.append(name)
    return step(*given, **more)


def recording(monkeypatch):
    """The names of the steps that are done, in their order."""
    done: list[str] = []
    for name in ("shrink", "prune", "quantize"):
        monkeypatch.setattr(work, name, partial(_noted, done, name, getattr(work, name)))
    return done


@pytest.mark.parametrize(
    "order",
    [("shrink", "prune", "quantize"), ("quantize", "prune"), ("shrink", "quantize")],
    ids=" ".join,
)
def test_a_chain_comes_to_the_bytes_of_the_commands_one_after_the_other(order, grid, text, tmp_path):
    options: dict[str, Any] = {"score": "wanda"} if "prune" in order else {"score": "none"}
    if "shrink" in order:
        options["shrink"] = {"sparsity": 0.4}
    grid["recipes"] = {"x": options}
    grid["grid"] = {"y": {"z": {"quantize": {"method": "gptq", "first": order[0] == "quantize", "group_size": 8}}}}
    grid["seeds"] = [3]
    results = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here([]))
    entry = results.entries[1]
    given: dict[str, Any] = {"calibration": text, "samples": 4, "length": 32, "seed": 3}
    by_hand: dict[str, tuple[Any, Any]] = {
        "shrink": (secateur.shrink, Shrinkage(sparsity=0.4, **given)),
        "prune": (secateur.prune, Recipe(score="wanda", **given).essence),
        "quantize": (secateur.quantize, QuantizationRecipe(group_size=8, **given)),
    }
    model = tmp_path / "dense"
    for name in order:
        run, step = by_hand[name]
        run(model, tmp_path / name, step)
        model = tmp_path / name
    assert entry.model is not None
    assert written(entry.model) == written(model)
    assert list((tmp_path / "out" / "models").iterdir()) == [entry.model]
    (measured,) = secateur.evaluate(model, text, window=64)
    assert entry.outcome.evaluation is not None
    assert entry.outcome.evaluation.perplexity == measured.perplexity
    row = json.loads((tmp_path / "out" / "results.json").read_text())["rows"][1]
    assert [name for step in row["steps"] for name in step] == list(order)
    assert {name for name in ("shrinking", "pruning", "quantization") if row[name]} == {
        {"shrink": "shrinking", "prune": "pruning", "quantize": "quantization"}[name] for name in order
    }
    assert row["quantization"]["zeros"] >= row["quantization"]["zeros_before"]
    (_, summary) = results.summaries
    assert (summary.gone is not None) == ("shrink" in order)
    assert summary.bits == (row["quantization"]["bits_per_weight"] if order[-1] == "quantize" else None)


def test_rows_share_their_first_steps_and_what_no_row_needs_goes(grid, tmp_path, monkeypatch):
    done, there = recording(monkeypatch), []
    models = tmp_path / "out" / "models"

    def run(jobs):
        for place, answer in here([])(jobs):
            yield place, answer
            there.append(len(list(models.iterdir())) if models.exists() else 0)

    results = secateur.sweep(grid, tmp_path / "out", executor=run)
    assert not results.failed
    assert done == ["prune", "quantize", "quantize"]
    assert there == [0, 1, 1, 0]  # the pruned model, until the last row is made of it
    assert len(list((tmp_path / "out" / "steps").iterdir())) == 3
    pruned = {json.dumps(entry.outcome.pruning.sparsity) for entry in results.entries if entry.outcome.pruning}
    assert len(pruned) == 1
    shown = markdown(table(results)).splitlines()
    assert "bits" in shown[0]
    assert "| gone |" not in shown[0]


def test_with_models_kept_the_steps_between_go_unless_they_are_a_rows_own(grid, tmp_path):
    grid["grid"]["quantize"] = {"gptq": {"quantize": "gptq"}, "first": {"quantize": {"method": "rtn", "first": True}}}
    results = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here([]))
    kept = {entry.model for entry in results.entries if entry.model}
    assert len(kept) == 2
    assert kept == set((tmp_path / "out" / "models").iterdir())
    # Another protocol finds them, and what their steps did although those between are gone.
    grid["evaluate"]["window"] = 32
    again = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here([]))
    for before, now in zip(results.entries[1:], again.entries[1:], strict=True):
        assert now.outcome.pruning == before.outcome.pruning
        assert now.outcome.quantization == before.outcome.quantization
    facts = sorted((tmp_path / "out" / "steps").iterdir())
    facts[0].write_text("{")
    grid["evaluate"]["window"] = 16
    again = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here([]))
    assert all(f"{facts[0].name} is damaged" in str(entry.outcome.failure) for entry in again.failed)
    assert again.failed


@pytest.mark.parametrize("step", ["prune", "quantize"])
def test_what_is_killed_between_steps_or_inside_one_goes_on(step, grid, tmp_path, monkeypatch):
    from secateur.pruning.store import FolderStore

    grid["grid"]["quantize"] = {"gptq": {"quantize": "gptq"}}
    expected = secateur.sweep(grid, tmp_path / "whole", keep_models=True, executor=here([])).entries[1]
    done, blocks = recording(monkeypatch), []
    write = FolderStore.write

    def stopping(store, visit):
        if done[-1] == step:
            blocks.append(visit.where)
            if len(blocks) == 2:  # in the second block of the step
                raise KeyboardInterrupt
        write(store, visit)

    monkeypatch.setattr(FolderStore, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here([]))
    entry = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here([])).entries[1]
    assert done == (["prune", "prune", "quantize"] if step == "prune" else ["prune", "quantize", "quantize"])
    assert len(blocks) == 1 + 1 + 2  # the first was not done again
    assert written(entry.model) == written(expected.model)


def test_a_model_that_was_kept_stays_when_a_later_sweep_begins_with_it(grid, tmp_path):
    grid["grid"]["quantize"] = {"none": {}}
    (_, pruned) = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here([])).entries
    grid["grid"]["quantize"] = {"none": {}, "gptq": {"quantize": "gptq"}}
    assert pruned.model
    before = written(pruned.model)
    secateur.sweep(grid, tmp_path / "out", executor=here([]))
    assert written(pruned.model) == before
    assert list(pruned.model.parent.iterdir()) == [pruned.model]
    shutil.rmtree(pruned.model)  # whoever deletes it no longer wants it
    grid["evaluate"]["window"] = 32
    secateur.sweep(grid, tmp_path / "out", executor=here([]))
    assert list(pruned.model.parent.iterdir()) == []


def test_a_step_that_another_process_is_at_is_waited_for(grid, tmp_path, monkeypatch):
    grid["grid"]["quantize"] = {"gptq": {"quantize": "gptq"}}
    jobs: list[str] = []

    def noting(given):
        jobs.extend(given)
        return here([])(given)

    entry = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=noting).entries[1]
    steps, model = tmp_path / "out" / "steps", entry.model
    assert model
    shutil.move(model, tmp_path / "finished")
    (facts,) = steps.glob(f"{model.name}.json")
    held = lock(facts.with_suffix(".lock"))
    assert held
    done, waited = recording(monkeypatch), []

    def finish(seconds):
        waited.append(seconds)
        shutil.move(tmp_path / "finished", model)
        held.close()

    monkeypatch.setattr("time.sleep", finish)
    outcome = decode_outcome(work.work(jobs[1]))
    assert (outcome.failure, outcome.quantization) == (None, entry.outcome.quantization)
    assert (done, waited) == (["prune"], [work.PATIENCE])
    assert not list(steps.glob("*.lock"))


def refusing(jobs):
    """An executor that does nothing."""
    yield from ((place, encode(Outcome("no"))) for place in range(len(jobs)))


def test_what_cannot_be_done_to_what_the_steps_before_make_is_left_out_with_its_reason(grid, tmp_path):
    grid["recipes"] = {
        "narrow": {"score": "none", "shrink": {"sparsity": 0.4}},
        "narrow 8:16": {"pattern": "8:16", "permute": "none", "shrink": {"sparsity": 0.4}},  # of 40 channels
        "ria": {"score": "ria"},
    }
    grid["grid"]["quantize"] = {
        "none": {},
        "rtn": {"quantize": {"method": "rtn", "group_size": 8}},
        "wide": {"quantize": {"method": "rtn", "group_size": 32}},
    }
    grid["models"]["q"] = str(tmp_path / "q")
    secateur.quantize(tmp_path / "dense", tmp_path / "q", QuantizationRecipe(method="rtn", group_size=16))
    with pytest.raises(InputError, match="no row can have recipe narrow 8:16: .*8:16"):
        secateur.sweep(grid, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    del grid["recipes"]["narrow 8:16"]
    results = secateur.sweep(grid, tmp_path / "out", executor=refusing)
    reasons = {(one.model, *one.labels): one.reason for one in results.skipped}
    assert "groups of 32 columns do not divide 40" in reasons["m", "narrow", "wide"]
    assert ("m", "ria", "wide") not in reasons
    assert "neither be shrunk nor quantized again" in reasons["q", "narrow", "none"]
    assert ("q", "ria", "rtn") not in reasons  # what is pruned of it is plain again
