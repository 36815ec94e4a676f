"""RIA, Table 4: perplexity of N:M sparsity, without and with channel permutation (CP).

``+ CP`` is an order that is folded into a plain checkpoint, found by Secateur's search. ``+ CP as published`` gives
each linear an order of its own by one pass of linear sum assignment, and maps the mask back, as the authors' code does:
no N:M kernel can run what is written then.
"""

from typing import Any

from experiments import table1
from experiments.common import LLAMA, LLAMA2, LLAMA3, Report, Setting, absent, main
from experiments.tables import sweep_report

MODELS = (*LLAMA, *LLAMA2, *LLAMA3)
AS_IT_IS = {"permute": "none"}
FOLDED = {"permute": "lsa", "fold": "exact"}
AS_PUBLISHED = {"permute": "lsa-published", "fold": "none"}
METHODS: dict[str, dict[str, Any]] = {
    **{name: table1.METHODS[name] | AS_IT_IS for name in ("magnitude", "sparsegpt")},
    **{
        f"{score}{suffix}": {"score": score, **order}
        for score in ("wanda", "ria")
        for suffix, order in (("", AS_IT_IS), (" + CP", FOLDED), (" + CP as published", AS_PUBLISHED))
    },
}


def run(setting: Setting) -> Report:
    patterns = ["2:4"] if setting.small else ["2:4", "4:8"]
    results = setting.sweep(METHODS, axes={"pattern": patterns}, baseline={"recipe": "magnitude"})
    return sweep_report(results, notes=absent(setting, "wikitext2"))


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
