"""The published figures in ``experiments/published.json`` are named as Secateur names things, and have a source."""

import json
from pathlib import Path

import pytest

from secateur.patterns import parse_nm
from secateur.scores import SCORES

PUBLISHED = json.loads((Path(__file__).parents[1] / "experiments" / "published.json").read_text("utf-8"))
FIGURES = [figure for table in PUBLISHED["tables"].values() for figure in table]


def cell(figure, **other):
    """What a figure is of, or what one that differs by ``other`` would be of."""
    return tuple((figure | other)[key] for key in ("model", "method", "pattern", "permuted", "dataset"))


CELLS = {cell(figure): figure["value"] for figure in FIGURES}


def test_each_figure_is_there_once():
    assert len(CELLS) == len(FIGURES)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: " ".join(map(str, cell(figure))))
def test_a_figure_has_a_source_and_secateurs_names(figure):
    assert figure["source"] in PUBLISHED["sources"]
    assert figure["method"] in {"dense", *SCORES}
    assert (figure["pattern"] is None) == (figure["method"] == "dense")
    if figure["pattern"] and not figure["pattern"].endswith("%"):
        parse_nm(figure["pattern"])


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: " ".join(map(str, cell(figure))))
def test_less_freedom_never_gave_a_better_model(figure):
    """Dense, 50 % anywhere, 4:8, 2:4 with ordered channels, 2:4: a mistyped figure would most likely break it."""
    freer = [
        cell(figure, method="dense", pattern=None, permuted=False),
        cell(figure, pattern="50%", permuted=False),
        cell(figure, permuted=True),
    ]
    if figure["pattern"] == "2:4":
        freer.append(cell(figure, pattern="4:8"))
    assert all(CELLS[other] <= figure["value"] for other in freer if other in CELLS and figure["method"] != "dense")
