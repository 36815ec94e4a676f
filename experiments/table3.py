"""RIA, Table 3: zero-shot accuracy at 50 % unstructured sparsity."""

from experiments import table1
from experiments.common import LLAMA2, Report, Setting, main
from experiments.tables import tasks_report

MODELS = LLAMA2[-1:]
METHODS = {name: table1.METHODS[name] for name in ("magnitude", "wanda", "sparsegpt", "ria")}


def run(setting: Setting) -> Report:
    return tasks_report(setting, METHODS, base={"sparsity": 0.5})


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
