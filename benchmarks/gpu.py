"""What sparse weights are worth on a GPU: products, decoding, a model end to end, the norm, the tests. Four minutes.

    python benchmarks/gpu.py [--out DIR] [products decode cpu model norm tests]

Each section is a process of its own with a time limit, so that one that fails or hangs costs only itself. It needs no
network: models are random, of LLaMA-7B's width. Every figure is written to ``DIR/gpu.jsonl`` as soon as it is
known, what was printed to ``DIR/gpu.log``; DIR is the current folder by default.

- ``products``: times as fast as dense of 2:4 weights, by shape and number of tokens, and the algorithm that was found;
- ``decode``: the same of packed weights for 1 and 8 tokens, by pattern and type of values, and GB/s of weights read;
- ``cpu``: what a product costs the processor;
- ``model``: ``secateur bench`` of a model of four blocks, batch 8 × 128 and 1 × 2,048 among them;
- ``norm``: the norm with a gather against ``torch.nn.functional.rms_norm``;
- ``tests``: the suite, of which the tests that need a GPU run here.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from secateur.checkpoint.sparse import pack, pack_int8
from secateur.console import speed, terminal
from secateur.masks import select
from secateur.patterns import NM, Pattern, Unstructured
from secateur.runtime.acceleration import SAMPLE, cuda_milliseconds, measure
from secateur.runtime.algorithms import Algorithms, check
from secateur.runtime.choosing import DENSE, SEMI_STRUCTURED
from secateur.runtime.dispatch import DispatchedLinear, Form, dense_linear, form_bytes
from secateur.runtime.semi_structured import SemiStructuredLinear
from secateur.runtime.sparse_linear import SparseLinear

# LLaMA-7B, with q/k/v and gate/up stacked; 13B; 70B.
SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008), (12288, 4096), (22016, 4096)]
SHAPES += [(5120, 5120), (13824, 5120), (5120, 13824), (8192, 8192), (28672, 8192), (8192, 28672)]
PATTERNS: list[Pattern] = [NM(2, 4), NM(16, 32), Unstructured(0.5)]
BYTES = 256e6  # of dense weights that products take turns with: several times the largest caches


def linears(shape: tuple[int, int], pattern: Pattern, dtype: torch.dtype = torch.bfloat16) -> list[nn.Linear]:
    """Random linears of a shape, as many as do not fit in the cache, or as are timed in turn."""
    made = []
    for seed in range(max(1, min(SAMPLE, round(BYTES / (2 * shape[0] * shape[1]))))):
        generator = torch.Generator("cuda").manual_seed(seed)
        weight = torch.randn(shape, device="cuda", dtype=dtype, generator=generator) * shape[1] ** -0.5
        made.append(dense_linear(weight.where(select(weight.abs().float(), pattern), 0), None))
    return made


def products(log: Callable[..., None]) -> None:
    for shape in SHAPES:
        found = measure(linears(shape, NM(2, 4)), cuda_milliseconds, Algorithms(torch.device("cuda")))
        log(shape=shape, times=found.times, algorithms=found.algorithms, refused=found.refused, bytes=found.nbytes)
        cells = [
            f"{tokens}: {taken[DENSE] / taken[form]:.2f}"
            + (f" ({found.algorithms[tokens].config})" if form == SEMI_STRUCTURED else "")
            for tokens, taken in found.times.items()
            for form in [min(taken, key=taken.__getitem__)]
            if SEMI_STRUCTURED in taken
        ]
        print(f"{shape[0]} × {shape[1]}: {', '.join(cells) or found.refused}", flush=True)


def decode(log: Callable[..., None]) -> None:
    for shape in SHAPES[:3]:
        for pattern in PATTERNS:
            dense = linears(shape, pattern)
            packed: dict[str, list[Form]] = {
                "bfloat16": [SparseLinear(pack(linear.weight.detach())) for linear in dense],
                "int8": [SparseLinear(pack_int8(linear.weight.detach())) for linear in dense],
            }
            for values, forms in packed.items():
                cells = []
                for tokens in (1, 8):
                    rows = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
                    check(forms[0], rows, nn.functional.linear(rows, forms[0].weight))
                    taken = [cuda_milliseconds([partial(x, rows) for x in side]) for side in (dense, forms)]
                    rate = form_bytes(forms[0]) / taken[1] / 1e6
                    log(shape=shape, pattern=str(pattern), values=values, tokens=tokens, milliseconds=taken, rate=rate)
                    cells.append(f"{tokens}: {taken[0] / taken[1]:.2f} ({1e3 * taken[1]:.1f} µs, {rate:,.0f} GB/s)")
                print(f"{shape[0]} × {shape[1]} {pattern} {values}: {', '.join(cells)}", flush=True)


def cpu(log: Callable[..., None]) -> None:
    (first, *_) = linears((4096, 4096), NM(2, 4))
    sparse = SemiStructuredLinear(first.weight.detach())
    both = DispatchedLinear({SEMI_STRUCTURED: sparse}, {1: SEMI_STRUCTURED, 1024: SEMI_STRUCTURED}, torch.bfloat16)
    rows = torch.randn(16, 4096, device="cuda", dtype=torch.bfloat16)
    for name, linear in (("dense", first), ("2:4", sparse), ("dispatched", both)):
        linear(rows)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(300):
            linear(rows)
        each = (time.perf_counter() - began) / 300
        torch.cuda.synchronize()
        log(name=name, seconds=each)
        print(f"{name}: {1e6 * each:.1f} µs of CPU for a product")


def random_model(folder: Path, blocks: int, pattern: Pattern) -> None:
    """Write a random pruned model of LLaMA-7B's width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(num_hidden_layers=blocks, max_position_embeddings=4096, dtype="bfloat16")
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "layers" in name:
                module.weight.mul_(select(module.weight.abs().float(), pattern))
    model.save_pretrained(folder)


def model(log: Callable[..., None]) -> None:
    terminal.out.width = 120
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name) / "model"
        random_model(folder, 4, NM(2, 4))
        torch.cuda.empty_cache()
        result = secateur.bench(folder, batch=(1, 8), length=(128, 2048), tokens=16, rounds=5, structured=True)
    log(**dataclasses.asdict(result))
    for table in (speed.modules_table(result), speed.model_table(result), speed.structured_table(result)):
        terminal.out.print(table)
    terminal.out.print(speed.choices_table(result.choices))
    for note in speed.benchmark_notes(result):
        print(note)


def norm(log: Callable[..., None]) -> None:
    from secateur.models.triton_norm import rms_norm_gather

    for width in (4096, 8192):
        weight, order = torch.randn(width, device="cuda").bfloat16(), torch.randperm(width, device="cuda")
        for tokens in (1, 1024, 8192):
            hidden = torch.randn(tokens, width, device="cuda").bfloat16()
            ours, plain = (
                cuda_milliseconds([work] * 10)
                for work in (
                    partial(rms_norm_gather, hidden, weight, order, 1e-5),
                    partial(nn.functional.rms_norm, hidden, (width,), weight, 1e-5),
                )
            )
            log(width=width, tokens=tokens, milliseconds=(ours, plain))
            print(f"{tokens} × {width}: {1e3 * ours:.1f} µs, without the gather {1e3 * plain:.1f}: {ours / plain:.2f}")


SECTIONS: dict[str, tuple[Callable[[Callable[..., None]], None] | None, int]] = {
    "products": (products, 60),
    "decode": (decode, 30),
    "cpu": (cpu, 20),
    "model": (model, 50),
    "norm": (norm, 20),
    "tests": (None, 100),
}


def run_section(name: str, file: Path) -> None:
    """One section, in this process."""

    def log(**row: Any) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"section": name, **row}, default=str) + "\n")

    section = SECTIONS[name][0]
    assert section is not None
    with torch.inference_mode():
        section(log)


def output_of(command: list[str], limit: float) -> str:
    """What a command prints until it ends or its time is up, and how it ended."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit, check=False)
        return f"{done.stdout.decode(errors='replace')}exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        return f"{(late.stdout or b'').decode(errors='replace')}stopped after {limit:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), choices=[*SECTIONS, []])
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--here", action="store_true", help="in this process, without a time limit")
    options = parser.parse_args()
    if options.here:
        for name in options.sections:
            run_section(name, options.out / "gpu.jsonl")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    pytest = ["-m", "pytest", "-q", "-n", "8", "-m", "not slow", "-p", "no:cacheprovider", "--tb=short", "-rf"]
    for name in options.sections:
        began, limit = time.monotonic(), SECTIONS[name][1]
        itself = [str(Path(__file__)), "--here", "--out", str(options.out), name]
        text = output_of([sys.executable, *(pytest if name == "tests" else itself)], limit)
        with contextlib.suppress(OSError), (options.out / "gpu.log").open("a", encoding="utf-8") as log:
            log.write(f"== {name}\n{text}\n")
        print(f"== {name}, {time.monotonic() - began:.0f} s\n{text[-6000:]}", flush=True)


if __name__ == "__main__":
    main()
