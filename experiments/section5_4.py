"""RIA, Section 5.4: how long pruning takes, by method: the rows of Table 1, and of Table 4 at 2:4.

Seconds of the stages of ``secateur prune``, means over seeds. Calibrating runs the model over the samples; ordering is
the search for orders that are folded, and folding them. Where each linear has an order of its own, as published, the
search counts as pruning. *Files* is what is read and written.
"""

from statistics import fmean

from experiments import table1, table4
from experiments.common import Report, Setting, main
from experiments.timing import machine, shared
from secateur.sweeps.results import Results
from secateur.sweeps.tables import Table

MODELS = table1.MODELS
STAGES = ("calibrate", "order", "prune")


def run(setting: Setting) -> Report:
    unstructured = setting.sweep(table1.METHODS, base={"sparsity": 0.5})
    ordered = setting.sweep(table4.METHODS, axes={"pattern": ["2:4"]})
    rows = [(model, f"{recipe} 50 %", found) for (model, recipe), found in stages(unstructured).items()]
    rows += [(model, f"{recipe} 2:4", found) for (model, recipe), found in stages(ordered).items()]
    return Report(
        tables=[(f"Seconds; {machine()}{shared(setting)}.", stages_table(rows))],
        data=[{"model": model, "recipe": recipe, "seconds": found} for model, recipe, found in rows],
    )


def stages(results: Results) -> dict[tuple[str, str], dict[str, float]]:
    """Seconds by stage of each model and recipe of a sweep, and their sum: means over its rows."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for entry in results.entries:
        if pruning := entry.outcome.pruning:
            spent = pruning.seconds
            row = {stage: spent.get(stage, 0) for stage in STAGES}
            row["files"] = sum(spent.values()) - sum(row.values())
            rows.setdefault((entry.row.model, entry.row.variant.labels[0]), []).append(row)
    means = {key: {stage: fmean(row[stage] for row in found) for stage in found[0]} for key, found in rows.items()}
    return {key: mean | {"all": sum(mean.values())} for key, mean in means.items()}


def stages_table(rows: list[tuple[str, str, dict[str, float]]]) -> Table:
    """A row for each model and recipe, with its seconds by stage."""
    stages = list(rows[0][2]) if rows else []
    cells = [[model, recipe, *(f"{found[stage]:.1f}" for stage in stages)] for model, recipe, found in rows]
    return Table.plain(["model", "recipe", *stages], cells, words=2)


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
