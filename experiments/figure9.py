"""RIA, Figure 9: the exponent a of the activations in RI · ‖X‖^a.

a = 0 is RI, which reads no activations; a = 0.5 is RIA as published; a = 1 weighs inputs as Wanda does.
"""

from typing import Any

from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.curves import curves, plots, table

MODELS = LLAMA2[1:2]
EXPONENTS, FEW = (0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2), (0, 0.25, 0.5, 1, 2)
TARGETS = {"50 %": {"sparsity": 0.5}, "2:4": {"pattern": "2:4", "permute": "none"}}


def run(setting: Setting) -> Report:
    places = FEW if setting.small else EXPONENTS
    exponents: dict[str, dict[str, Any]] = {f"{a:g}": {"alpha": float(a)} for a in places}
    exponents["0"] = {"score": "ri"}  # the same, and without a pass of the samples
    targets = {"50 %": TARGETS["50 %"]} if setting.small else TARGETS
    results = setting.sweep(targets, base={"score": "ria"}, axes={"a": exponents})
    found = curves(results, "a")
    return Report(
        tables=[("Perplexity of RIA by its exponent a.", table(found, "sparsity"))],
        plots=plots(found, "exponent", places, "exponent a of ‖X‖", setting),
        notes=absent(setting, "wikitext2", "c4"),
        data=results.to_dict(),
    )


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
