"""Beyond the paper: quality at equal bytes.

    python experiments/equal_bytes.py MODEL --calibration c4 --data wikitext2 [--keep DIR] [--plot FILE.svg]
        [--recipe best] [--patterns 2:4 4:8 8:16 16:32 50%]

Packed, every pattern of one sparsity takes the same bytes, and the CPU kernels run all of them. So which gives the best
model, and does the loosest cost speed? Per pattern: the perplexity of what was written on every text, the bytes of
the packed linears over those of dense bfloat16, and how many times as fast as dense bfloat16 all of them together
decode one token, with bfloat16 and with int8 values (median and quartiles over rounds).

Speeds want a quiet machine, and pruning takes long: with ``--keep``, models and perplexities that are in that folder
already are taken from there.
"""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common import parser, perplexities, show, swept, target_of

import secateur
from secateur.benchmark.plot import check_plot
from secateur.benchmark.timing import OVERALL
from secateur.recipe import Recipe

Row = dict[str, Any]
INK = "#1a1a1a"


def speed(folder: Path, rounds: int) -> Row:
    """What the packed linears of a pruned model take, and how fast they decode one token."""
    row: Row = {}
    for int8 in (False, True):
        bench = secateur.bench(folder, batch=(1,), length=(16,), tokens=1, rounds=rounds, int8=int8, device="cpu")
        (overall,) = (x for x in bench.modules if x.part == OVERALL and x.workload.phase == "decode")
        spread = overall.speedup
        row[f"{bench.values} bytes"] = round(bench.packed_bytes / bench.dense_bytes, 4)
        row[f"{bench.values} speed-up"] = [round(x, 3) for x in (spread.low, spread.median, spread.high)]
    return row


def draw(rows: list[Row], dense: Row, file: Path) -> None:
    """A panel per text: perplexity over decode speed-up, with bfloat16 values."""
    from matplotlib.figure import Figure

    texts = [key for key in dense if key.startswith("perplexity")]
    figure = Figure(figsize=(4.2 * len(texts), 3.2), layout="constrained")
    for panel, text in zip(figure.subplots(1, len(texts), squeeze=False)[0], texts, strict=True):
        points = [("dense", [1, 1, 1], dense[text])]
        points += [(row["pattern"], row["bfloat16 speed-up"], row[text]) for row in rows]
        for number, (name, (low, median, high), perplexity) in enumerate(points):
            panel.plot([low, high], [perplexity, perplexity], color=INK, linewidth=1.2)
            panel.plot(median, perplexity, "o", color=INK, markersize=4, markerfacecolor="white" if low == 1 else INK)
            # Neighbours are labelled on opposite sides: the best ones lie close together.
            place, side, align = (low, -5, "right") if number % 2 == 0 and number else (high, 5, "left")
            beside = {"xytext": (side, 0), "textcoords": "offset points", "ha": align, "va": "center", "fontsize": 8}
            panel.annotate(f"{name}  {perplexity:.0f}", (place, perplexity), **beside)
        least, most = min(low for _, (low, *_), _ in points), max(high for _, (*_, high), _ in points)
        panel.set_xlim(0.9 * least, 1.25 * most)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("decode of the pruned linears, times as fast as dense", fontsize=8)
        source = text.removeprefix("perplexity ").partition(":")[0]
        panel.set_title(f"perplexity, {Path(source).stem}", loc="left", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    shares = sorted({row["bfloat16 bytes"] for row in rows})
    figure.suptitle(f"packed, {' to '.join(f'{share:.4g}' for share in shares)} of the dense bytes", fontsize=9)
    figure.savefig(file)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--recipe", default="best")
    arguments.add_argument("--patterns", nargs="+", default=["2:4", "4:8", "8:16", "16:32", "50%"])
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--plot", type=Path)
    args = arguments.parse_args()
    if args.plot:
        check_plot(args.plot)
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as home:
        args.keep = Path(home)  # models are measured once more
        preset = Recipe.load(args.recipe).to_dict() | {"pattern": None, "sparsity": None}
        targets = {pattern: target_of(pattern) for pattern in args.patterns}
        dense, *entries = swept(args, {"pattern": targets}, preset).entries
        show({"pattern": "dense"} | perplexities(dense))
        rows = []
        for entry in entries:
            assert entry.model
            row = {"pattern": entry.row.variant.labels[0]} | perplexities(entry)
            rows.append(row | speed(entry.model, args.rounds))
            show(rows[-1])
    if args.plot:
        draw(rows, perplexities(dense), args.plot)


if __name__ == "__main__":
    main()
