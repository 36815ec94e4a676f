"""Beyond RIA's Table 8: every score, mended every way, with and without permutation and refinement.

*Layer error* is the mean relative error of a linear's outputs on the calibration inputs; *steps kept* says on how many
reader groups the guard kept each step, and of how many.
"""

from typing import Any

from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.tables import sweep_report
from secateur.reconstruct.methods import RECONSTRUCTIONS
from secateur.sweeps.results import Entry
from secateur.sweeps.tables import Table

MODELS = LLAMA2[:1]
AXES: dict[str, Any] = {
    "target": {"50 %": {"sparsity": 0.5}, "4:8": {"pattern": "4:8"}, "2:4": {"pattern": "2:4"}},
    "permute": ["none", "lsa"],
    "score": ["magnitude", "wanda", "ri", "ria", "sparsegpt"],
    "reconstruct": ["none", *RECONSTRUCTIONS],
    "refine": [False, True],
}
# Where it is to take minutes.
SMALL_AXES = AXES | {"target": {"2:4": {"pattern": "2:4"}}, "permute": ["lsa"], "score": ["ria"], "refine": [False]}


def run(setting: Setting) -> Report:
    results = setting.sweep(axes=SMALL_AXES if setting.small else AXES, seeds=setting.seeds[:1])
    report = sweep_report(results, notes=absent(setting, "wikitext2", "c4"))
    rows = [
        [entry.row.model, *entry.row.variant.labels, entry.outcome.pruning.relative_error, _kept(entry)]
        for entry in results.entries
        if entry.outcome.pruning
    ]
    headings = ["model", *results.axes, "layer error", "steps kept"]
    guarded = Table.plain(headings, rows, words=1 + len(results.axes))
    return Report([*report.tables, ("", guarded)], notes=report.notes, data=report.data)


def _kept(entry: Entry) -> str:
    steps = entry.outcome.pruning.steps if entry.outcome.pruning else {}
    return ", ".join(f"{step} {kept} of {tried}" for step, (kept, tried) in steps.items())


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
