"""RIA, Table 10: structured against semi-structured and unstructured sparsity, and what each is worth in speed.

At each share of the linears' weights: structured pruning by every method (heads and channels by activation or
first-order Taylor, or whole blocks), RIA with N:M and ordered channels, and RIA unstructured. Tokens per second are
generated one by one after a short prompt: structured models as they are, the others packed, medians over rounds in
which all take turns. The paper counts the weights that N:M removes: its 1:4 is 3:4 here. Nothing is trained
afterwards.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import secateur
from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.tables import add_column, sweep_report
from experiments.timing import machine, speeds
from secateur.importance import METHODS as STRUCTURED

MODELS = LLAMA2[:1]
SHARES = {0.25: "3:4", 0.5: "2:4", 0.75: "1:4"}
METHODS: dict[str, Any] = {
    name: options
    for share, pattern in SHARES.items()
    for name, options in {
        **{
            f"{method} {share:.0%}": {"score": "none", "shrink": {"method": method, "sparsity": share}}
            for method in STRUCTURED
        },
        f"ria {pattern}": {"score": "ria", "pattern": pattern},
        f"ria {share:.0%}": {"score": "ria", "sparsity": share},
    }.items()
}


def run(setting: Setting) -> Report:
    # Before the table, whose rows are filed by then: the models are deleted when they have been timed.
    rates = {
        model: setting.measured(model, {"table": 10, "recipe": setting.options(), "machine": str(machine())}, timed)
        for model, timed in ((model, lambda model=model: _rates(setting, model)) for model in setting.models)
    }
    results = setting.sweep(_methods(setting))
    column = [f"{rates[x.model]['dense' if x.labels == ('dense',) else x.labels[0]]:.1f}" for x in results.summaries]
    report = sweep_report(results, notes=absent(setting, "wikitext2"))
    (caption, table), *more = report.tables
    tables = [(caption, add_column(table, "tokens/s", column)), *more]
    return Report(tables, report.notes, data={"sweep": report.data, "tokens per second": rates})


def _methods(setting: Setting) -> dict[str, Any]:
    """All of them, or where it is to take minutes no gradients, and none of the shares at which little is left."""
    slow = ("taylor", f"{max(SHARES):.0%}", SHARES[max(SHARES)])
    return {name: one for name, one in METHODS.items() if not (setting.small and any(x in name for x in slow))}


def _rates(setting: Setting, model: str) -> dict[str, float]:
    """Tokens per second of a model and of all that becomes of it, by label."""
    results = setting.sweep(_methods(setting), keep_models=True)
    made = {x.row.variant.labels[0]: x.model for x in results.entries if x.row.model == model and x.model}
    with setting.folder(model) as dense, tempfile.TemporaryDirectory(dir=setting.out) as home:
        runs: dict[str, Path] = {"dense": dense}
        for name, folder in made.items():
            runs[name] = folder
            if name.startswith("ria"):
                runs[name] = Path(home) / str(len(runs))
                secateur.pack(folder, runs[name])
        found = {name: rate.median for name, rate in zip(runs, speeds(list(runs.values())), strict=True)}
    for folder in made.values():
        shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
