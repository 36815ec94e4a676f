"""What an allocation of the weights that stay is worth, against an even one and against those of others.

    python benchmarks/allocation.py OUT [--model MODEL] [--calibration c4] [--samples 64] [--length 512]
        [--sparsity 0.5 0.6] [--seeds 0 1 2] [--score ria] [--spans 0.05 0.1 0.2] [--data wikitext2 c4]
        [--window 512] [--limit 40]

A sweep in the folder OUT, which goes on where it was stopped, of ``--allocate`` and of these, with as many weights:

- ``owl``: by outliers (Yin et al., arXiv 2310.05175): of each block the share of the weights whose |W|·‖X‖ is more
  than 5 times the mean; the more, the fewer go, within 0.08 of the share that is asked for.
- ``depth SPAN``: an arithmetic progression over depth (ATP, arXiv 2502.14770), of which SPAN is the last block's share
  less the first one's. Its authors choose the step on held-out text; here all spans that are asked for are shown.

By default the model is the demo's.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import secateur
from secateur import data
from secateur.calibrate.stream import Stream
from secateur.checkpoint import Source, local_folder
from secateur.demo import find_model
from secateur.models.blocks import blocks_of, family_of
from secateur.scores import wanda

OUTLIER, BAND = 5, 0.08


@torch.no_grad()
def outliers(model: str, calibration: str, samples: int, length: int) -> dict[str, float]:
    """By the prefixes of blocks, the share of their weights that are outliers."""
    with local_folder(model) as folder:
        loaded, tokenizer = secateur.load(folder, torch.float32), Source(folder).tokenizer()
    blocks = blocks_of(loaded, family_of(loaded))
    text = data.load_text(calibration, "calibration", samples * length)
    batches = data.calibration_samples(text, tokenizer, samples, length, 0).split(4)
    stream, found = Stream(loaded, blocks, batches), {}
    for index, block in enumerate(blocks):
        stats = stream.observe(index, keep_output=True)
        scores = torch.cat([wanda(block.weight(x), stats[x.name]).flatten() for x in block.linears])
        found[block.prefix] = (scores > OUTLIER * scores.mean()).float().mean().item()
    return found


def around(sparsity: float, differences: dict[str, float]) -> dict[str, Any]:
    """Shares by block that differ so from their mean, which is ``sparsity``: blocks are alike in their sizes."""
    mean = sum(differences.values()) / len(differences)
    return {"sparsity": {f"{prefix}*": round(sparsity + one - mean, 6) for prefix, one in differences.items()}}


def by_outliers(sparsity: float, found: dict[str, float]) -> dict[str, Any]:
    low, high = min(found.values()), max(found.values())
    return around(sparsity, {prefix: -2 * BAND * (one - low) / (high - low) for prefix, one in found.items()})


def by_depth(sparsity: float, prefixes: Sequence[str], span: float) -> dict[str, Any]:
    return around(sparsity, {prefix: span * at / (len(prefixes) - 1) for at, prefix in enumerate(prefixes)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--calibration", default="c4")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--score", default="ria")
    parser.add_argument("--spans", type=float, nargs="*", default=[0.05, 0.1, 0.2])
    parser.add_argument("--data", nargs="+", default=["wikitext2", "c4"])
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--limit", type=int, default=40)
    args = parser.parse_args()
    model = args.model or str(find_model())
    found = outliers(model, args.calibration, args.samples, args.length)
    recipes: dict[str, dict[str, Any]] = {}
    for sparsity in args.sparsity:
        ways = {"even": {"sparsity": sparsity}, "allocated": {"sparsity": sparsity, "allocate": True}}
        ways["owl"] = by_outliers(sparsity, found)
        ways |= {f"depth {span:g}": by_depth(sparsity, list(found), span) for span in args.spans}
        recipes |= {f"{sparsity:.0%} {name}": way for name, way in ways.items()}
    secateur.sweep(
        {
            "models": {Path(model).stem: model},
            "base": {
                "score": args.score,
                "calibration": args.calibration,
                "samples": args.samples,
                "length": args.length,
            },
            "recipes": recipes,
            "seeds": args.seeds,
            "evaluate": {"data": args.data, "window": args.window, "limit": args.limit},
        },
        args.out,
    )
    print((args.out / "results.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
