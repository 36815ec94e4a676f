"""RIA, Table 2: what each part of the score is worth, at 50 % unstructured sparsity.

The exponent a of the activations is 0.5 in RIA and 1 in the row below it (Figure 9 has more); Wanda is shown in its
published scope, where the weights of a row compete, and in RIA's, where all weights of a matrix do. Below the table
stands whether RIA is better than Wanda, as in the paper, and what the exponent alone changes.
"""

from collections.abc import Iterator

from experiments.common import LLAMA, LLAMA2, Report, Setting, absent, main
from experiments.tables import sweep_report
from secateur.evaluation.comparison import Comparison, compare
from secateur.sweeps.results import Results

WANDA, RIA, WHOLE = "|W| ‖X‖ (Wanda), in a row", "RI ‖X‖^0.5 (RIA)", "RI ‖X‖"
MODELS = (*LLAMA, *LLAMA2)
SCORES = {
    "|W| (magnitude)": {"score": "magnitude"},
    "‖X‖ (activation)": {"score": "activation"},
    "|W| / Σ of the input channel": {"score": "ri-input"},
    "|W| / Σ of the output channel": {"score": "ri-output"},
    "RI": {"score": "ri"},
    WANDA: {"score": "wanda"},
    "|W| ‖X‖, in the matrix": {"score": "wanda", "scope": "matrix"},
    RIA: {"score": "ria"},
    WHOLE: {"score": "ria", "alpha": 1.0},
}


def run(setting: Setting) -> Report:
    results = setting.sweep(SCORES, base={"sparsity": 0.5}, baseline={"recipe": "|W| (magnitude)"})
    return sweep_report(results, notes=[*remarks(results), *absent(setting, "wikitext2")])


def remarks(results: Results) -> Iterator[str]:
    """Per model, RIA beside Wanda, and RIA with the exponent 1 beside 0.5, window by window."""
    for model in dict.fromkeys(entry.row.model for entry in results.entries):
        found = {
            entry.row.variant.labels[0]: entry.outcome.evaluation
            for entry in reversed(results.entries)  # of several seeds the first
            if entry.row.model == model and entry.outcome.evaluation
        }
        (_, beside), (_, exponent) = (
            compare([found[one], found[other]]) for one, other in ((WANDA, RIA), (RIA, WHOLE))
        )
        texts = [text.data.partition(":")[0] for text in found[RIA].texts]
        yield (
            f"On {model} RIA's perplexity beside Wanda's: {_shown(texts, beside)}; what RIA's becomes with a = 1 "
            f"instead of 0.5: {_shown(texts, exponent)}. (In the paper RIA is better than Wanda. Changes window by "
            "window, with 95 % intervals: one that holds 0 decides nothing.)"
        )


def _shown(texts: list[str], changes: list[Comparison | None]) -> str:
    parts = []
    for text, change in zip(texts, changes, strict=True):
        if change:
            between = f" ({change.rise_low:+.1%} to {change.rise_high:+.1%})" if change.rise_low is not None else ""
            parts.append(f"{change.rise:+.1%}{between} on {text}")
    return ", ".join(parts)


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
