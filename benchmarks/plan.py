"""What secateur plan predicts, against what secateur prune takes.

    python benchmarks/plan.py MODEL [--samples 16 --length 512] [--recipes ria ria-2:4 good] [--widths 64 256 1024]

Prunes MODEL, and random LLaMAs of four blocks and several widths, by several recipes; prints the
seconds that were predicted and measured by stage, their ratios, and the same of memory. Each run is a process of its
own that measures the rates anew: on a shared machine they change from minute to minute.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from random_models import llama, write
from transformers import PreTrainedConfig

from secateur.recipe import Recipe

RECIPES = {
    "ria": Recipe(),
    "ria-2:4": Recipe(pattern="2:4"),
    "good": Recipe.load("good"),
}
BLOCKS = 4
# Plans and prunes in a process of its own, whose peak of memory is nobody else's.
RUN = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
import re, secateur
from secateur.recipe import Recipe
model, out, options = sys.argv[1:]
recipe = Recipe.from_dict(json.loads(options))
planned = asdict(secateur.plan(model, recipe))
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
began = time.perf_counter()
manifest = secateur.prune(model, out, recipe)
total = time.perf_counter() - began
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
predicted = planned["seconds"] | {"total": planned["total"]}
print(json.dumps([predicted, planned["memory"]["host"], manifest["seconds"] | {"total": total}, peak]))
"""


def of_width(width: int) -> PreTrainedConfig:
    heads = max(1, width // 64)
    return llama(width, width * 11 // 4, heads, heads, BLOCKS, 32_000)


def compare(model: Path, recipe: Recipe, label: str) -> None:
    """Plan, prune, and print both."""
    with tempfile.TemporaryDirectory() as home:
        line = [sys.executable, "-c", RUN, str(model), f"{home}/out", json.dumps(asdict(recipe))]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
    predicted, memory, measured, peak = json.loads(done.stdout)
    print(label)
    for stage, seconds in predicted.items():
        took = measured.get(stage, 0)
        ratio = f"{seconds / took:8.2f}" if took else ""
        print(f"  {stage:10} predicted {seconds:8.2f} s, measured {took:8.2f} s {ratio}")
    expected = sum(memory.values())
    print(f"  {'memory':10} predicted {expected / 1e6:6.0f} MB, measured {peak / 1e6:6.0f} MB {expected / peak:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--widths", nargs="*", type=int, default=[64, 256, 1024])
    parser.add_argument("--only-random", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        models = {f"width {width}": write(of_width(width), Path(home) / str(width), "float32") for width in args.widths}
        if not args.only_random:
            models[args.model.name] = args.model
        for name, model in models.items():
            for recipe in args.recipes:
                setting = replace(RECIPES[recipe], calibration="demo", samples=args.samples, length=args.length)
                compare(model, setting, f"{name}, {recipe}, {args.samples} × {args.length} tokens")


if __name__ == "__main__":
    main()
