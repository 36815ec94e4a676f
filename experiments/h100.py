"""On an H100, with the calibration of the paper: 128 samples of 2,048 tokens of C4, the whole of WikiText-2.

Rows that were measured once, on 26 November 2026, and are not made again: SmolLM2-135M-Instruct in float32 with TF32
products, documents of C4 joined; WikiText-2's test set in windows of 2,048 tokens, 40 windows of other documents of C4.
"""

import json
from pathlib import Path
from typing import Any

from experiments.common import Report, Setting, main
from secateur.recipe import Recipe
from secateur.sweeps.tables import Table

MODELS = ()


def run(setting: Setting) -> Report:
    lines = Path(__file__).with_suffix(".jsonl").read_text("utf-8").splitlines()
    rows = [row for line in lines if "recipe" in (row := json.loads(line))]
    headings = ["recipe", "WikiText-2", "other C4", "retained", "relative error of a linear"]
    cells = [
        [_name(row["recipe"]), row["wikitext2"], row["c4_other_documents"], row["retained"], row["layer_error"] or None]
        for row in rows
    ]
    return Report([("", Table.plain(headings, cells))], data=rows)


def _name(recipe: Any) -> str:
    if recipe == "dense":
        return "dense"
    seed = f", draw {recipe['seed']}" if "seed" in recipe else ""
    return Recipe.from_dict(recipe).summary() + seed


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
