"""RIA, Figure 5: how evenly the retained weights are spread over the input channels.

    python experiments/figure5.py MODEL --calibration c4 [--samples 128 --length 2048]

The paper's picture: unstructured sparsity keeps many weights in some input channels and few in others; N:M
cannot, unless the channels are ordered for it. Per setting: the standard deviation, over the channels of a
layer, of the share of weights that a channel keeps, averaged over layers of one kind; and the smallest and
largest share.
"""

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from common import parser, recipe_of, show

import secateur
from secateur.checkpoint import Source

SETTINGS: dict[str, dict[str, object]] = {
    "unstructured 50 %": {"sparsity": 0.5},
    "2:4": {"pattern": "2:4", "permute": "none"},
    "2:4 permuted": {"pattern": "2:4", "permute": "lsa"},
}


def main() -> None:
    arguments = parser(__doc__, data=False)
    arguments.add_argument("--score", default="ria")
    args = arguments.parse_args()
    for setting, target in SETTINGS.items():
        with tempfile.TemporaryDirectory() as home:
            manifest = secateur.prune(args.model, Path(home) / "out", recipe_of(args, score=args.score, **target))
            source = Source(Path(home) / "out")
            kinds = defaultdict(list)
            for layer in manifest["layers"]:
                name = f"{layer['name']}.weight"
                shares = (source.read([name])[name] != 0).float().mean(0)
                kinds[layer["name"].split(".")[-1]].append((shares.std(), shares.min(), shares.max()))
        for kind, found in kinds.items():
            spread, least, most = (round(fmean(float(x[i]) for x in found), 4) for i in range(3))
            show({"setting": setting, "layers": kind, "spread": spread, "least": least, "most": most})


if __name__ == "__main__":
    main()
