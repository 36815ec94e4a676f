"""RIA, Table 5: how many times as fast as dense the pruned linears are, by kind.

Pruned by RIA to half of the weights, dense and sparse in turn (``secateur bench``). On a GPU 2:4 runs as Secateur loads
it; on a CPU every pattern is packed, with bfloat16 values or rounded to int8. Decode is one token of each sequence,
prefill batch × length.
"""

from dataclasses import asdict
from typing import Any

from experiments.common import LLAMA2, Report, Setting, main
from experiments.timing import ROUNDS, benched, machine, no_gpu, spread_text
from secateur.sweeps.tables import Table

MODELS = LLAMA2[:1]
TARGETS: dict[str, dict[str, Any]] = {
    "2:4": {"pattern": "2:4"},
    "16:32": {"pattern": "16:32"},
    "unstructured": {"sparsity": 0.5},
}
BATCHES, LENGTHS = (1, 8), (128, 1024)
FEW = {"batch": (1,), "length": (16,)}  # where it is to take minutes


def run(setting: Setting) -> Report:
    on_gpu = machine().gpu is not None
    work: dict[str, Any] = {"batch": BATCHES, "length": LENGTHS, "tokens": 8} | (FEW if setting.small else {})
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    data: list[dict[str, Any]] = []
    for model in setting.models:
        for target in list(TARGETS)[: 1 if on_gpu else None]:
            for int8 in (False,) if on_gpu else (False, True):
                found = benched(setting, model, {"score": "ria", **TARGETS[target]}, int8=int8, **work)
                for x in found.modules:
                    rows.setdefault((model, target, found.values, str(x.workload)), {})[x.part] = spread_text(x.speedup)
                data += [{"model": model, "pattern": target, "values": found.values} | asdict(x) for x in found.modules]
    parts = list(next(iter(rows.values())))
    cells = [[*labels, *(row[part] for part in parts)] for labels, row in rows.items()]
    caption = f"Times as fast as dense bfloat16: medians and quartiles of {ROUNDS} rounds; {machine()}."
    return Report(
        tables=[(caption, Table.plain(["model", "pattern", "values", "work", *parts], cells, words=4))],
        notes=no_gpu(),
        data=data,
    )


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
