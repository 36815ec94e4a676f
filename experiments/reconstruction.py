"""Beyond RIA's Table 8: every score, mended every way, with and without permutation and refinement.

    python experiments/reconstruction.py MODEL --calibration c4 --data wikitext2 c4 [--scores ria wanda …]
        [--methods none cg …] [--refine no yes] [--permute none lsa] [--patterns 50% 4:8 2:4]

Of each, the perplexity of what was written on every text, the mean relative error of a linear's outputs on
the calibration inputs, on how many reader groups the guard kept each step, and seconds.
"""

from itertools import product
from statistics import fmean
from typing import Any

from common import parser, perplexities, prune_and_measure, show, target_of

from secateur.reconstruct.methods import RECONSTRUCTIONS

SCORES = ("magnitude", "wanda", "ri", "ria", "sparsegpt")


def guarded(trials: list[dict[str, Any]]) -> dict[str, str]:
    """Per step, how often it was kept."""
    steps = dict.fromkeys(trial["step"] for trial in trials)
    kept = {step: [trial["kept"] for trial in trials if trial["step"] == step] for step in steps}
    return {f"{step} kept": f"{sum(found)} of {len(found)}" for step, found in kept.items()}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--scores", nargs="+", default=SCORES)
    arguments.add_argument("--methods", nargs="+", default=["none", *RECONSTRUCTIONS])
    arguments.add_argument("--refine", nargs="+", default=["no", "yes"])
    arguments.add_argument("--permute", nargs="+", default=["none", "lsa"])
    arguments.add_argument("--patterns", nargs="+", default=["50%", "4:8", "2:4"])
    args = arguments.parse_args()
    show({"method": "dense"} | perplexities(args, args.model))
    for pattern, permute, score, method, refine in product(
        args.patterns, args.permute, args.scores, args.methods, args.refine
    ):
        if pattern.endswith("%") and permute != args.permute[0]:
            continue  # unstructured sparsity has no use for an order
        setting = {"score": score, "reconstruct": method, "refine": refine == "yes", "permute": permute}
        manifest, measured = prune_and_measure(args, **setting | target_of(pattern))
        errors = [layer["relative_error"] for layer in manifest["layers"]]
        show(
            {"method": manifest["method"]}
            | measured
            | {"layer error": round(fmean(errors), 4) if None not in errors else None}
            | guarded(manifest["guard"])
            | {"seconds": round(sum(manifest["seconds"].values()))}
        )


if __name__ == "__main__":
    main()
