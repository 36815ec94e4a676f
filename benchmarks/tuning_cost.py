"""What tuning costs by width: seconds of a step, and the memory of a process.

    python benchmarks/tuning_cost.py [--widths 576 1024 2048] [--device cpu] [--dtype float32]

A random block of LLaMA's shape for each width, pruned to 2:4 by magnitude, learns from four batches of 2,048 tokens for
one epoch, with another batch held out. Each width is a process of its own. Beside a step: forward passes of the block
over a batch, of which a step is about three.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from secateur import prune_module
from secateur.recipe import Recipe

TOKENS, STEPS = 2048, 4


def measure(width: int, device: str, dtype: str) -> dict[str, object]:
    """One row of the table."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=TOKENS,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
    batches = list(torch.randint(256, (STEPS + 1, 1, TOKENS), device=device))
    states = torch.randn(1, TOKENS, width, dtype=getattr(torch, dtype), device=device)
    rotary = model.model.rotary_emb(states, torch.arange(TOKENS, device=device)[None])
    with torch.inference_mode():
        passes = [_seconds(lambda: model.model.layers[0](states, position_embeddings=rotary)) for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recipe = Recipe(score="magnitude", pattern="2:4", tune=True, correct=0, epochs=1)
    report = prune_module(model, batches, recipe)
    return {
        "width": width,
        "weights": sum(parameter.numel() for parameter in model.model.layers[0].parameters()),
        "pass_seconds": min(passes),
        "step_seconds": report["seconds"]["tune"] / STEPS,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
        "threads": torch.get_num_threads(),
    }


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[576, 1024, 2048])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.device, args.dtype)))
        return
    for width in args.widths:
        command = [sys.executable, __file__, "--one", str(width), "--device", args.device, "--dtype", args.dtype]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
