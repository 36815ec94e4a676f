"""Beyond the paper: quality at equal bytes.

Packed, every pattern of one sparsity takes the same bytes, and the CPU kernels run all of them. So which gives the best
model, and does the loosest cost speed? Pruned by ``--recipe good``. *Bytes* are those of the packed linears over dense
bfloat16, *speed* is how many times as fast as that they decode one token (medians and quartiles).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.timing import benched, machine, spread_text
from secateur.benchmark.timing import OVERALL, Spread
from secateur.sweeps.results import Entry
from secateur.sweeps.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = LLAMA2[:1]
TARGETS: dict[str, dict[str, Any]] = {
    **{pattern: {"pattern": pattern} for pattern in ("2:4", "4:8", "8:16", "16:32")},
    "unstructured": {"sparsity": 0.5},
}
VALUES = {"bfloat16": False, "int8": True}
INK = "#1a1a1a"


def run(setting: Setting) -> Report:
    found = setting.sweep(
        {"good": {"preset": "good"}}, axes={"pattern": TARGETS}, seeds=setting.seeds[:1], keep_models=True
    )
    texts = [text.data.partition(":")[0] for text in found.summaries[0].texts]
    rows: list[tuple[str, str, list[float], dict[str, tuple[float, Spread]]]] = []
    for entry, summary in zip(found.entries, found.summaries, strict=True):
        packed = {values: _packed(setting, entry, int8) for values, int8 in VALUES.items()} if entry.model else {}
        rows.append((summary.model, summary.labels[1] or "dense", [x.perplexity.value for x in summary.texts], packed))
    headings = ["model", "pattern", *texts, *(f"{values} {what}" for values in VALUES for what in ("bytes", "speed"))]
    cells: list[list[Any]] = [
        [model, label, *perplexities]
        + [cell for share, speed in packed.values() for cell in (f"{share:.4f}", spread_text(speed))]
        + [None] * 2 * (len(VALUES) - len(packed))
        for model, label, perplexities, packed in rows
    ]
    return Report(
        tables=[(f"{machine()}.", Table.plain(headings, cells, words=2))],
        notes=absent(setting, "wikitext2", "c4"),
        plots={model: _drawn([row[1:] for row in rows if row[0] == model], texts) for model in setting.models},
        data=found.to_dict(),
    )


def _packed(setting: Setting, entry: Entry, int8: bool) -> tuple[float, Spread]:
    """What the packed linears of a pruned model take, and how fast they decode one token."""
    assert entry.row.recipe
    work: dict[str, Any] = {"batch": (1,), "length": (16,), "tokens": 1, "int8": int8, "device": "cpu"}
    found = benched(setting, entry.row.model, entry.row.recipe.to_dict(), pruned=entry.model, **work)
    (speed,) = (x.speedup for x in found.modules if x.part == OVERALL and x.workload.phase == "decode")
    return found.packed_bytes / found.dense_bytes, speed


def _drawn(rows: Sequence[tuple[str, list[float], dict[str, tuple[float, Spread]]]], texts: Sequence[str]) -> "Figure":
    """A panel per text: perplexity over decode speed, with bfloat16 values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(texts), 3.2), layout="constrained")
    speeds = [packed["bfloat16"][1] if packed else Spread(1, 1, 1) for _, _, packed in rows]
    for text, panel in enumerate(figure.subplots(1, len(texts), squeeze=False)[0]):
        for number, ((name, perplexities, packed), speed) in enumerate(zip(rows, speeds, strict=True)):
            height = perplexities[text]
            panel.plot([speed.low, speed.high], [height, height], color=INK, linewidth=1.2)
            panel.plot(speed.median, height, "o", color=INK, markersize=4, markerfacecolor=INK if packed else "white")
            # Neighbours are labelled on opposite sides: the best ones lie close together.
            left = number % 2 == 0 and bool(packed)
            panel.annotate(
                f"{name}  {height:.0f}",
                (speed.low if left else speed.high, height),
                xytext=(-5 if left else 5, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8,
            )
        panel.set_xlim(0.9 * min(x.low for x in speeds), 1.25 * max(x.high for x in speeds))
        panel.set_ylim(bottom=0)
        panel.set_xlabel("decode of the pruned linears, times as fast as dense", fontsize=8)
        panel.set_title(f"perplexity, {texts[text]}", loc="left", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
