"""RIA, Table 2: what each part of the score is worth, at 50 % unstructured sparsity.

The exponent a of the activations is 0.5 in RIA and 1 in the row below it (Figure 9 has more); Wanda is shown in its
published scope, where the weights of a row compete, and in RIA's, where all weights of a matrix do.
"""

from experiments.common import LLAMA, LLAMA2, Report, Setting, absent, main
from experiments.tables import sweep_report

MODELS = (*LLAMA, *LLAMA2)
SCORES = {
    "|W| (magnitude)": {"score": "magnitude"},
    "‖X‖ (activation)": {"score": "activation"},
    "|W| / Σ of the input channel": {"score": "ri-input"},
    "|W| / Σ of the output channel": {"score": "ri-output"},
    "RI": {"score": "ri"},
    "|W| ‖X‖ (Wanda), in a row": {"score": "wanda"},
    "|W| ‖X‖, in the matrix": {"score": "wanda", "scope": "matrix"},
    "RI ‖X‖^0.5 (RIA)": {"score": "ria"},
    "RI ‖X‖": {"score": "ria", "alpha": 1.0},
}


def run(setting: Setting) -> Report:
    results = setting.sweep(SCORES, base={"sparsity": 0.5}, baseline={"recipe": "|W| (magnitude)"})
    return sweep_report(results, notes=absent(setting, "wikitext2"))


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
