import csv
import io
import json
import math
from statistics import fmean, stdev

import pytest

from secateur.evaluation.comparison import compare
from secateur.evaluation.evaluate import Evaluation
from secateur.evaluation.perplexity import Perplexity
from secateur.evaluation.uncertainty import interval, mcnemar
from secateur.evaluation.zero_shot import TaskScore
from secateur.sweeps.facts import Pruning
from secateur.sweeps.grid import Grid
from secateur.sweeps.results import Entry, Results
from secateur.sweeps.tables import Table, comma_separated, latex, markdown, table
from secateur.sweeps.variants import Skipped
from secateur.sweeps.work import Outcome, decode_outcome, encode

GRID = Grid.from_dict(
    {
        "models": ["a|b", "100% $m_1"],
        "recipes": {"magnitude": {"score": "magnitude"}, "wanda": {"score": "wanda"}, "ria_x": {"score": "ria"}},
        "seeds": [0, 1, 2],
        "evaluate": {"data": ["wikitext2:/a/very/long/path.raw"]},
        "baseline": {"recipe": "magnitude"},
    }
)
NLL = {"dense": [3.0], "magnitude": [3.9], "wanda": [3.4, 3.5, 3.7], "ria_x": [3.3, 3.3, 3.2]}
BLOCKS = (-0.2, 0.1, -0.1, 0.05, 0.15)


def evaluation(nll):
    noise = tuple(nll + x * (1 + nll / 10) for x in BLOCKS)
    low, high = interval(nll, noise) or (math.inf, math.inf)
    text = Perplexity(
        data=GRID.protocol.data[0],
        perplexity=math.exp(nll),
        low=math.exp(low),
        high=math.exp(high),
        nll=nll,
        block_nll=noise,
        window=8,
        stride=8,
        windows=5,
        tokens=35,
        text_sha256="t",
        tokens_sha256="t",
        seconds=1.0,
    )
    right = "".join("1" if place < 100 - 10 * nll else "0" for place in range(100))
    task = TaskScore("arc", "acc", 1 - nll / 10, 0.01, 100, 0, None, right, "same")
    return Evaluation("m", "float32", (text,), (task,))


PRUNING = Pruning("ria 50 %", 0.5, 0.8, None, {"reconstruct": (2, 3)}, {"score": 1.0}, "float32", {})


def compared(*models):
    """The last of the models against the others, by the function that compares models side by side."""
    return compare(models)[-1][0]


def entries(grid=GRID, fails=()):
    for model in grid.models:
        for variant in (grid.dense, *grid.variants):
            for place, row in enumerate(grid.rows(model, variant)):
                if (model, variant.labels[0], place) in fails:
                    outcome = Outcome("no\nluck & 50%")
                else:
                    found = evaluation(NLL[variant.labels[0]][place])
                    outcome = Outcome(pruning=PRUNING if row.steps else None, evaluation=found, seconds=12.3)
                yield Entry(row, f"{model} {row.variant} {place}", outcome)


@pytest.fixture
def results():
    return Results.of(GRID, list(entries()), [Skipped(None, ("x",), "why")])


def test_means_are_over_seeds(results):
    _, magnitude, wanda, _ = results.summaries[:4]
    perplexities = [evaluation(nll).perplexity for nll in NLL["wanda"]]
    (text,) = wanda.texts
    assert (text.perplexity.value, text.perplexity.deviation) == (fmean(perplexities), stdev(perplexities))
    assert text.low < text.perplexity.value < text.high
    assert text.low == fmean(evaluation(nll).texts[0].low for nll in NLL["wanda"])
    assert wanda.rows == 3
    assert magnitude.rows == 1
    assert magnitude.texts[0].perplexity.deviation is None
    assert (wanda.sparsity, wanda.relative_error) == (0.5, None)
    assert wanda.retained == pytest.approx(0.8)
    assert wanda.tasks[0].score.value == fmean(1 - nll / 10 for nll in NLL["wanda"])


def test_a_row_is_compared_as_models_side_by_side_are(results):
    dense, baseline = evaluation(NLL["dense"][0]), evaluation(NLL["magnitude"][0])
    rows = [compared(dense, baseline, evaluation(nll)) for nll in NLL["ria_x"]]
    (text,) = results.summaries[3].texts
    assert text.rise == pytest.approx(fmean(row.rise for row in rows), rel=1e-12)
    assert text.rise_low == pytest.approx(fmean(row.rise_low for row in rows), rel=1e-12)
    assert text.prevented == pytest.approx(fmean(row.prevented for row in rows), rel=1e-12)
    assert results.summaries[0].texts[0].rise is None
    assert results.summaries[1].texts[0].prevented is None


def test_a_row_is_better_than_dense_where_all_its_seeds_are_by_paired_tests(monkeypatch):
    monkeypatch.setitem(NLL, "wanda", [2.4, 2.3, 2.35])
    monkeypatch.setitem(NLL, "ria_x", [2.4, 2.3, 2.99])
    dense, _, wanda, ria = Results.of(GRID, list(entries())).summaries[:4]
    assert (wanda.tasks[0].better, ria.tasks[0].better) == (True, False)
    assert (wanda.texts[0].better, dense.texts[0].better) == (True, False)
    assert wanda.tasks[0].difference == pytest.approx(fmean([0.06, 0.07, 0.07]), abs=0.01)
    low, high = wanda.tasks[0].low, wanda.tasks[0].high
    assert low is not None
    assert high is not None
    assert 0 < low < 1 / 15 <= high
    assert wanda.tasks[0].p_value == max(mcnemar(gained, 0) for gained in (6, 7))
    assert dense.tasks[0].difference is None
    assert ria.tasks[0].p_value == 1
    cells = table(Results.of(GRID, list(entries()))).rows
    assert cells[2][3] == ("76.5 ± 0.5*", "1.0")
    assert cells[2][2][0].endswith("*")
    assert cells[3][3] == ("74.4 ± 3.7", "1.0")


def test_a_baseline_of_several_seeds_is_compared_seed_by_seed():
    grid = Grid.from_dict(
        {
            "models": ["a"],
            "recipes": {"wanda": {"score": "wanda"}, "ria_x": {"score": "ria"}},
            "seeds": [0, 1, 2],
            "evaluate": {"data": list(GRID.protocol.data)},
            "baseline": {"recipe": "wanda"},
        }
    )
    dense = evaluation(NLL["dense"][0])
    pairs = zip(NLL["wanda"], NLL["ria_x"], strict=True)
    rows = [compared(dense, evaluation(a), evaluation(b)).prevented for a, b in pairs]
    assert Results.of(grid, list(entries(grid))).summaries[2].texts[0].prevented == pytest.approx(fmean(rows))


def test_what_failed_is_shown_and_the_rest_counts():
    fails = {("a|b", "wanda", 1), ("a|b", "magnitude", 0)}
    results = Results.of(GRID, list(entries(fails=fails)))
    magnitude, wanda = results.summaries[1:3]
    assert (magnitude.rows, magnitude.texts, magnitude.failures) == (0, (), ("no\nluck & 50%",))
    assert (wanda.rows, len(wanda.failures)) == (2, 1)
    assert wanda.texts[0].prevented is None  # for want of the baseline
    assert len(results.failed) == 2
    assert r"| no luck & 50% |" in markdown(table(results))
    assert r"no luck \& 50\%" in latex(table(results))
    assert len({len(row) for row in csv.reader(io.StringIO(comma_separated(results)))}) == 1


def test_tables_in_every_form_have_all_rows_and_escape_what_is_special(results):
    assert len(table(results).rows) == len(results.summaries) == 8
    assert table(results).columns[2] == ("perplexity wikitext2", "95 %", "rise", "prevented")
    assert table(results).rows[2][2][0] == "34.51 ± 5.38"
    lines = markdown(table(results)).splitlines()
    assert len(lines) == 10
    assert all(line.replace(r"\|", "").count("|") == lines[1].count("|") for line in lines)
    assert r"a\|b" in lines[2]
    assert r"ria\_x" in lines[5]
    tex = latex(table(results))
    assert r"100\% \$m\_1 & ria\_x" in tex
    assert tex.count(r"\midrule") == 2
    assert {line.replace(r"\&", "").count("&") for line in tex.splitlines() if line.endswith(r"\\")} == {
        lines[1].count("|") - 2
    }
    rows = list(csv.DictReader(io.StringIO(comma_separated(results))))
    assert float(rows[2][f"{GRID.protocol.data[0]} perplexity"]) == results.summaries[2].texts[0].perplexity.value
    assert [row["model"] for row in rows] == ["a|b"] * 4 + ["100% $m_1"] * 4
    assert json.loads(json.dumps(results.to_dict()))["skipped"][0]["reason"] == "why"


def test_a_table_of_ones_own_shows_about_four_digits_and_no_rules_between_rows():
    rows: list[list[str | float | None]] = [
        ["a_b", 12345, 12345.6, None],
        ["c", 0.012345, math.inf, 29.154],
        ["", 0.0, math.nan, -475.68],
    ]
    plain = Table.plain(["method", "x", "y", "z"], rows)
    assert markdown(plain).splitlines() == [
        "| method | x | y | z |",
        "| --- | ---: | ---: | ---: |",
        r"| a\_b | 12,345 | 12,346 |  |",
        "| c | 0.0123 | ∞ | 29.15 |",
        "|  | 0 | ∞ | -475.7 |",
    ]
    assert latex(plain).count(r"\midrule") == 1
    assert latex(Table.plain(["method", "x", "y", "z"], rows, words=2)).count(r"\midrule") == 3


def test_an_outcome_survives_its_document():
    for nll in (3.0, math.inf):
        outcome = Outcome(pruning=PRUNING, evaluation=evaluation(nll), seconds=1.5)
        assert str(decode_outcome(encode(outcome))) == str(outcome)  # not a number is no number's equal
