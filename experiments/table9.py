"""RIA, Table 9: whole models by batch, dense, at 2:4 by RIA, and structured to half of the weights.

All take turns (``secateur bench --shrunk``). Structured pruning removes heads and channels of the MLP by activation.
"""

from dataclasses import asdict

from experiments.common import LLAMA2, Report, Setting, main
from experiments.timing import ROUNDS, benched, machine, no_gpu, spread_text
from secateur.benchmark.timing import Measurement, Spread
from secateur.sweeps.tables import Table

MODELS = LLAMA2[:1]
BATCHES, FEW, SMALL_LENGTH, LENGTH = (1, 2, 4, 8), (1, 4), 16, 1024
TOKENS = 16


def run(setting: Setting) -> Report:
    cells, data = [], []
    for model in setting.models:
        found = benched(
            setting,
            model,
            {"score": "ria", "pattern": "2:4"},
            shrinkage={"method": "activation", "sparsity": 0.5},
            batch=FEW if setting.small else BATCHES,
            length=(SMALL_LENGTH if setting.small else LENGTH,),
            tokens=TOKENS,
        )
        for sparse, structured in zip(found.end_to_end, found.structured, strict=True):
            cells.append(
                [
                    model,
                    str(sparse.workload),
                    *(spread_text(_rate(sparse, x), 0) for x in (sparse.dense, sparse.sparse, structured.sparse)),
                    *(spread_text(x.speedup) for x in (sparse, structured)),
                ]
            )
            data.append({"model": model, "2:4": asdict(sparse), "structured": asdict(structured)})
    headings = ["model", "work", "dense", "2:4", "structured", "2:4, times as fast", "structured, times as fast"]
    caption = (
        f"Tokens per second, prompts of {SMALL_LENGTH if setting.small else LENGTH:,} tokens: medians and quartiles of "
        f"{ROUNDS} rounds; {machine()}."
    )
    return Report(tables=[(caption, Table.plain(headings, cells, words=2))], notes=no_gpu(), data=data)


def _rate(row: Measurement, seconds: Spread) -> Spread:
    """Tokens per second of a pass."""
    tokens = row.workload.tokens
    return Spread(tokens / seconds.high, tokens / seconds.median, tokens / seconds.low)


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
