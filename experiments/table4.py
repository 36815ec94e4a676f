"""RIA, Table 4: N:M sparsity with channel permutation; here also what each way to fold costs.

    python experiments/table4.py MODEL --calibration c4 --data wikitext2 [--patterns 2:4 4:8] [--keep DIR]

For Wanda and RIA at each pattern: no permutation, the heuristic, and linear sum assignment in the three
fold modes. Of each, the perplexity of what was written, and the share of the score that is retained, averaged over
layers.
"""

from common import parser, perplexities, show, swept

ORDERS = (("none", "exact"), ("heuristic", "exact"), ("lsa", "exact"), ("lsa", "gather"), ("lsa", "none"))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--patterns", nargs="+", default=["2:4", "4:8"])
    args = arguments.parse_args()
    orders = {f"{permute} {fold}": {"permute": permute, "fold": fold} for permute, fold in ORDERS}
    results = swept(args, {"pattern": args.patterns, "score": ["wanda", "ria"], "order": orders})
    for entry in results.entries:
        recipe, pruning = entry.row.recipe, entry.outcome.pruning
        if recipe is None or pruning is None:
            show({"method": "dense"} | perplexities(entry))
            continue
        fold = recipe.fold if recipe.permute != "none" else "-"
        show(
            {"method": recipe.score, "pattern": recipe.pattern, "permute": recipe.permute, "fold": fold}
            | perplexities(entry)
            | {
                "retained": round(pruning.retained, 4),
                "seconds ordering": pruning.seconds.get("order", 0),
            }
        )


if __name__ == "__main__":
    main()
