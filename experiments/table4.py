"""RIA, Table 4: N:M sparsity with channel permutation; here also what each way to fold costs.

    python experiments/table4.py MODEL --calibration c4 --data wikitext2 [--patterns 2:4 4:8] [--json FILE]

For Wanda and RIA at each pattern: no permutation, the heuristic, and linear sum assignment in the three
fold modes. Of each, the perplexity of what was written, the share of the score that is retained, and that
of what unstructured sparsity would retain, averaged over layers.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import secateur
from secateur.recipe import Recipe

ORDERS = (("none", "exact"), ("heuristic", "exact"), ("lsa", "exact"), ("lsa", "gather"), ("lsa", "none"))


def rows(args: argparse.Namespace, home: Path) -> Iterator[dict[str, object]]:
    window = {"window": args.window, "limit": args.limit}
    (dense,) = secateur.evaluate(args.model, args.data, **window)
    yield {"method": "dense", "perplexity": round(dense.perplexity, 2)}
    for pattern in args.patterns:
        for score in ("wanda", "ria"):
            for permute, fold in ORDERS:
                setting = {"score": score, "pattern": pattern, "permute": permute, "fold": fold}
                recipe = Recipe.from_dict(
                    setting | {"calibration": args.calibration, "samples": args.samples, "length": args.length}
                )
                manifest = secateur.prune(args.model, home / "pruned", recipe)
                (result,) = secateur.evaluate(home / "pruned", args.data, **window)
                shutil.rmtree(home / "pruned")
                layers = manifest["layers"]
                yield {
                    "method": score,
                    "pattern": pattern,
                    "permute": permute,
                    "fold": fold if permute != "none" else "-",
                    "perplexity": round(result.perplexity, 2),
                    "retained": round(fmean(layer["retained"] for layer in layers), 4),
                    "unstructured": round(fmean(layer["unstructured"] for layer in layers), 4),
                    "seconds ordering": manifest["seconds"].get("order", 0),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="c4")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--data", default="wikitext2")
    parser.add_argument("--window", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--patterns", nargs="+", default=["2:4", "4:8"])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as home:
        for row in rows(args, Path(home)):
            found.append(row)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
