import json
import math
from dataclasses import replace

import pytest

import secateur
from secateur.console.evaluation import evaluation_table
from secateur.evaluation.comparison import compare, compare_tasks, document
from secateur.evaluation.evaluate import Evaluation
from secateur.evaluation.perplexity import Perplexity
from secateur.evaluation.uncertainty import mcnemar
from secateur.evaluation.zero_shot import TaskScore
from tests import pico

BLOCKS = (2.0, 2.5, 3.0, 2.1, 2.9)


def model(name, *, added=0.0, noise=(0.0,) * 5, tokens="same"):
    blocks = tuple(block + added + each for block, each in zip(BLOCKS, noise, strict=True))
    nll = sum(blocks) / 5
    text = Perplexity("t", math.exp(nll), None, None, nll, blocks, 8, 8, 5, 35, "", tokens, 0.0)
    return Evaluation(name, "float32", (text,), ())


def against(*models):
    return [row[0] for row in compare(models)]


def test_the_share_prevented_is_that_of_appendix_j():
    dense, baseline, better = model("dense"), model("a", added=1.0), model("b", added=0.4)
    first, second, third = against(dense, baseline, better)
    assert first is None
    assert second.prevented is None
    p, a, b = (each.perplexity for each in (dense, baseline, better))
    assert third.prevented == pytest.approx((a - b) / (a - p))
    assert third.rise == pytest.approx(b / p - 1)
    _, _, same, perfect, worse = against(dense, baseline, baseline, dense, model("c", added=2.0))
    assert (same.prevented, perfect.prevented) == (pytest.approx(0), pytest.approx(1))
    assert worse.prevented < 0


def test_a_baseline_that_lost_nothing_leaves_nothing_to_prevent():
    assert against(model("dense"), model("a", added=-0.1), model("b"))[2].prevented is None


def test_the_rise_is_judged_on_the_same_tokens():
    *_, steady = against(model("dense"), model("a", added=0.5))
    assert steady.rise_low == steady.rise_high == pytest.approx(steady.rise)  # though the text itself varies much
    *_, noisy = against(model("dense"), model("a", added=0.5, noise=(0.1, -0.1, 0.0, 0.1, -0.1)))
    assert noisy.rise_low < noisy.rise < noisy.rise_high


def test_perplexities_per_another_kind_of_token_do_not_compare():
    assert against(model("dense"), model("a", tokens="other")) == [None, None]
    assert against(model("dense"), model("a", tokens="other"), model("b"))[2].prevented is None


def test_the_document_says_it_all_in_json():
    models = [model("dense"), model("a", added=1.0), replace(model("b", added=0.5), dtype="bfloat16")]
    dense, _, third = json.loads(json.dumps(document(models)))["models"]
    assert dense["against_dense"] == [None]
    assert third["dtype"] == "bfloat16"
    assert 0 < third["against_dense"][0]["prevented"] < 1
    assert third["texts"][0]["block_nll"] == pytest.approx([block + 0.5 for block in BLOCKS])


def test_better_than_dense_is_what_rises_less_than_nothing_beyond_chance():
    steady, noise = model("a", added=-0.01), (0.1, -0.1, 0.0, 0.1, -0.1)
    assert against(model("dense"), steady)[1].better
    assert not against(model("dense"), model("b", added=-0.01, noise=noise))[1].better
    assert not against(model("dense"), model("c", added=0.01))[1].better


def asked(name, right, items="same", metric="acc"):
    score = TaskScore("arc", metric, (right or "").count("1") / 20, 0.1, 20, 0, None, right, items)
    return replace(model(name), tasks=(score,))


def test_answers_are_compared_item_by_item():
    dense = asked("dense", "10" * 10)
    _, (better,), (other,), (none,), (words,) = compare_tasks(
        [
            dense,
            asked("a", "11" * 9 + "01"),  # nine gained, and one lost
            asked("b", "01" * 10),
            asked("c", "11" * 10, "others"),
            asked("d", None),
        ]
    )
    assert better
    assert (better.gained, better.lost) == (10, 1)
    assert better.difference == pytest.approx(0.45)
    assert better.p_value == mcnemar(10, 1) < 0.05
    assert better.better
    assert 0 < better.low < 0.45 < better.high
    assert other
    assert (other.gained, other.lost, other.p_value, other.better) == (10, 10, 1, False)
    assert none is None
    assert words is None
    (worse,) = compare_tasks([asked("a", "1" * 20), asked("b", "0" * 20)])[1]
    assert worse
    assert worse.p_value < 1e-5
    assert not worse.better
    told = json.loads(json.dumps(document([dense, asked("a", "1" * 20)])))["models"]
    assert told[0]["tasks_against_dense"] == [None]
    assert told[1]["tasks_against_dense"][0]["difference"] == 0.5
    rows = evaluation_table([dense, asked("a", "1" * 20)]).rows
    assert [row.cells[2] for row in rows] == ["50.0 ± 10.0", "100.0 ± 10.0*"]


def test_each_model_reads_every_text(tmp_path):
    texts = []
    for number in (1, 2):
        texts.append(str(tmp_path / f"{number}.txt"))
        (tmp_path / f"{number}.txt").write_text(f"text number {number}, " * 40)
    folders = [pico.save("llama-mha", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    results = secateur.evaluate(folders, texts, window=32, limit=5)
    assert [[text.data for text in result.texts] for result in results] == [texts, texts]
    alone = secateur.evaluate(folders[1], texts[1], window=32, limit=5)[0]
    assert alone.perplexity == results[1].texts[1].perplexity != results[1].perplexity
    assert (alone.texts[0].low or math.inf) < alone.perplexity < (alone.texts[0].high or 0)
