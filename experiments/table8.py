"""RIA, Table 8: what it is worth to reconstruct the weights that are kept.

``+ rec`` is SparseGPT's sweep on a given mask, as in the paper. Conjugate gradients and ADMM go on to the optimum of
the same objective, and are judged on samples that they have not seen; ``good`` is the preset: SparseGPT's score, an
order of the channels at N:M, ADMM.
"""

from typing import Any

from experiments import table1
from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.tables import sweep_report

MODELS = LLAMA2[:1]
PLAIN = {"permute": "none"}
AS_PUBLISHED = {"reconstruct": "sparsegpt", "guard": False}
METHODS: dict[str, Any] = {
    **{name: table1.METHODS[name] | PLAIN for name in ("magnitude", "sparsegpt", "wanda", "ria")},
    "wanda + rec": {"score": "wanda", **AS_PUBLISHED, **PLAIN},
    "ria + rec": {"score": "ria", **AS_PUBLISHED, **PLAIN},
    "ria + cg": {"score": "ria", "reconstruct": "cg", **PLAIN},
    "ria + admm": {"score": "ria", "reconstruct": "admm", **PLAIN},
    "good": {"preset": "good"},
}
SLOW = ("ria + admm", "good")  # left out where it is to take minutes
TARGETS = {"50 %": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}}


def run(setting: Setting) -> Report:
    targets = {"50 %": TARGETS["50 %"]} if setting.small else TARGETS
    methods = {name: one for name, one in METHODS.items() if not (setting.small and name in SLOW)}
    results = setting.sweep(methods, axes={"target": targets}, baseline={"recipe": "magnitude"})
    return sweep_report(results, notes=absent(setting, "wikitext2"))


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
