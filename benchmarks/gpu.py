"""What sparse weights are worth on a GPU: products, a model end to end, decoding, FP8, the norm, the tests.

    PYTHONPATH=src python benchmarks/gpu.py [--out DIR] [--budget SECONDS] [SECTION …]

It needs a checkout with what Secateur needs installed, and no network: weights are random, their shapes are LLaMA's.
Sections run in the order of their importance, each with a limit of time, so that one that fails or takes too long costs
only itself; none starts when the budget is spent (150 seconds). Every figure is written to ``DIR/gpu.jsonl`` as soon as
it is known; DIR is the current folder by default.

- ``machine``: the GPU and the versions of the libraries;
- ``products``: times as fast as dense of 2:4 weights, by shape and number of tokens, and the algorithm that was found,
  as ``load`` chooses them;
- ``cpu``: what a product costs the processor;
- ``model``: four blocks of LLaMA-7B's width: seconds to load; ``secateur bench`` of prefill and decoding, as chosen and
  in each form, beside a dense model of half the width;
- ``fp8``: 2:4 against dense products of 8-bit floats (e4m3, one scale for each tensor);
- ``decode``: packed weights against dense ones for 1 and 8 tokens, by pattern and type of values, their share of the
  bytes, and GB/s of weights;
- ``prune``, ``prune_wide``: two blocks of LLaMA-7B's and of LLaMA-70B's width pruned on 128 x 2,048 tokens, beside two
  plain forward passes: ``benchmarks/pruning_cost.py``, by recipe and stage. With ``--budget 500`` and only these;
- ``quantize``: two blocks of LLaMA-7B's width quantized to 4 bits by every method, on 128 x 2,048 tokens, by stage;
- ``norm``: the norm with a gather against ``torch.nn.functional.rms_norm``;
- ``tests``: those of the suite that need a GPU.

``--smoke`` tries all of it with small shapes.
"""

import argparse
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import secateur
from secateur.checkpoint.sparse import pack, pack_int4, pack_int8
from secateur.console import speed, terminal
from secateur.errors import InputError
from secateur.masks import select
from secateur.patterns import NM, Pattern, Unstructured
from secateur.quantization.methods import QUANTIZATIONS
from secateur.recipe import QuantizationRecipe
from secateur.runtime import cusparselt
from secateur.runtime.acceleration import SAMPLE, cuda_milliseconds, measure
from secateur.runtime.algorithms import Algorithms, check
from secateur.runtime.choosing import DENSE, PACKED, SEMI_STRUCTURED
from secateur.runtime.cusparselt import Algorithm, Plan, Problem
from secateur.runtime.dispatch import DispatchedLinear, Form, dense_linear, form_bytes
from secateur.runtime.semi_structured import SemiStructuredLinear
from secateur.runtime.sparse_linear import SparseLinear

PATTERNS: list[Pattern] = [NM(2, 4), NM(16, 32), Unstructured(0.5)]
BYTES = 256e6  # of dense weights that products take turns with: several times the largest caches
FP8 = torch.float8_e4m3fn
Log = Callable[..., None]


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        shapes: of weights; the first three are those of a block of the model.
        blocks: of the model.
        batch: of the model's inputs.
        length: of its prompts.
        tokens: of products of 8-bit floats.
        device: where it runs.
    """

    shapes: tuple[tuple[int, int], ...]
    blocks: int
    batch: tuple[int, ...]
    length: tuple[int, ...]
    tokens: tuple[int, ...]
    device: str = "cuda"


# LLaMA-7B, with q/k/v and gate/up stacked; 13B; 70B.
SEVEN = ((4096, 4096), (11008, 4096), (4096, 11008), (12288, 4096), (22016, 4096))
LARGER = ((5120, 5120), (13824, 5120), (5120, 13824), (8192, 8192), (28672, 8192), (8192, 28672))
FULL = Scale((*SEVEN, *LARGER), 4, (1, 8), (128, 2048), (1024, 8192))
SMOKE = Scale(((256, 256), (512, 256), (256, 512)), 1, (1, 2), (16,), (64,))


def linears(shape: tuple[int, int], pattern: Pattern, device: str) -> list[nn.Linear]:
    """Random linears of a shape, as many as do not fit in the cache, or as are timed in turn."""
    made = []
    for seed in range(max(1, min(SAMPLE, round(BYTES / (2 * shape[0] * shape[1]))))):
        generator = torch.Generator(device).manual_seed(seed)
        weight = torch.randn(shape, device=device, dtype=torch.bfloat16, generator=generator) * shape[1] ** -0.5
        made.append(dense_linear(prune(weight, pattern), None))
    return made


def prune(weight: Tensor, pattern: Pattern) -> Tensor:
    """``weight`` (O, I) with +0.0 for what ``pattern`` leaves out: a −0.0 would be packed as a weight that is kept."""
    return weight.where(select(weight.abs().float(), pattern), 0)


def machine(log: Log, scale: Scale) -> None:
    lib = cusparselt.library()
    versions = {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuSPARSELt": lib.version if lib else None}
    log(gpu=torch.cuda.get_device_name(), **versions)
    print(torch.cuda.get_device_name(), versions, flush=True)


def products(log: Log, scale: Scale) -> None:
    known = Algorithms(torch.device(scale.device))
    for shape in scale.shapes:
        found = measure(linears(shape, NM(2, 4), scale.device), cuda_milliseconds, known, (SEMI_STRUCTURED,))
        log(shape=shape, times=found.times, algorithms=found.algorithms, refused=found.refused, bytes=found.nbytes)
        cells = [
            f"{tokens}: {taken[DENSE] / taken[SEMI_STRUCTURED]:.2f} ({found.algorithms[tokens].config})"
            for tokens, taken in found.times.items()
            if SEMI_STRUCTURED in taken
        ]
        print(f"{shape[0]} × {shape[1]}: {', '.join(cells) or found.refused}", flush=True)


def cpu(log: Log, scale: Scale) -> None:
    (first, *_) = linears(scale.shapes[0], NM(2, 4), scale.device)
    sparse = SemiStructuredLinear(first.weight.detach())
    both = DispatchedLinear({SEMI_STRUCTURED: sparse}, {1: SEMI_STRUCTURED, 1024: SEMI_STRUCTURED}, torch.bfloat16)
    rows = torch.randn(16, scale.shapes[0][1], device=scale.device, dtype=torch.bfloat16)
    for name, linear in (("dense", first), ("2:4", sparse), ("dispatched", both)):
        each = []
        for _ in range(5):
            linear(rows)
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(200):  # fewer than wait in a stream before launching waits, too
                linear(rows)
            each.append((time.perf_counter() - began) / 200)
        log(name=name, seconds=each)
        print(f"{name}: {1e6 * min(each):.1f} µs of CPU for a product (at most {1e6 * max(each):.1f})", flush=True)


def model(log: Log, scale: Scale) -> None:
    (width, _), (wide, _), *_ = scale.shapes
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=wide,
        num_attention_heads=width // 128,
        num_hidden_layers=scale.blocks,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device(scale.device):
        random = LlamaForCausalLM(config).to(torch.bfloat16)
    for name, module in random.named_modules():
        if isinstance(module, nn.Linear) and "layers" in name:
            module.weight.data = prune(module.weight.data, NM(2, 4))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        random.save_pretrained(folder)
        del random
        torch.cuda.empty_cache()
        os.environ["XDG_CACHE_HOME"] = folder  # so that the first load searches
        for how in ("searching", "from the cache"):
            began = time.perf_counter()
            secateur.load(folder, device=scale.device)
            log(loaded=how, seconds=time.perf_counter() - began)
            print(f"loaded, {how}: {time.perf_counter() - began:.1f} s", flush=True)
        whole = {"batch": scale.batch, "length": scale.length, "tokens": 16, "rounds": 5, "device": scale.device}
        measure_model(log, Path(folder), {**whole, "structured": True})
        for form in (SEMI_STRUCTURED, PACKED) if scale.device == "cuda" else ():
            measure_model(log, Path(folder), {**whole, "length": scale.length[:1], "form": form})


def measure_model(log: Log, folder: Path, options: dict[str, Any]) -> None:
    try:
        result = secateur.bench(folder, **options)
    except InputError as error:
        print(error, flush=True)
        return
    document = dataclasses.asdict(result)
    log(form=options.get("form", "auto"), **{**document, "choices": [str(choice) for choice in result.choices]})
    share = result.packed_bytes / result.dense_bytes
    print(f"form: {options.get('form', 'as chosen')}; the linears take {share:.3f} of the dense bytes")
    terminal.show(speed.model_table(result))
    if result.structured:
        tables = speed.structured_table(result), speed.modules_table(result), speed.choices_table(result.choices)
        terminal.show(*tables, *speed.benchmark_notes(result))
    sys.stdout.flush()


def fp8(log: Log, scale: Scale) -> None:
    one = torch.ones((), device=scale.device)
    for shape in scale.shapes[:3]:
        weights = [(x.weight.detach() * shape[1] ** 0.5).to(FP8) for x in linears(shape, NM(2, 4), scale.device)]
        cells = []
        for tokens in scale.tokens:
            rows = torch.randn(tokens, shape[1], device=scale.device).to(FP8)
            scaled: dict[str, Any] = {
                "scale_a": one,
                "scale_b": one,
                "out_dtype": torch.bfloat16,
                "use_fast_accum": True,
            }
            dense = [partial(torch._scaled_mm, rows, weight.T, **scaled) for weight in weights]
            config, sparse = fastest_fp8(weights, rows, dense[0]())
            taken = cuda_milliseconds([dense, sparse])
            log(shape=shape, tokens=tokens, config=config, milliseconds=taken)
            cells.append(f"{tokens}: {taken[0] / taken[1]:.2f} ({config})")
        print(f"{shape[0]} × {shape[1]}: {', '.join(cells)}", flush=True)


def fastest_fp8(weights: list[Tensor], rows: Tensor, expected: Tensor) -> tuple[int, list[Callable[[], Tensor]]]:
    """The number of the algorithm that multiplies the first of 2:4 ``weights`` fastest, and its products with all."""
    lib = cusparselt.library()
    assert lib is not None
    packed = [cusparselt.compress(weight, lib) for weight in weights]
    (out_features, in_features), device = weights[0].shape, weights[0].device.index
    problem = Problem(out_features, in_features, len(rows), FP8, torch.bfloat16)

    def product(plan: Plan, weight: Tensor) -> Tensor:
        out = torch.empty_like(expected)
        plan.launch(weight, rows, out)
        return out

    right: dict[int, list[Callable[[], Tensor]]] = {}
    for config in range(Plan(problem, Algorithm(), device, lib).configs):
        try:
            plan = Plan(problem, Algorithm(config), device, lib)
            check(lambda _, plan=plan: product(plan, packed[0]), rows, expected)  # type: ignore[misc]
        except RuntimeError:
            continue
        right[config] = [partial(product, plan, weight) for weight in packed]
    alone = cuda_milliseconds([each[:1] for each in right.values()])
    best = list(right)[alone.index(min(alone))]
    return best, right[best]


def decode(log: Log, scale: Scale) -> None:
    for shape in scale.shapes[:3]:
        for pattern in PATTERNS:
            dense = linears(shape, pattern, scale.device)
            packed: dict[str, list[Form]] = {
                "bfloat16": [SparseLinear(pack(linear.weight.detach())) for linear in dense],
                "int8": [SparseLinear(pack_int8(linear.weight.detach())) for linear in dense],
                "int4": [SparseLinear(pack_int4(linear.weight.detach())) for linear in dense],
            }
            for values, forms in packed.items():
                cells, share = [], form_bytes(forms[0]) / form_bytes(dense[0])
                for tokens in (1, 8):
                    rows = torch.randn(tokens, shape[1], device=scale.device, dtype=torch.bfloat16)
                    check(forms[0], rows, nn.functional.linear(rows, forms[0].weight))
                    taken = cuda_milliseconds([[partial(x, rows) for x in some] for some in (dense, forms)])
                    rate = form_bytes(forms[0]) / taken[1] / 1e6
                    what = {"shape": shape, "pattern": str(pattern), "values": values, "tokens": tokens}
                    log(**what, milliseconds=taken, rate=rate, share=share)
                    cells.append(f"{tokens}: {taken[0] / taken[1]:.2f} ({1e3 * taken[1]:.1f} µs, {rate:,.0f} GB/s)")
                print(f"{shape[0]} × {shape[1]} {pattern} {values}, {share:.3f} of the bytes: {', '.join(cells)}")


def prune_blocks(shape: str, log: Log, scale: Scale) -> None:
    real = scale.device == "cuda" and scale is not SMOKE
    size = ["--samples", "128", "--length", "2048", "--rounds", "1"] if real else ["--samples", "2", "--rounds", "0"]
    recipes = ["50%", "2:4", "good"] if real else ["50%", "2:4"]
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        dense = Path(folder) / "dense"
        random_model = [sys.executable, str(here / "random_models.py"), shape if real else "tiny", str(dense)]
        subprocess.run([*random_model, "--blocks", "2"], check=True)
        cost = [sys.executable, str(here / "pruning_cost.py"), str(dense), "--calibration", str(dense / "text.txt")]
        cost += [*size, "--out", folder, "--device", scale.device, "--recipes", *recipes]
        with subprocess.Popen(cost, stdout=subprocess.PIPE, text=True) as running:
            try:
                for line in running.stdout or ():
                    print(line, end="", flush=True)
                    if line.startswith("{"):
                        log(shape=shape, **json.loads(line))
            finally:
                running.kill()


def quantize(log: Log, scale: Scale) -> None:
    real = scale.device == "cuda" and scale is not SMOKE
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        dense = Path(folder) / "dense"
        random_model = [sys.executable, str(Path(__file__).parent / "random_models.py"), "7b" if real else "tiny"]
        subprocess.run([*random_model, str(dense), "--blocks", "2"], check=True)
        for method in QUANTIZATIONS:
            recipe = QuantizationRecipe(
                method=method,
                group_size=128 if real else 16,
                calibration=str(dense / "text.txt"),
                samples=128 if real else 2,
                length=2048 if real else 32,
                device=scale.device,
            )
            found = secateur.quantize(dense, Path(folder) / method, recipe)["quantization"]
            log(method=method, seconds=found["seconds"], bits=found["bits_per_weight"])
            print(f"{method}: {found['seconds']}", flush=True)


def norm(log: Log, scale: Scale) -> None:
    from secateur.models.triton_norm import rms_norm_gather

    for width in dict.fromkeys(columns for _, columns in scale.shapes[:3]):
        weight, order = torch.randn(width).bfloat16().to(scale.device), torch.randperm(width, device=scale.device)
        for tokens in (1, 1024, 8192):
            hidden = torch.randn(tokens, width, device=scale.device).bfloat16()
            ours = partial(rms_norm_gather, hidden, weight, order, 1e-5)
            plain = partial(nn.functional.rms_norm, hidden, (width,), weight, 1e-5)
            taken = cuda_milliseconds([[ours], [plain]])
            log(width=width, tokens=tokens, milliseconds=taken)
            microseconds = " µs, without the gather ".join(f"{1e3 * each:.1f}" for each in taken)
            print(f"{tokens} × {width}: {microseconds}: {taken[0] / taken[1]:.2f}", flush=True)


def tests(log: Log, scale: Scale) -> None:
    words = ["-q", "-n", "4", "-m", "not slow", "-k", "gpu", "-p", "no:cacheprovider", "--tb=short", "-rf", "tests"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], check=False)
    log(exit_code=done.returncode)


# With the limit of each, in seconds.
SECTIONS: dict[str, tuple[Callable[[Log, Scale], None], int]] = {
    "machine": (machine, 20),
    "products": (products, 60),
    "cpu": (cpu, 10),
    "model": (model, 60),
    "fp8": (fp8, 20),
    "decode": (decode, 30),
    "norm": (norm, 10),
    "prune": (partial(prune_blocks, "7b"), 120),
    "prune_wide": (partial(prune_blocks, "70b"), 300),
    "quantize": (quantize, 120),
    "tests": (tests, 60),
}


def run_section(name: str, scale: Scale, file: Path, limit: float) -> None:
    """One section, for so many seconds at most."""

    def log(**row: Any) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"section": name, **row}, default=str) + "\n")

    def stop(*_: object) -> None:
        raise TimeoutError(f"{name} has taken {limit:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        with torch.inference_mode():
            SECTIONS[name][0](log, scale)
    except Exception:
        traceback.print_exc(file=sys.stdout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []])
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--budget", type=float, default=150)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for name in options.sections or SECTIONS:
        spent = time.monotonic() - began
        if options.budget - spent < 5:
            print(f"== {name}: no time is left", flush=True)
            continue
        print(f"== {name}, after {spent:.0f} s", flush=True)
        limit = min(options.budget - spent, SECTIONS[name][1])
        run_section(name, SMOKE if options.smoke else FULL, options.out / "gpu.jsonl", limit)
    print(f"== all: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
