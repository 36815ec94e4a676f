"""RIA, Figure 5: how evenly the retained weights are spread over the input channels.

    python experiments/figure5.py MODEL --calibration c4 [--samples 128 --length 2048]

The paper's picture: unstructured sparsity keeps many weights in some input channels and few in others; N:M
cannot, unless the channels are ordered for it. Per setting: the standard deviation, over the channels of a
layer, of the share of weights that a channel keeps, averaged over layers of one kind; and the smallest and
largest share.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import secateur
from secateur.checkpoint import Source
from secateur.recipe import Recipe

SETTINGS: dict[str, dict[str, object]] = {
    "unstructured 50 %": {"sparsity": 0.5},
    "2:4": {"pattern": "2:4", "permute": "none"},
    "2:4 permuted": {"pattern": "2:4", "permute": "lsa"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="c4")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--score", default="ria")
    args = parser.parse_args()
    text = {"score": args.score, "calibration": args.calibration, "samples": args.samples, "length": args.length}
    for setting, target in SETTINGS.items():
        with tempfile.TemporaryDirectory() as home:
            manifest = secateur.prune(args.model, Path(home) / "out", Recipe.from_dict(text | target))
            source = Source(Path(home) / "out")
            kinds = defaultdict(list)
            for layer in manifest["layers"]:
                name = f"{layer['name']}.weight"
                shares = (source.read([name])[name] != 0).float().mean(0)
                kinds[layer["name"].split(".")[-1]].append((shares.std(), shares.min(), shares.max()))
        for kind, found in kinds.items():
            spread, least, most = (round(fmean(float(x[i]) for x in found), 4) for i in range(3))
            row = {"setting": setting, "layers": kind, "spread": spread, "least": least, "most": most}
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
