"""Memory and reading of what checks and measures a model: by its depth, and for many experts.

    python benchmarks/block_by_block.py [--width 1024] [--depths 4 8 16] [--experts 64]

Makes random models, LLaMA by depth and Qwen3-MoE with few blocks, prunes them (magnitude, 2:4), and runs every command
in a process of its own: ``inspect``, ``verify``, ``verify --dense``, and ``eval`` with the model whole and with so
little memory that one block is there at a time. Of each it quotes the peak of resident memory beyond that of the
imports, in bytes and in units of the model's largest block, and the bytes of tensors read, in units of the folder's.
Resident memory holds the mapped pages of the files that are read; the system may take those back.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from random_models import llama, qwen3_moe, write
from transformers import PreTrainedConfig

import secateur
from secateur.checkpoint import Source
from secateur.models.blocks import blocks_of, family_of
from secateur.recipe import Recipe
from secateur.runtime.offloading import offloaded_bytes

VOCABULARY = 512

CHILD = """
import json, re, sys, time, warnings
from collections import Counter
from pathlib import Path
import safetensors, torch, secateur
from secateur.checkpoint import shards
import secateur.verification.verify, secateur.inspection, secateur.evaluation.evaluate
warnings.simplefilter("ignore")
read = Counter()
class Counting:
    def __init__(self, path, **options): self.path, self.file = Path(path), safetensors.safe_open(path, **options)
    def __enter__(self): self.file = self.file.__enter__(); return self
    def __exit__(self, *error): return self.file.__exit__(*error)
    def __getattr__(self, name): return getattr(self.file, name)
    def get_tensor(self, name):
        tensor = self.file.get_tensor(name)
        read[str(self.path.parent)] += tensor.nbytes
        return tensor
shards.safe_open = Counting
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
command, model, dense, text, memory = sys.argv[1:]
imported, began = peak(), time.process_time()
if command == "inspect": secateur.inspect(model)
elif command == "verify": assert secateur.verify(model).passed
elif command == "verify --dense": assert secateur.verify(model, dense).passed
else: secateur.evaluate(model, text, window=256, dtype="bfloat16", memory=memory or None)
seconds = round(time.process_time() - began, 1)
print(json.dumps({"peak": peak() - imported, "read": read[model], "cpu_seconds": seconds}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--experts", type=int, default=64)
    args = parser.parse_args()
    for depth in args.depths:
        heads = args.width // 64
        _measure(f"LLaMA, {depth} blocks", llama(args.width, 11 * args.width // 4, heads, heads, depth, VOCABULARY))
    if args.experts:
        moe = qwen3_moe(args.width, args.width // 4, args.width // 64, args.width // 256, args.experts, 3)
        _measure(f"Qwen3-MoE, {args.experts} experts, 3 blocks", moe)


def _measure(name: str, config: PreTrainedConfig) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write(config, root / "dense")
        secateur.prune(root / "dense", root / "pruned", Recipe(score="magnitude", pattern="2:4", permute="none"))
        (root / "text.txt").write_text("A law should be able to fail, and this one does not. " * 100)
        source = Source(root / "pruned")
        size = sum(path.stat().st_size for path in (root / "pruned").glob("*.safetensors"))
        skeleton = source.skeleton(torch.bfloat16, "meta")
        block = max(sum(p.nbytes for p in b.module.parameters()) for b in blocks_of(skeleton, family_of(skeleton)))
        least = str(offloaded_bytes(source, torch.bfloat16, torch.device("cpu")))
        whole = {"model": name, "size": size, "block": block}
        print(json.dumps(whole), flush=True)
        for command, memory in (
            *((command, "") for command in ("inspect", "verify", "verify --dense", "eval")),
            ("eval --memory", least),
        ):
            given = [command, str(root / "pruned"), str(root / "dense"), str(root / "text.txt"), memory]
            done = subprocess.run([sys.executable, "-c", CHILD, *given], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            shares = {"blocks": round(found["peak"] / block, 1), "models_read": round(found["read"] / size, 2)}
            print(json.dumps({"command": command} | found | shares), flush=True)


if __name__ == "__main__":
    main()
