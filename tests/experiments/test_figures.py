"""What the figures are made of, on tiny cases, and each of them on a tiny model."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from experiments import appendix_c, figure4, figure5, figure6, figure9
from experiments.activations import Outliers, draws, kinds, norms, over_depth, spearman, top
from experiments.appendix_c import farther, variation
from experiments.common import Texts
from experiments.degrees import BINS, Degrees, by_block, by_kind, degrees
from experiments.drawing import apart

# ---------------------------------------------------------------- activations


def test_spearman_sees_ranks_alone():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.1
    assert spearman(values, values**3) == pytest.approx(1)
    assert spearman(values, 1 / values) == pytest.approx(-1)
    assert abs(spearman(values, values.roll(7))) < 0.5


def test_spearman_gives_equals_their_mean_rank():
    """By hand: ranks 1.5 1.5 3 4 and 1 2 3 4."""
    x, y = torch.tensor([1.5, 1.5, 3, 4]), torch.tensor([1.0, 2, 3, 4])
    wanted = torch.corrcoef(torch.stack([x, y]))[0, 1]
    assert spearman(torch.tensor([5.0, 5, 6, 9]), torch.tensor([0.0, 1, 2, 3])) == pytest.approx(float(wanted))


def test_outliers_have_no_unit():
    values = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.5
    values[17] = 40
    once, twice = Outliers.of(values), Outliers.of(2 * values)
    assert vars(once) == pytest.approx(vars(twice))
    assert once.ratio == pytest.approx(float(40 / values.median()))
    assert top(values).tolist()[0] == 17 and len(top(values)) == 2
    assert once.top > 40**2 / float(values.square().sum())
    assert once.kurtosis > 100 > Outliers.of(values[values < 40]).kurtosis


def test_a_power_spreads_the_logarithm_as_many_times():
    values = torch.rand(100, generator=torch.Generator().manual_seed(0)) + 0.1
    assert Outliers.of(values**2).spread == pytest.approx(2 * Outliers.of(values).spread)


def test_channels_that_are_all_alike_have_no_outliers():
    found = Outliers.of(torch.full((100,), 3.0))
    assert (found.ratio, found.kurtosis, found.spread) == (1, 3, 0) and found.top == pytest.approx(0.01)


def test_linears_are_called_by_what_tells_them_apart():
    assert kinds(["self_attn.q_proj", "mlp.experts.3.up_proj"]) == {
        "self_attn.q_proj": "q",
        "mlp.experts.3.up_proj": "up",
    }
    assert kinds(["attn.c_proj", "mlp.c_proj"]) == {"attn.c_proj": "attn.c_proj", "mlp.c_proj": "mlp.c_proj"}


def test_the_survey_sees_what_the_model_computes(setting):
    """Norms of what enters down_proj of the last block, by a hook on the whole model."""
    from transformers import AutoModelForCausalLM

    from secateur.checkpoint import Source
    from secateur.pruning.prepare import draw_samples
    from secateur.recipe import Recipe

    folder, draw = Path(setting.models["pico"]), draws(setting)[0]
    recipe = Recipe.from_dict(setting.options(calibration=draw.source, seed=draw.seed))
    samples = draw_samples(Source(folder), recipe, 4, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen = []
    model.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(samples.batches[0])
    wanted = torch.cat(seen).flatten(0, 1).norm(dim=0)
    found = norms(setting, "pico", folder, draw)
    assert list(found[2]) == ["q, k, v", "o", "gate, up", "down"]
    torch.testing.assert_close(found[2]["down"], wanted, rtol=1e-3, atol=1e-5)
    assert list(over_depth(found)["down"]) == [1, 2, 3]


def test_one_text_is_drawn_twice(setting):
    """Every corpus once, and the first again with another seed."""
    assert [(draw.label, draw.seed) for draw in draws(setting)] == [
        ("c4", 0), ("wikitext2", 0), ("c4, drawn again", 1)
    ]  # fmt: skip
    demo = replace(setting, texts=Texts(None, demo=True))
    assert [(draw.label, draw.seed) for draw in draws(demo)] == [("demo", 0), ("demo, drawn again", 1)]


# ---------------------------------------------------------------- degrees


def test_degrees_count_what_is_kept():
    kept = torch.ones(20, 4, dtype=torch.bool)
    kept[:, 0] = False
    kept[2:, 1] = False  # 2 of 20 stay: as good as lost
    kept[3:, 2] = False
    columns, rows = Degrees.of(kept, 0), Degrees.of(kept, 1)
    assert (columns.channels, columns.lost, columns.ruined) == (4, 1, 2)
    assert (columns.least, columns.most) == (0, 1) and sum(columns.histogram) == 4 and columns.histogram[-1] == 1
    assert (rows.channels, rows.lost, rows.least, rows.most) == (20, 0, 0.25, 0.75)
    assert columns.spread == pytest.approx(float(torch.tensor([0, 0.1, 0.15, 1]).std(correction=0)), abs=1e-4)


def test_degrees_of_several_linears_are_their_sums_and_means():
    kept = torch.rand(2, 30, 10, generator=torch.Generator().manual_seed(0)) < 0.3
    one, other = (Degrees.of(each, 0) for each in kept)
    both = Degrees.over([one, other])
    assert both.channels == 20 and both.ruined == one.ruined + other.ruined and len(both.histogram) == BINS
    assert both.spread == pytest.approx(fmean([one.spread, other.spread]))


def test_the_neighbours_of_a_full_channel_are_those_of_its_group():
    kept = torch.zeros(10, 8, dtype=torch.bool)
    kept[:, 1] = True
    kept[:5, 2:4] = True  # in its group: 0, 0.5 and 0.5
    kept[:8, 4:] = True  # no channel of this group is full
    assert Degrees.of(kept, 0).beside == pytest.approx(1 / 3, abs=1e-4)
    assert Degrees.of(kept[:, 4:], 0).beside is None
    assert Degrees.over([Degrees.of(kept, 0), Degrees.of(kept[:, 4:], 0)]).beside == Degrees.of(kept, 0).beside


def test_a_row_by_row_method_loses_no_row(setting):
    found = degrees(setting, "pico", Path(setting.models["pico"]), {"score": "wanda", "sparsity": 0.75})
    assert {linear.outputs.least for linear in found} == {linear.outputs.most for linear in found} == {0.25}
    assert list(by_kind(found, "inputs")) == ["q", "k", "v", "o", "gate", "up", "down"]
    assert list(by_block(found, "inputs")) == [1, 2, 3]


def test_degrees_are_filed_and_the_model_is_not(setting):
    options = {"score": "magnitude", "sparsity": 0.5}
    folder = Path(setting.models["pico"])
    found = degrees(setting, "pico", folder, options)
    assert degrees(setting, "pico", folder / "nowhere", options) == found
    assert not list(setting.out.glob("degrees-*"))


# ---------------------------------------------------------------- curves and their scatter


def test_what_does_not_vary_is_not_farther_from_its_middle():
    """Perplexities have no unit here; those whose logarithms spread twice as far lie farther."""
    close = [10.0, 11, 9, 10.5, 9.5, 10.2]
    wide = [x**2 for x in close]
    mean, between = farther(close, [3 * x for x in close])
    assert between and (mean, *between) == pytest.approx((0, 0, 0))
    mean, between = farther(wide, close)
    assert between and 0 < between[0] < mean < between[1] and farther(close, wide)[0] == pytest.approx(-mean)
    assert farther(wide[:3], close[:3])[1] is None
    assert variation([3 * x for x in close]) == pytest.approx(variation(close))
    assert variation(wide) > variation(close)


def test_labels_do_not_touch():
    wanted = [0.5, 0.1, 0.52, 0.51]
    found = apart(wanted, 0.1)
    assert found[1] == pytest.approx(0.1)
    assert found[0] < found[3] < found[2]
    assert [found[3] - found[0], found[2] - found[3]] == pytest.approx([0.1, 0.1])
    assert fmean(found[place] for place in (0, 2, 3)) == pytest.approx(0.51)


# ---------------------------------------------------------------- all of it


@pytest.fixture
def few(monkeypatch):
    """Fewer rows, as much to do: each part of each figure once."""
    monkeypatch.setattr(figure6, "ALL", {name: figure6.ALL[name] for name in figure6.DRAWN})
    monkeypatch.setattr(figure5, "EXPONENTS", {a: figure5.EXPONENTS[a] for a in ("a = 2", "a = 2, 2:4")})
    monkeypatch.setattr(figure4, "FEW_SPARSITIES", (0.5, 0.7))
    monkeypatch.setattr(figure4, "FEW_SAMPLES", (1, 4))
    monkeypatch.setattr(figure9, "EXPONENTS", (0, 0.5))
    monkeypatch.setattr(appendix_c, "COMPARED", {name: figure4.COMPARED[name] for name in ("wanda", "ria")})


@pytest.mark.parametrize(
    "name", ["figure2", "figure4", "figure5", "figure6", "figure7", "figure8", "figure9", "appendix_c"]
)
def test_a_figure_is_made(name, setting, few, tmp_path):
    report = importlib.import_module(f"experiments.{name}").run(setting)
    text = report.write(tmp_path, name, "")
    for _, table in report.tables:
        assert table.rows and {len(row) for row in table.rows} == {len(table.columns)}
    assert "nan" not in text.lower()
    json.loads((tmp_path / f"{name}.json").read_text())
    for plot in report.plots:
        assert "<svg" in (tmp_path / f"{name}-{plot}.svg").read_text()
