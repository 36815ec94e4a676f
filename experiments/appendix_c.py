"""RIA, Appendix C: how much results depend on what the model is calibrated on.

The paper says that RIA's depend on it least. Here as a number: each method prunes to 50 % on several draws of every
calibration set; per text, the coefficient of variation of the perplexity over all draws of all sets. *Farther from the
middle than RIA* is the mean over draws of how much farther the method's log perplexity lies from its median than RIA's
does, in percent of perplexity, with a 95 % interval: each draw gives both methods the same samples, so that the
difference is taken draw by draw (Levene's test, in pairs). An interval that holds 0 says that these draws do not tell
which is more stable. It is one over draws of these sets: of other sets it says nothing.
"""

import math
from collections.abc import Sequence
from statistics import fmean, median, stdev

from experiments.activations import absent_sets, draws
from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.figure4 import COMPARED
from secateur.evaluation.uncertainty import interval
from secateur.sweeps.tables import Table

MODELS = LLAMA2[:1]
DRAWS = 6  # in all, at least, and at least three of a set; where it is to take minutes, two of a set
AGAINST = "ria"


def run(setting: Setting) -> Report:
    sets = {draw.label: {"calibration": draw.source} for draw in draws(setting)[:-1]}
    fewest = 2 if setting.small else max(3, math.ceil(DRAWS / len(sets)))
    seeds = range(max(len(setting.seeds), fewest))
    results = setting.sweep(COMPARED, base={"sparsity": 0.5}, axes={"set": sets}, seeds=seeds)
    found: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}  # by model and text, then method and set
    for entry in results.entries:
        labels = results.by_axis(entry.row.variant.labels)
        if entry.row.recipe and entry.outcome.evaluation:
            for one in entry.outcome.evaluation.texts:
                methods = found.setdefault((entry.row.model, one.data.partition(":")[0]), {})
                methods.setdefault(labels["recipe"], {}).setdefault(labels["set"], []).append(one.perplexity)
    rows: list[list[str | float | None]] = []
    for words, methods in found.items():
        values = {method: [x for some in by.values() for x in some] for method, by in methods.items()}
        for method, by in methods.items():
            more = _shown(*farther(values[method], values[AGAINST])) if method != AGAINST else None
            means = [fmean(some) for some in by.values()]
            rows.append([*words, method, *means, f"{variation(values[method]):.2%}", more])
    headings = ["model", "text", "method", *(f"on {label}" for label in sets), "variation", "farther than RIA"]
    caption = (
        f"Perplexity, mean over {len(seeds)} draws of each set, and its variation over all {len(seeds) * len(sets)}."
    )
    return Report(
        [(caption, Table.plain(headings, rows, words=3))],
        notes=[*absent_sets(setting), *absent(setting, "wikitext2", "c4")],
        data=results.to_dict(),
    )


def variation(perplexities: Sequence[float]) -> float:
    """The coefficient of variation: sample standard deviation over mean."""
    return stdev(perplexities) / fmean(perplexities)


def farther(perplexities: Sequence[float], others: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """How much farther from their middle one method's log perplexities lie than another's.

    Returns:
        the mean over draws, which both have in common, in percent; and its 95 % interval, None of too few draws.
    """
    pairs = zip(_distances(perplexities), _distances(others), strict=True)
    differences = [100 * (one - other) for one, other in pairs]
    return fmean(differences), interval(fmean(differences), differences)


def _shown(mean: float, between: tuple[float, float] | None) -> str:
    return f"{mean:+.2f} %" + (f" ({between[0]:+.2f} to {between[1]:+.2f})" if between else "")


def _distances(perplexities: Sequence[float]) -> list[float]:
    logarithms = [math.log(x) for x in perplexities]
    middle = median(logarithms)
    return [abs(x - middle) for x in logarithms]


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
