"""Beyond RIA's Table 8: every score, mended every way, with and without permutation and refinement.

    python experiments/reconstruction.py MODEL --calibration c4 --data wikitext2 c4 [--scores ria wanda …]
        [--methods none cg …] [--refine no yes] [--permute none lsa] [--patterns 50% 4:8 2:4] [--keep DIR]

Of each, the perplexity of what was written on every text, the mean relative error of a linear's outputs on
the calibration inputs, on how many reader groups the guard kept each step, and seconds.
"""

from common import parser, perplexities, show, swept, target_of

from secateur.reconstruct.methods import RECONSTRUCTIONS

SCORES = ("magnitude", "wanda", "ri", "ria", "sparsegpt")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--scores", nargs="+", default=SCORES)
    arguments.add_argument("--methods", nargs="+", default=["none", *RECONSTRUCTIONS])
    arguments.add_argument("--refine", nargs="+", default=["no", "yes"])
    arguments.add_argument("--permute", nargs="+", default=["none", "lsa"])
    arguments.add_argument("--patterns", nargs="+", default=["50%", "4:8", "2:4"])
    args = arguments.parse_args()
    axes = {
        "target": {pattern: target_of(pattern) for pattern in args.patterns},
        "permute": args.permute,
        "score": list(args.scores),
        "reconstruct": args.methods,
        "refine": [word == "yes" for word in args.refine],
    }
    for entry in swept(args, axes).entries:
        pruning = entry.outcome.pruning
        if pruning is None:
            show({"method": "dense"} | perplexities(entry))
            continue
        error = pruning.relative_error
        show(
            {"method": pruning.method}
            | perplexities(entry)
            | {"layer error": round(error, 4) if error is not None else None}
            | {f"{step} kept": f"{kept} of {tried}" for step, (kept, tried) in pruning.steps.items()}
            | {"seconds": round(sum(pruning.seconds.values()))}
        )


if __name__ == "__main__":
    main()
