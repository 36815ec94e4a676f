"""RIA, Figure 4: perplexity over sparsity, and over the number of calibration samples.

Two sweeps of unstructured sparsity: over sparsities on the setting's samples, and at 50 % over numbers of samples.
"""

from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.curves import curves, plots, table
from experiments.table1 import METHODS

MODELS = LLAMA2[1:2]
COMPARED = {name: METHODS[name] for name in ("wanda", "sparsegpt", "ria")}
SPARSITIES, FEW_SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.3, 0.5, 0.7)
SAMPLES, FEW_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128), (2, 8)


def run(setting: Setting) -> Report:
    sparsities = FEW_SPARSITIES if setting.small else SPARSITIES
    samples = FEW_SAMPLES if setting.small else SAMPLES
    by_sparsity = setting.sweep(COMPARED, axes={"sparsity": {f"{x:.0%}": {"sparsity": x} for x in sparsities}})
    by_samples = setting.sweep(
        COMPARED, base={"sparsity": 0.5}, axes={"samples": {f"{x}": {"samples": x} for x in samples}}
    )
    freer, fewer = curves(by_sparsity, "sparsity"), curves(by_samples, "samples")
    return Report(
        tables=[
            ("Perplexity by unstructured sparsity.", table(freer, "method")),
            ("Perplexity at 50 % by the number of calibration samples.", table(fewer, "method")),
        ],
        plots={
            **plots(freer, "sparsity", [100 * x for x in sparsities], "weights removed, %", setting),
            **plots(fewer, "samples", samples, "calibration samples", setting, doubling=True),
        },
        notes=absent(setting, "wikitext2", "c4"),
        data={"sparsity": by_sparsity.to_dict(), "samples": by_samples.to_dict()},
    )


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
