"""RIA, Table 6: zero-shot accuracy of N:M sparsity, without and with channel permutation (CP)."""

from experiments import table4
from experiments.common import LLAMA2, Report, Setting, main
from experiments.tables import tasks_report

MODELS = LLAMA2[-1:]
METHODS = {name: table4.METHODS[name] for name in ("wanda", "sparsegpt", "ria", "ria + CP")}


def run(setting: Setting) -> Report:
    return tasks_report(setting, METHODS, axes={"pattern": ["2:4"] if setting.small else ["2:4", "4:8"]})


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
