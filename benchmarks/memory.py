"""Peak memory of pruning by the depth of a model, and by what it is given.

    python benchmarks/memory.py [--width 1024] [--ffn 2816] [--depths 4,8,16] [--recipe lsa] [--bounds none,2GB]

Writes random LLaMA models of that width in bfloat16, a shard for each block, prunes each in a process of its own and
prints what that took at most (the system's VmHWM), beside what torch and transformers take
when they are imported, what the process has before the model is read, and what :mod:`secateur.pruning.footprint` says
must fit besides, and may wait in files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from random_models import llama, write

RECIPES: dict[str, dict[str, Any]] = {
    "ria": {"sparsity": 0.5},
    "lsa": {"pattern": "2:4", "permute": "lsa"},
    "heuristic": {"pattern": "2:4", "permute": "heuristic"},
    "cg": {"pattern": "2:4", "permute": "heuristic", "reconstruct": "cg"},
    "best": {"pattern": "2:4", "permute": "heuristic", "reconstruct": "cg", "refine": True},
    "sparsegpt": {"score": "sparsegpt", "reconstruct": "sparsegpt"},
}
CHILD = """
import json, re, sys
from pathlib import Path
import torch, transformers, secateur
from secateur.devices import resident_memory
from secateur.pruning import folder
from secateur.recipe import Recipe
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
imported, said = peak(), {}
genuine = folder.places
def noting(takes, task, device, *rest):
    said.update(before=resident_memory(), must=sum(takes.takes(device).values()), waits=takes.waiting)
    return genuine(takes, task, device, *rest)
folder.places = noting
recipe = Recipe(**json.loads(sys.argv[3]))
manifest = secateur.prune(sys.argv[1], sys.argv[2], recipe, force=True)
print(json.dumps(said | {"imported": imported, "peak": peak(), "seconds": sum(manifest["seconds"].values())}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=2816)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--depths", default="4,8,16")
    parser.add_argument("--recipe", default="lsa", choices=RECIPES)
    parser.add_argument("--bounds", default="none")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    for depth in map(int, args.depths.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            heads = max(1, args.width // 128)
            write(llama(args.width, args.ffn, heads, heads, depth, args.vocabulary), folder / "model")
            for bound in args.bounds.split(","):
                recipe = RECIPES[args.recipe] | {
                    "calibration": str(folder / "model" / "text.txt"),
                    "samples": args.samples,
                    "length": args.length,
                    "memory": None if bound == "none" else bound,
                    "dtype": args.dtype,
                }
                line = [sys.executable, "-c", CHILD, str(folder / "model"), str(folder / "out"), json.dumps(recipe)]
                done = subprocess.run(line, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(depth, bound, done.stderr.strip().splitlines()[-1])
                    continue
                took = json.loads(done.stdout)
                mb = {key: round(took[key] / 1e6) for key in ("imported", "before", "must", "waits", "peak")}
                print(json.dumps({"blocks": depth, "memory": bound} | mb | {"seconds": round(took["seconds"], 1)}))
                sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
