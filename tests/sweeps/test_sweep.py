import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import secateur
from secateur.checkpoint.durable import lock
from secateur.cli import main
from secateur.errors import InputError, Notice
from secateur.pruning import group
from secateur.pruning import walk as walking
from secateur.recipe import Recipe
from secateur.sweeps import executors, subjects, sweep
from secateur.sweeps.work import Outcome, decode_outcome, encode, work
from tests import pico

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    text = str(tmp_path / "text.txt")
    return {
        "models": {"llama": str(pico.save("llama-gqa-tied", tmp_path / "dense"))},
        "base": {"calibration": text, "samples": 4, "length": 32},
        "recipes": {"magnitude": {"score": "magnitude"}, "ria": {"score": "ria"}},
        "seeds": [0, 1],
        "evaluate": {"data": [text], "window": 64},
    }


def here(seen):
    """An executor that works in this process, and notes the names of its rows in ``seen``."""

    def run(jobs):
        for place, job in enumerate(jobs):
            seen.append(json.loads(job)["name"])
            yield place, work(job)

    return run


def outcome_of(results, place):
    return results.entries[place].outcome


def written(folder):
    return {path.name: path.read_bytes() for path in folder.glob("results.*")}


def test_a_row_is_what_prune_and_evaluate_make_of_it(grid, tmp_path):
    seen: list[str] = []
    results = secateur.sweep(grid, tmp_path / "out", executor=here(seen))
    assert seen == ["llama dense", "llama magnitude seed 0", "llama ria seed 0", "llama ria seed 1"]
    recipe = Recipe(calibration=str(tmp_path / "text.txt"), samples=4, length=32, seed=1)
    manifest = secateur.prune(tmp_path / "dense", tmp_path / "by hand", recipe)
    dense = tmp_path / "dense"
    (measured,) = secateur.evaluate(tmp_path / "by hand", str(tmp_path / "text.txt"), window=64, dense=dense)
    outcome = outcome_of(results, 3)
    assert outcome.evaluation.perplexity == measured.perplexity
    assert outcome.evaluation.texts[0].block_nll == measured.texts[0].block_nll
    assert outcome.evaluation.texts[0].divergence == measured.texts[0].divergence
    found = [outcome_of(results, row).evaluation.texts[0].divergence for row in range(4)]
    assert found[0] is None and all(far.kl > 0 for far in found[1:])
    first, *_, last = results.summaries
    assert (first.texts[0].kl, first.texts[0].top1) == (None, None)
    assert last.texts[0].kl == pytest.approx((found[2].kl + found[3].kl) / 2)
    assert f" {last.texts[0].top1:.1%}".replace("%", " %") in written(tmp_path / "out")["results.md"].decode()
    assert outcome.pruning.sparsity == manifest["sparsity"]
    assert not list((tmp_path / "out" / "models").iterdir())
    assert {path.suffix for path in (tmp_path / "out").glob("results.*")} == {".json", ".csv", ".md", ".tex"}


def test_finished_rows_are_read_and_make_the_same_files(grid, tmp_path):
    secateur.sweep(grid, tmp_path / "out", executor=here([]))
    before = written(tmp_path / "out")
    seen: list[str] = []
    secateur.sweep(grid, tmp_path / "out", executor=here(seen))
    assert not seen
    assert written(tmp_path / "out") == before


def test_a_grid_that_has_changed_computes_what_is_new(grid, tmp_path):
    secateur.sweep(grid, tmp_path / "out", executor=here([]))
    grid["recipes"] = {"called otherwise": {"score": "ria", "memory": "8GB"}, "wanda": {"score": "wanda"}}
    grid["models"] = {"renamed": grid["models"]["llama"]}
    seen: list[str] = []
    results = secateur.sweep(grid, tmp_path / "out", executor=here(seen))
    assert seen == ["renamed wanda seed 0", "renamed wanda seed 1"]
    assert len(results.entries) == 5
    (tmp_path / "text.txt").write_text(TEXT + "more")  # it is another text, under the same name
    secateur.sweep(grid, tmp_path / "out", executor=here(seen))
    assert len(seen) == 2 + 5


def test_models_that_are_kept_serve_another_protocol(grid, tmp_path, monkeypatch):
    seen: list[str] = []
    secateur.sweep(grid, tmp_path / "out", executor=here([]))
    results = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here(seen))
    assert len(seen) == 3  # their models are not there any more
    folders = [entry.model for entry in results.entries if entry.model]
    assert sorted(folders) == sorted((tmp_path / "out" / "models").iterdir())
    monkeypatch.setattr("secateur.sweeps.work.prune", None)
    grid["evaluate"]["window"] = 32
    results = secateur.sweep(grid, tmp_path / "out", keep_models=True, executor=here([]))
    assert not results.failed
    assert outcome_of(results, 1).evaluation.texts[0].window == 32


def test_texts_are_tokenized_once(grid, tmp_path, monkeypatch):
    from secateur.data import tokens

    encoded, encode_text = [], tokens._encode

    def noting(*given):
        encoded.append(given)
        return encode_text(*given)

    monkeypatch.setattr(tokens, "_encode", noting)
    secateur.sweep(grid, tmp_path / "out", executor=here([]))
    assert len(encoded) == 1  # of one text, which is calibrated and measured on
    for path in (tmp_path / "out" / "tokens").iterdir():
        path.write_bytes(path.read_bytes()[:-8])
    grid["recipes"]["wanda"] = {"score": "wanda"}
    assert not secateur.sweep(grid, tmp_path / "out", executor=here([])).failed
    assert len(encoded) == 2  # what is not whole is made again


def test_a_row_that_was_cut_short_goes_on(grid, tmp_path, monkeypatch):
    blocks: list[str] = []
    prune_groups = group.prune_groups

    def noting(visit, *rest):
        if visit.where not in blocks:
            if len(blocks) == 2:
                blocks.append("")
                raise KeyboardInterrupt
            blocks.append(visit.where)
        prune_groups(visit, *rest)

    monkeypatch.setattr(walking, "prune_groups", noting)
    grid["recipes"], grid["seeds"] = {"ria": {"score": "ria"}}, [5]
    with pytest.raises(KeyboardInterrupt) as stop:
        secateur.sweep(grid, tmp_path / "out", executor=here([]))
    assert "1 of 2 rows are finished" in stop.value.__notes__[-1]
    secateur.sweep(grid, tmp_path / "out", executor=here([]))
    assert len(blocks) == 2 + 1 + 1  # the first two were not pruned again


def test_a_row_that_fails_ends_nothing_and_is_tried_again(grid, tmp_path):
    grid["recipes"]["long"] = {"score": "wanda", "samples": 1000}  # of these the text has too few tokens
    results = secateur.sweep(grid, tmp_path / "out", executor=here([]))
    assert [str(entry.row) for entry in results.failed] == ["llama long seed 0", "llama long seed 1"]
    assert "1000 samples" in str(results.failed[0].outcome.failure)
    assert "1000 samples" in (tmp_path / "out" / "results.md").read_text()
    seen: list[str] = []
    secateur.sweep(grid, tmp_path / "out", executor=here(seen))
    assert seen == ["llama long seed 0", "llama long seed 1"]


def test_the_rows_of_a_model_that_cannot_be_measured_are_not_begun(grid, tmp_path):
    grid["models"]["other"] = str(pico.save("llama-mha", tmp_path / "other"))
    seen: list[str] = []

    def run(jobs):
        for place, job in enumerate(jobs):
            name = json.loads(job)["name"]
            seen.append(name)
            yield place, encode(Outcome("no")) if name == "other dense" else work(job)

    results = secateur.sweep(grid, tmp_path / "out", executor=run)
    assert len(results.failed) == 4
    assert "not begun, since the dense model failed: no" in str(results.failed[1].outcome.failure)
    assert [name for name in seen if name.startswith("other")] == ["other dense"]


def test_what_no_model_can_have_is_refused_and_what_one_cannot_is_left_out(grid, tmp_path):
    grid["models"]["opt"] = str(pico.save("opt-350m", tmp_path / "opt"))
    grid["recipes"]["gather"] = {"pattern": "2:4", "fold": "gather"}
    results = secateur.sweep(grid, tmp_path / "out", executor=here([]))
    assert [(one.model, one.labels) for one in results.skipped] == [("opt", ("gather",))]
    assert len(results.entries) == 4 + 4 + 2
    grid["recipes"]["odd"] = {"pattern": "3:7"}
    with pytest.raises(InputError, match="no row can have recipe odd: .*7"):
        secateur.sweep(grid, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["nowhere"]}, "nowhere"),
        ({"evaluate": {"data": ["none.txt"]}}, "there is no file none.txt"),
        ({"base": {"calibration": "none.txt"}}, "there is no file none.txt"),
        ({"evaluate": {"window": 4096, "data": ["demo"]}}, "window of 4096"),
        ({"evaluate": {"task_files": "nowhere"}}, "there is no folder nowhere"),
        ({"base": {"length": 4096}}, "context of 128"),
        ({"base": {"column": "text"}}, "has no columns to choose from"),
        ({"evaluate": {"data": ["demo"], "split": "test"}}, "demo has no splits to choose from"),
        ({"evaluate": {"bos": "twice"}}, "evaluate: Invalid enum value 'twice'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(grid, tmp_path, change, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base = {**grid["base"], **change.get("base", {})}
    with pytest.raises(InputError, match=message):
        secateur.sweep({**grid, "recipes": {"ria": {}}, **change, "base": base}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_one_sweeps_at_a_time_and_a_sweeps_alone(grid, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds other things"):
        secateur.sweep(grid, tmp_path / "other")
    held = lock(tmp_path / "out" / "sweep.lock")
    with pytest.raises(InputError, match="another process is sweeping"):
        secateur.sweep(grid, tmp_path / "out")
    assert held
    held.close()
    with pytest.raises(InputError, match="at least 1"):
        secateur.sweep(grid, tmp_path / "out", jobs=0)


def test_damaged_rows_are_named(grid, tmp_path):
    secateur.sweep(grid, tmp_path / "out", executor=here([]))
    row = next((tmp_path / "out" / "rows").iterdir())
    row.write_text(row.read_text()[:100])
    with pytest.raises(InputError, match=f"{row.name} is damaged.*delete it"):
        secateur.sweep(grid, tmp_path / "out", executor=here([]))


def test_fewer_at_once_where_memory_is_short(grid, tmp_path, monkeypatch):
    numbers = []

    def counting(environments, held):
        numbers.append(len(environments))
        return here([])

    monkeypatch.setattr(sweep, "processes", counting)
    monkeypatch.setattr(sweep, "free_memory", lambda device: 3 * subjects.OVERHEAD)
    with pytest.warns(Notice, match="2 rows at once instead of 4"):
        secateur.sweep(grid, tmp_path / "out", jobs=4)
    assert numbers == [2]


# ---------------------------------------------------------------- processes


def answer_of(document):
    return decode_outcome(document)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A worker that needs no torch: it kills itself, fails, or answers with its process and environment."""
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, time\n"
        "for line in sys.stdin:\n"
        "    if 'die' in line: os.kill(os.getpid(), 9)\n"
        "    failure = 'no' if 'fail' in line else None\n"
        "    versions = {'process': str(os.getpid()), 'place': os.environ['PLACE']}\n"
        "    pruning = dict(method='', sparsity=0, retained=0, relative_error=None, steps={},\n"
        "        seconds={}, computed_in='', versions=versions)\n"
        "    print(json.dumps(dict(failure=failure, pruning=pruning, evaluation=None, seconds=0)), flush=True)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_process_serves_row_after_row_until_one_fails(stand_in):
    run = executors.processes([{"PLACE": "0"}])
    jobs = ["1", "2", "die", "3", "fail", "4"]
    outcomes = {jobs[place]: answer_of(answer) for place, answer in run(jobs)}
    process = {job: outcome.pruning.versions["process"] for job, outcome in outcomes.items() if outcome.pruning}
    assert process["1"] == process["2"]
    assert len({process["2"], process["3"], process["4"]}) == 3
    assert process["fail"] == process["3"]
    assert "SIGKILL" in outcomes["die"].failure
    assert outcomes["fail"].failure == "no"


def test_each_process_has_its_environment(stand_in):
    run = executors.processes([{"PLACE": "0"}, {"PLACE": "1"}])
    answers = list(run([str(number) for number in range(20)]))
    assert sorted(place for place, _ in answers) == list(range(20))
    found = {answer_of(answer).pruning.versions["place"] for _, answer in answers}
    assert found <= {"0", "1"}


def test_processes_end_with_the_sweep(stand_in):
    run = executors.processes([{"PLACE": "0"}])
    answers = run(["1", "2"])
    _, answer = next(answers)
    answers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(answer_of(answer).pruning.versions["process"]), 0)


# ---------------------------------------------------------------- Ray


class FakeRay:
    """What is used of Ray, in this process; ``lost`` are the jobs whose process is gone."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, lost=()):
        self.lost, self.said = lost, []

    def init(self, **options):
        if options["address"] == "nowhere":
            raise ConnectionError("nobody answers")
        self.said.append(options)

    def shutdown(self):
        self.said.append("shutdown")

    def remote(self, **options):
        self.said.append(options)

        class Task:
            def __init__(self, function):
                self.remote = lambda job: (job, function(job))

        return Task

    def wait(self, pending, num_returns):
        return [pending[-1]], pending[:-1]

    def get(self, reference):
        if json.loads(reference[0])["name"] in self.lost:
            raise self.exceptions.RayError("the node died")
        return reference[1]


def test_rows_on_a_cluster(grid, tmp_path, monkeypatch):
    fake = FakeRay(lost=["llama ria seed 1"])
    monkeypatch.setattr(sweep, "_ray", lambda: fake)
    results = secateur.sweep(grid, tmp_path / "out", ray="auto")
    assert [str(entry.row) for entry in results.failed] == ["llama ria seed 1"]
    assert results.failed[0].outcome.failure == "Ray lost it: the node died"
    assert fake.said[0]["address"] == "auto"
    assert fake.said[1]["memory"] > subjects.OVERHEAD
    assert fake.said[-1] == "shutdown"
    with pytest.raises(InputError, match="no Ray cluster at 'nowhere' .nobody answers"):
        secateur.sweep(grid, tmp_path / "out", ray="nowhere")
    with pytest.raises(InputError, match="--jobs is for this machine"):
        secateur.sweep(grid, tmp_path / "out", ray="auto", jobs=2)


def test_without_the_extra_it_is_named(grid, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install 'ray>="):
        secateur.sweep(grid, tmp_path / "out", ray="auto")


# ---------------------------------------------------------------- the command line


def test_the_command_prints_a_table_or_one_document(grid, tmp_path, capsys, monkeypatch):
    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(["sweep", str(tmp_path / "g.yaml"), "--out", str(tmp_path / "out"), *words])
        return stop.value.code, capsys.readouterr().out

    monkeypatch.setattr(sweep, "processes", lambda *_: here([]))
    del grid["recipes"]
    grid["grid"] = {"scope": ["row", "matrix"], "target": {"half": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}}}
    grid["grid"]["scope"].append(None)
    (tmp_path / "g.yaml").write_text(json.dumps(grid))
    code, printed = run()
    assert code == 0
    assert "perplexity" in printed
    assert "3 combinations were left out" in printed
    code, printed = run("--json")
    assert code == 0
    scopes = [row["labels"]["scope"] for row in json.loads(printed)["rows"]]
    assert scopes == ["dense", "row", "row", "matrix", "matrix", "none", "none"]
    grid["base"]["samples"] = 1000
    (tmp_path / "g.yaml").write_text(json.dumps(grid))
    code, printed = run()
    assert code == 1
    assert "6 rows failed" in printed


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_sweep_of_twelve_rows_that_is_killed_goes_on(grid, tmp_path):
    """The real thing: worker processes, SIGKILL, and the same command again."""
    grid["grid"] = {"alpha": [0.5, 1.0]}
    grid["recipes"] = {"ria": {"score": "ria"}, "ria 2:4": {"score": "ria", "pattern": "2:4"}}
    grid["seeds"] = [0, 1, 2]
    (tmp_path / "g.yaml").write_text(json.dumps(grid))
    out, rows = tmp_path / "out", tmp_path / "out" / "rows"
    words = [sys.executable, "-m", "secateur", "sweep", str(tmp_path / "g.yaml"), "--out", str(out), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while len(list(rows.glob("*.json"))) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    while (held := lock(out / "sweep.lock")) is None:  # until its worker has noticed
        time.sleep(0.02)
    finished = {path.name: (path.stat().st_ino, path.read_bytes()) for path in rows.glob("*.json")}
    held.close()
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    assert len(json.loads(done.stdout)["rows"]) == 1 + 12
    assert 5 <= len(finished) < 13
    assert len(list(rows.glob("*.json"))) == 13
    for name, before in finished.items():
        assert ((rows / name).stat().st_ino, (rows / name).read_bytes()) == before
    assert -process.returncode == signal.SIGKILL
    assert not list(Path(out / "models").iterdir())
