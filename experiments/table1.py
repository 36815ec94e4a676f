"""RIA, Table 1: perplexity at 50 % unstructured sparsity, by method and model.

SparseGPT is as published: all samples count, and none is held out to judge its updates by.
"""

from typing import Any

from experiments.common import LLAMA, LLAMA2, LLAMA3, OPT, Report, Setting, absent, main
from experiments.tables import sweep_report

MODELS = (*LLAMA, *LLAMA2, *LLAMA3, *OPT)
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"score": "magnitude"},
    "wanda": {"score": "wanda"},
    "sparsegpt": {"score": "sparsegpt", "reconstruct": "sparsegpt", "guard": False},
    "ri": {"score": "ri"},
    "ria": {"score": "ria"},
}


def run(setting: Setting) -> Report:
    results = setting.sweep(METHODS, base={"sparsity": 0.5}, baseline={"recipe": "magnitude"})
    return sweep_report(results, notes=absent(setting, "wikitext2"))


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
