"""What pruning costs beside running the model, and how much memory it takes.

    python benchmarks/pruning_cost.py MODEL [--rounds 3]

Times, in turn, two plain forward passes of the model's blocks over the calibration tokens, and
``secateur.prune`` (RIA, 50 % unstructured) on the same tokens, after loading. Quotes the ratio of each
round and the median. Peak memory is that of a process of its own that does nothing but prune.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur import data
from secateur.pruning.prepare import batch_size
from secateur.recipe import Recipe

PEAK = """
import re, sys, secateur
from pathlib import Path
from secateur.recipe import Recipe
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
imported = peak()
secateur.prune(sys.argv[1], sys.argv[2], Recipe(calibration="demo", samples=int(sys.argv[3]), length=int(sys.argv[4])))
print(imported, peak())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    recipe = Recipe(calibration="demo", samples=args.samples, length=args.length)

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).model
    text = data.load_text("demo", "calibration")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    samples = data.calibration_samples(text, tokenizer, args.samples, args.length, 0)
    batches = samples.split(batch_size(args.length, torch.device("cpu")))

    ratios = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for number in range(args.rounds + 1):
            began = time.perf_counter()
            for _ in range(2):
                for batch in batches:
                    model(batch, use_cache=False)
            forward = time.perf_counter() - began
            began = time.perf_counter()
            manifest = secateur.prune(args.model, Path(folder) / "out", recipe, force=True)
            prune = time.perf_counter() - began - manifest["seconds"]["load"]
            if number:  # the first round warms up
                ratios.append(prune / forward)
                print(f"two passes {forward:.1f} s, prune {prune:.1f} s, ratio {ratios[-1]:.3f}; {manifest['seconds']}")
        line = [sys.executable, "-c", PEAK, args.model, f"{folder}/peak", str(args.samples), str(args.length)]
        imported, peak = map(int, subprocess.run(line, capture_output=True, text=True, check=True).stdout.split())
    result = {
        "tokens": samples.numel(),
        "median_ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "imports_MB": imported // 1024,
        "peak_MB": peak // 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
