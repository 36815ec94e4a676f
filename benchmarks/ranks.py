"""What several processes save, and how far their result is from that of one.

    python benchmarks/ranks.py [--processes 1 2 3] [--width 256] [--layers 3] [--samples 64] [--length 512]

A random LLaMA is pruned by three recipes, by so many processes of one thread each, as torchrun starts them: the
seconds from beginning to end, and by stage in the first process; the CPU seconds of the busiest process, which is what
the work would take on cores of its own; and against the first number of processes, the share of mask bits that differ
and the relative difference of the weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_models import llama, write
from safetensors.torch import load_file

import secateur
from secateur.recipe import Recipe

RECIPES = {
    "RIA 50 %": Recipe(),
    "RIA 2:4 lsa exact": Recipe(pattern="2:4"),
    "best (sparsegpt, admm, guard)": Recipe(score="sparsegpt", pattern="2:4", reconstruct="admm"),
}


def work(folder: Path, samples: int, length: int) -> None:
    """One process: prune by every recipe, and leave word of the time that it took."""
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    took = {}
    for name, recipe in RECIPES.items():
        options = recipe.to_dict() | {"calibration": str(folder / "text.txt"), "samples": samples, "length": length}
        began, busy = time.perf_counter(), time.process_time()
        manifest = secateur.prune(
            folder, folder.parent / f"{name} {size}", Recipe.from_dict(options | {"dtype": "float32"})
        )
        took[name] = {
            "seconds": time.perf_counter() - began,
            "busy": time.process_time() - busy,
            "stages": manifest["seconds"],
        }
    (folder.parent / f"took {rank} of {size}.json").write_text(json.dumps(took))


def differences(one: Path, other: Path) -> tuple[float, float]:
    """The share of weights that are zero in one of them only, and the relative difference of all."""
    elsewhere = total = 0
    apart = length = 0.0
    for file in sorted(one.glob("model-*.safetensors")):
        mine, theirs = load_file(file), load_file(other / file.name)
        for name, tensor in mine.items():
            elsewhere += int(((tensor == 0) != (theirs[name] == 0)).sum())
            total += tensor.numel()
            apart += (tensor - theirs[name]).double().square().sum().item()
            length += tensor.double().square().sum().item()
    return elsewhere / total, (apart / length) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.samples, options.length)
        return
    with tempfile.TemporaryDirectory() as root:
        model = Path(root) / "model"
        heads = options.width // 64
        write(llama(options.width, 3 * options.width, heads, heads, options.layers, 1000), model, "float32")
        print("| recipe | processes | seconds | busiest, CPU s | mask bits apart | weights apart | stages (s) |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
        for size in options.processes:
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), __file__]
            command += ["--work", str(model), "--samples", str(options.samples), "--length", str(options.length)]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            took = [json.loads((Path(root) / f"took {rank} of {size}.json").read_text()) for rank in range(size)]
            for name in RECIPES:
                first = Path(root) / f"{name} {options.processes[0]}"
                bits, weights = differences(first, Path(root) / f"{name} {size}")
                stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in took[0][name]["stages"].items())
                busiest = max(one[name]["busy"] for one in took)
                print(
                    f"| {name} | {size} | {took[0][name]['seconds']:.1f} | {busiest:.1f} | {bits:.1e} | {weights:.1e} "
                    f"| {stages} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
