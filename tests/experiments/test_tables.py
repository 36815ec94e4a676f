import importlib
import inspect
import itertools
import json
from dataclasses import replace

import pytest

from experiments import paper, published, table1, table2, table3, table4, table7
from experiments.common import Report, Setting, Texts, execute, parser, setting_of
from experiments.tables import averages_over_models, sweep_report
from secateur.errors import InputError
from secateur.recipe import Recipe
from secateur.sweeps.tables import Table
from tests import pico

TEXT = "the quick brown fox jumps over the lazy dog, and 0123456789 other things happen as well. " * 40


@pytest.fixture
def setting(tmp_path):
    """Two tiny models and copies of two corpora."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("c4-train", "wikitext2-train", "wikitext2-test", "c4-test"):
        rows = json.dumps({"text": TEXT if "c4" in name else TEXT.upper()}) + "\n"
        (texts / f"{name}.jsonl").write_text(rows * 3)
    models = {name: str(pico.save(name, tmp_path / name)) for name in ("llama-gqa-tied", "llama-mha")}
    return Setting(
        models=models,
        texts=Texts(texts, demo=False),
        recipe={"samples": 2, "length": 16},
        protocol={"window": 32, "limit": 4, "dtype": "auto"},
        seeds=(0,),
        out=tmp_path / "out",
        jobs=None,
        small=True,
    )


def of_one_model(setting):
    return Setting(**{**vars(setting), "models": dict(list(setting.models.items())[:1])})


def test_every_experiment_says_what_it_is_and_can_be_run():
    for name in paper.EXPERIMENTS:
        module = importlib.import_module(f"experiments.{name}")
        assert (inspect.getdoc(module) or "").splitlines()[0].endswith(".")
        assert list(inspect.signature(module.run).parameters) == ["setting"]
        assert isinstance(module.MODELS, tuple)


FEW = {"magnitude": {"score": "magnitude"}, "ri": {"score": "ri"}}


def test_a_table_has_a_row_for_each_model_and_method_and_the_averages_of_appendix_j(setting):
    results = setting.sweep(FEW, base={"sparsity": 0.5}, baseline={"recipe": "magnitude"})
    assert len(sweep_report(results).tables[0][1].rows) == 2 * (1 + len(FEW))
    shares = {"llama-gqa-tied": (0.5, 0.1), "llama-mha": (0.7, 0.5)}
    summaries = [
        replace(one, texts=tuple(replace(x, prevented=share) for x, share in zip(one.texts, shares[one.model])))  # noqa: B905
        if one.labels == ("ri",)
        else replace(one, texts=tuple(replace(x, prevented=None) for x in one.texts))
        for one in results.summaries
    ]
    averages = averages_over_models(replace(results, summaries=tuple(summaries)))
    assert averages
    assert averages.rows == ((("ri",), ("60 %",), ("30 %",), ("2",)),)
    assert averages_over_models(replace(results, summaries=tuple(summaries[:3]))) is None  # a single model


def test_wanda_and_ria_are_compared_window_by_window(setting):
    methods = {name: table2.SCORES[name] for name in (table2.WANDA, table2.RIA, table2.WHOLE)}
    results = of_one_model(setting).sweep(methods, base={"sparsity": 0.5})
    (remark,) = table2.remarks(results)
    wanda, ria = (x.texts[0].perplexity.value for x in results.summaries if x.labels[0] in (table2.WANDA, table2.RIA))
    assert f"beside Wanda's: {ria / wanda - 1:+.1%}" in remark


def test_experiments_share_their_rows(setting, monkeypatch):
    one = of_one_model(setting)
    one.sweep(FEW, base={"sparsity": 0.5})
    monkeypatch.setattr("tests.experiments.conftest.work", lambda _: pytest.fail("a row was computed again"))
    assert one.sweep({"by magnitude": {"score": "magnitude"}}, base={"sparsity": 0.5}).entries


def test_the_corpora_that_are_there_calibrate_and_measure(setting, monkeypatch):
    monkeypatch.setattr(table7, "METHODS", {"ria": {"score": "ria"}})
    report = table7.run(of_one_model(setting))
    assert {summary["labels"]["calibrated on"] for summary in report.data["summaries"]} == {"", "c4", "wikitext2"}
    assert any("ptb" in note for note in report.notes)
    columns = [names[0] for names in report.tables[0][1].columns]
    assert columns[2:4] == ["perplexity wikitext2", "perplexity c4"]


def test_without_questions_a_table_of_tasks_says_what_is_missing(setting):
    report = table3.run(setting)
    assert report.tables == []
    assert "boolq" in report.notes[0]


def test_what_was_measured_is_computed_once_for_each_model_and_key(setting, tmp_path):
    calls = itertools.count(1)

    def measure(model, key):
        return setting.measured(model, {"key": key}, lambda: [next(calls)])

    first = [measure(model, key) for model in setting.models for key in (1, 2)]
    assert first == [measure(model, key) for model in setting.models for key in (1, 2)] == [[1], [2], [3], [4]]
    pico.save("llama-gqa-tied", tmp_path / "llama-gqa-tied", seed=9)
    assert measure("llama-gqa-tied", 1) == [5]


def test_a_report_is_written_in_every_form(setting, monkeypatch):
    monkeypatch.setattr(
        table1, "run", lambda _: Report([("Above.", Table.plain(["a", "b"], [["x", 1.5]]))], ["Below."])
    )
    text = execute("table1", setting)
    assert text == "Above.\n\n| a | b |\n| --- | ---: |\n| x | 1.50 |\n\nBelow.\n"
    assert (setting.out / "table1.md").read_text() == text
    assert json.loads((setting.out / "table1.json").read_text())["command"] == "python -m experiments.table1"
    assert (setting.out / "table1.tex").read_text().startswith(r"\begin{tabular}")


def test_the_page_goes_on_where_an_experiment_cannot_be_had(setting, monkeypatch, tmp_path, capsys):
    def fail(_):
        raise InputError("nothing to read")

    page = tmp_path / "docs" / "page.md"
    monkeypatch.setattr(paper, "EXPERIMENTS", ("table1", "table4"))
    monkeypatch.setattr(paper, "setting_of", lambda *_: setting)
    monkeypatch.setattr(table1, "run", fail)
    monkeypatch.setattr(table4, "run", lambda _: Report([("", Table.plain(["a"], [["x"]]))]))
    monkeypatch.setattr("sys.argv", ["paper", "--small", "--page", str(page)])
    with pytest.raises(SystemExit, match="table1: nothing to read"):
        paper.main()
    assert "## RIA, Table 4" in page.read_text()
    assert "Table 1" not in page.read_text()


def test_published_numbers_are_those_of_the_same_recipe():
    def of(**options):
        return published.published("Meta-Llama-3-8B", [Recipe.from_dict(options)], "wikitext2")

    assert of(score="ria", sparsity=0.5) == (9.34, "readme")
    assert of(score="ria", pattern="2:4", permute="lsa") == (20.05, "readme")
    assert of(score="ria", pattern="2:4", permute="none") == (23.08, "readme")
    assert of(score="sparsegpt", sparsity=0.5, reconstruct="sparsegpt") == (9.4, "readme")
    assert of(score="sparsegpt", sparsity=0.5) is None
    assert of(score="ria", sparsity=0.5, alpha=1.0) is None
    assert of(score="ria", sparsity=0.5, reconstruct="cg") is None
    assert published.published("llama-7b", [], "c4") is None
    assert published.published("Meta-Llama-3-8B", [], "wikitext2") == (6.14, "readme")


def test_a_folder_of_texts_that_is_not_there_is_an_error(tmp_path):
    folder = pico.save("llama-mha", tmp_path / "m")
    args = parser("").parse_args([str(folder), "--local", str(tmp_path / "none")])
    with pytest.raises(InputError, match="--local"):
        setting_of(args, ())


def test_a_setting_says_what_repeats_it_and_names_no_folders(tmp_path):
    folder = pico.save("llama-mha", tmp_path / "m")
    (tmp_path / "texts").mkdir()
    given = [str(folder), "--local", str(tmp_path / "texts"), "--samples", "3", "--out", str(tmp_path)]
    found = setting_of(parser("").parse_args(given), ())
    assert found.command == "m --local FOLDER --samples 3"
    assert found.recipe == {"samples": 3, "length": 2048}
