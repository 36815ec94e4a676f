"""RIA, Figure 4: perplexity over sparsity, and over the number of calibration samples.

Two sweeps of unstructured sparsity: from 10 % to 80 % on the setting's samples, and at 50 % on one sample up to as many
as the setting has (in the small setting, up to four times as many). SparseGPT is as published: all samples count, none
is held out to judge its updates by.
"""

from collections.abc import Sequence

from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.drawing import across, lines, panels
from experiments.table1 import METHODS
from secateur.sweeps.results import Results, Summary
from secateur.sweeps.tables import Table

MODELS = LLAMA2[1:2]
COMPARED = {
    "wanda": METHODS["wanda"],
    "sparsegpt": METHODS["sparsegpt"] | {"guard": False},
    "ria": METHODS["ria"],
}
SPARSITIES, FEW_SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.3, 0.5, 0.6, 0.7)
SAMPLES, FEW_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128), (1, 4, 16, 64)


def run(setting: Setting) -> Report:
    sparsities = FEW_SPARSITIES if setting.small else SPARSITIES
    numbers = FEW_SAMPLES if setting.small else SAMPLES
    sweeps = {
        "sparsity": ({f"{x:.0%}": {"sparsity": x} for x in sparsities}, {}, [100 * x for x in sparsities]),
        "samples": ({f"{x}": {"samples": x} for x in numbers}, {"sparsity": 0.5}, list(numbers)),
    }
    tables, plots, data = [], {}, {}
    for axis, (values, base, places) in sweeps.items():
        results = setting.sweep(COMPARED, base=base, axes={axis: values})
        what = "unstructured sparsity" if axis == "sparsity" else "50 % sparsity and number of calibration samples"
        tables.append((f"Perplexity by {what}.", along(results, axis)))
        for model in setting.models:
            figure, axes = panels([f"perplexity, {text}" for text in texts(results)])
            for number, panel in enumerate(axes):
                curves = {
                    name: [perplexity(one, number) for one in row] for name, row in by_recipe(results, model).items()
                }
                lines(panel, {name: (places, y) for name, y in curves.items()}, log=True, marker="o")
                if axis == "samples":
                    panel.set_xscale("log", base=2)
                    panel.set_xticks(places, [str(x) for x in places])
            across(axes[-1], "weights removed, %" if axis == "sparsity" else "calibration samples")
            plots[axis if len(setting.models) == 1 else f"{axis}-{model}"] = figure
        data[axis] = results.to_dict()
    return Report(tables, plots=plots, notes=absent(setting, "wikitext2", "c4"), data=data)
