"""RIA, Table 7: every text to calibrate on against every text to measure on, at 50 % unstructured sparsity."""

from experiments import table1
from experiments.common import CORPORA, LLAMA2, Report, Setting, absent, main
from experiments.tables import sweep_report

MODELS = LLAMA2[:1]
METHODS = {name: table1.METHODS[name] for name in ("wanda", "sparsegpt", "ria")}


def run(setting: Setting) -> Report:
    calibration = {name: source for name in CORPORA if (source := setting.texts.calibration(name))}
    sets = {
        name: {"calibration": source} for source, name in {source: name for name, source in calibration.items()}.items()
    }
    results = setting.sweep(METHODS, base={"sparsity": 0.5}, axes={"calibrated on": sets}, data=CORPORA)
    return sweep_report(results, notes=absent(setting, *CORPORA))


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
