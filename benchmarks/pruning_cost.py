"""What pruning costs beside running the model, and how much memory it takes.

    python benchmarks/pruning_cost.py MODEL [--calibration demo] [--recipes 50% 2:4 good] [--rounds 3] [--device auto]

Times, in turn, two plain forward passes of the model's blocks over the calibration tokens, and ``secateur.prune`` by
each recipe on the same tokens, after loading. Quotes the ratio of each round, the median, and the seconds by stage.
Both run in the precision in which ``prune`` runs here. Peak memory of the process is that so far.
``benchmarks/random_models.py`` writes models of the shapes of large ones, with a text: what is measured with two of
their blocks holds for each.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur import data
from secateur.recipe import Recipe

RECIPES = {
    "50%": lambda: Recipe(),
    "2:4": lambda: Recipe(pattern="2:4"),
    "2:4-published": lambda: Recipe(pattern="2:4", permute="lsa-published"),
    "good": lambda: Recipe.load("good"),
}


def peak_megabytes() -> int:
    """The most memory that this process has had."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) // 1024 if found else 0


def waited() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder")
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["50%"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", help="where to write models for a while")
    args = parser.parse_args()
    common = {name: getattr(args, name) for name in ("calibration", "samples", "length", "device", "dtype")}

    text = data.load_text(args.calibration, "calibration", args.samples * args.length)
    samples = data.calibration_samples(text, AutoTokenizer.from_pretrained(args.model), args.samples, args.length, 0)
    for name in args.recipes:
        recipe = replace(RECIPES[name](), **common)
        rounds = []
        for number in range(args.rounds + 1):  # the first warms up
            with tempfile.TemporaryDirectory(dir=args.out) as folder:
                began = waited()
                manifest = secateur.prune(args.model, Path(folder) / "out", recipe)
                whole = waited() - began
            passes = two_passes(args.model, samples, manifest["computed_in"], args.device)
            prune = whole - manifest["seconds"]["load"]
            row = {"two passes": passes, "after loading": prune, "ratio": prune / passes, "whole": whole}
            row |= manifest["seconds"]
            print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()), flush=True)
            if number or not args.rounds:
                rounds.append(row)
        medians = {key: round(statistics.median(row[key] for row in rounds), 3) for key in rounds[0]}
        print(
            json.dumps({"recipe": name, "tokens": samples.numel(), "peak_MB": peak_megabytes()} | medians), flush=True
        )


@torch.no_grad()
def two_passes(folder: str, samples: torch.Tensor, dtype: str, device: str) -> float:
    """Seconds of two forward passes of the blocks over all samples, as many at a time as ``prune`` takes."""
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).model.to(place)
    batches = samples.to(place).split(max(1, (16384 if place == "cuda" else 2048) // samples.shape[1]))
    model(batches[0], use_cache=False)
    began = waited()
    for _ in range(2):
        for batch in batches:
            model(batch, use_cache=False)
    return waited() - began


if __name__ == "__main__":
    main()
