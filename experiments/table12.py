"""RIA, Table 12 and Appendix I: pruned, quantized to 4 bits, and both, in both orders.

The other order, quantize and then prune, is there for methods that change no weight that they keep: what they write is
on the levels of the quantized model still.
"""

from typing import Any

from experiments import table1
from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.tables import sweep_report

MODELS = LLAMA2[:1]
METHODS: dict[str, Any] = {
    "not pruned": {"score": "none"},
    **{name: table1.METHODS[name] for name in ("magnitude", "sparsegpt", "wanda", "ria")},
}

FEW = ("not pruned", "ria")


def run(setting: Setting) -> Report:
    options = {"bits": 4, "group_size": 64 if setting.small else 128}  # SmolLM2's widths are multiples of 64
    quantized: dict[str, Any] = {"not": {"quantize": "none"}}
    for method in ("gptq", "awq"):
        quantized[method] = {"quantize": {"method": method, **options}}
        quantized[f"{method} first"] = {"quantize": {"method": method, "first": True, **options}}
    methods = {name: METHODS[name] for name in (FEW if setting.small else METHODS)}
    baseline = {} if setting.small else {"recipe": "magnitude"}
    results = setting.sweep(methods, base={"sparsity": 0.5}, axes={"quantized": quantized}, baseline=baseline)
    return sweep_report(results, notes=absent(setting, "wikitext2"))


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
