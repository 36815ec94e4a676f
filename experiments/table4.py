"""RIA, Table 4: N:M sparsity with channel permutation; here also what each way to fold costs.

    python experiments/table4.py MODEL --calibration c4 --data wikitext2 [--patterns 2:4 4:8]

For Wanda and RIA at each pattern: no permutation, the heuristic, and linear sum assignment in the three
fold modes. Of each, the perplexity of what was written, and the share of the score that is retained, averaged over
layers.
"""

from itertools import product
from statistics import fmean

from common import parser, perplexities, prune_and_measure, show

ORDERS = (("none", "exact"), ("heuristic", "exact"), ("lsa", "exact"), ("lsa", "gather"), ("lsa", "none"))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--patterns", nargs="+", default=["2:4", "4:8"])
    args = arguments.parse_args()
    show({"method": "dense"} | perplexities(args, args.model))
    for pattern, score, (permute, fold) in product(args.patterns, ("wanda", "ria"), ORDERS):
        manifest, measured = prune_and_measure(args, score=score, pattern=pattern, permute=permute, fold=fold)
        layers = manifest["layers"]
        show(
            {"method": score, "pattern": pattern, "permute": permute, "fold": fold if permute != "none" else "-"}
            | measured
            | {
                "retained": round(fmean(layer["retained"] for layer in layers), 4),
                "seconds ordering": manifest["seconds"].get("order", 0),
            }
        )


if __name__ == "__main__":
    main()
