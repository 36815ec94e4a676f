"""RIA, Table 10: structured against semi-structured and unstructured sparsity, and what each is worth in speed.

    python experiments/table10.py MODEL --calibration c4 --data wikitext2 [--keep DIR] [--shares 25 50 75] [--no-speed]

At each share of the linears' weights: structured pruning by every method (heads and channels by activation or
first-order Taylor, or whole blocks), RIA with N:M and ordered channels, and RIA unstructured. Per row: perplexity on
every text, the share that is gone, and tokens per second that are generated one by one after a short prompt: structured
models as they are, the others packed (medians over rounds in which all take turns; a quiet machine is wanted). The
paper counts the weights that N:M removes: its 1:4 is 3:4 here.

Nothing is trained afterwards. ``secateur bench PRUNED --shrunk SMALL --batch 1 --batch 8`` is Table 9 on one's own.
"""

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

from common import parser, setting_of, show, target_of
from few_bits import speeds
from table12 import Row, measured

import secateur
from secateur.checkpoint import local_folder
from secateur.importance import METHODS
from secateur.recipe import Recipe
from secateur.shrinkage import Shrinkage


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--dtype", default="auto", help="precision to evaluate in; auto is float32 on a CPU")
    arguments.add_argument("--shares", nargs="+", type=int, default=[25, 50, 75], choices=[25, 50, 75])
    arguments.add_argument("--tokens", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--no-speed", action="store_true")
    args = arguments.parse_args()
    kept = nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory()
    with kept as home, local_folder(args.model) as folder:
        Path(home).mkdir(parents=True, exist_ok=True)
        file = Path(home) / "table10.json"
        known: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
        runs: dict[str, Path] = {}  # what is timed, by the row

        def row(name: str, gone: float, plain: Path, runs_as: Path) -> None:
            if name not in known:
                known[name] = {"model": name, "gone": round(gone, 4)} | measured(plain, args)
                file.write_text(json.dumps(known, indent=1))
            runs[name] = runs_as
            if args.no_speed:
                show(known[name])

        row("dense", 0, folder, folder)
        for share in args.shares:
            for method in METHODS:
                out = Path(home) / f"{method}-{share / 100}"
                if not out.exists():
                    secateur.shrink(folder, out, Shrinkage(method=method, sparsity=share / 100, **setting_of(args)))
                row(f"{method} {share}%", json.loads((out / "secateur.json").read_text())["sparsity"], out, out)
        for target in [f"{4 - share // 25}:4" for share in args.shares] + [f"{share}%" for share in args.shares]:
            out = Path(home) / f"ria-{target}".replace(":", "")
            if not out.exists():
                secateur.prune(folder, out, Recipe.from_dict(target_of(target) | setting_of(args)))
            packed = Path(f"{out}-packed")
            if not packed.exists():
                secateur.pack(out, packed)
            row(f"RIA {target}", json.loads((out / "secateur.json").read_text())["sparsity"], out, packed)
        if not args.no_speed:
            for name, rate in zip(runs, speeds(list(runs.values()), args.tokens, args.rounds), strict=True):
                show(known[name] | {"tokens per second": round(rate, 1)})


if __name__ == "__main__":
    main()
