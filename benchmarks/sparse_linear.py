"""How much faster packed linears are than torch's dense bfloat16 linear, at the shapes of LLaMA-7B or SmolLM2-135M.

    python benchmarks/sparse_linear.py [--threads 2] [--rounds 20] [--tokens 1 8 16 32 128] [--every-set] [--cpu-time]
        [--shapes 4096x4096 576x576 …] [--patterns 2:4 …] [--megabytes 1200]

One round runs each kind of linear once through enough copies of its weight that they do not fit in the cache, as
the layers of a model do when text is generated; kinds take turns, so that what disturbs the machine disturbs them
alike. Quotes the median over rounds of the time of dense over that of each kind, with the quartiles, and the largest
error against the dense product in float32, as a share of the largest output: of int8 and int4 mostly that of rounding.
"dense int8" and "dense int4" are the weight that is not pruned, without a mask. With more than one token also what
``SparseLinear`` has chosen from (``kernels`` multiplies with the packed weight, ``tiles`` expands it for torch).
``--every-set`` measures every set of kernels that this processor runs, not only the best; ``--cpu-time`` counts the
seconds of the one thread it runs on, for a machine that is shared.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.checkpoint.sparse import SparseWeight, pack, pack_int4, pack_int8
from secateur.masks import select
from secateur.patterns import Pattern, Unstructured, parse_nm
from secateur.runtime.kernels import KERNELS
from secateur.runtime.sparse_linear import SparseLinear

SHAPES = ["4096x4096", "11008x4096", "4096x11008"]
PATTERNS = ["2:4", "16:32", "unstructured"]


def dense_linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear


def sparse_linear(weight: SparseWeight, kernels: int) -> SparseLinear:
    own: dict[str, Any] = {name: part.clone() for name, part in weight.parts().items()}
    linear = SparseLinear(replace(weight, **own))
    linear.kernels = KERNELS[kernels]
    return linear


def measure(
    shape: tuple[int, int],
    pattern: Pattern,
    tokens: int,
    sets: int,
    rounds: int,
    size: float,
    clock: Callable[[], float],
) -> None:
    torch.manual_seed(0)
    whole = torch.randn(shape)
    weight = whole.where(select(whole.abs(), pattern), 0).bfloat16()
    whole = whole.bfloat16()
    inputs = torch.randn(tokens, shape[1]).bfloat16()
    copies = max(1, round(size / weight.nbytes))
    packed = {"bfloat16": pack(weight), "int8": pack_int8(weight), "int4": pack_int4(weight)}
    packed |= {"dense int8": pack_int8(whole), "dense int4": pack_int4(whole)}
    layers: dict[str, list[Callable[[Tensor], Tensor]]] = {"dense": [dense_linear(weight) for _ in range(copies)]}
    for number, kernels in enumerate(KERNELS[:sets]):
        for values, one in packed.items():
            made = [sparse_linear(one, number) for _ in range(copies)]
            kind = f"{values} {kernels.name}"
            if tokens == 1:
                layers[kind] = [*made]
            else:
                layers[f"{kind} kernels"] = [linear._multiply for linear in made]
                layers[f"{kind} tiles"] = [linear._by_tiles for linear in made]
    seconds: dict[str, list[float]] = {kind: [] for kind in layers}
    for _ in range(rounds + 1):
        for kind, stack in layers.items():
            began = clock()
            for layer in stack:
                layer(inputs)
            seconds[kind].append((clock() - began) / copies)
    exact = {of_all: inputs.float() @ (whole if of_all else weight).float().T for of_all in (False, True)}
    for kind, spent in seconds.items():
        ratios = [dense / ours for dense, ours in zip(seconds["dense"][1:], spent[1:], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        right = exact[kind.startswith("dense int")]
        result = {
            "shape": shape,
            "pattern": str(pattern),
            "tokens": tokens,
            "kind": kind,
            "ms": round(1e3 * statistics.median(spent[1:]), 3),
            "faster": round(median, 2),
            "quartiles": [round(low, 2), round(high, 2)],
            "error": float(f"{(layers[kind][0](inputs) - right).abs().max() / right.abs().max():.2g}"),
        }
        print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1])
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--patterns", nargs="*", default=PATTERNS)
    parser.add_argument("--megabytes", type=float, default=1200, help="of dense weights in a round, beyond any cache")
    parser.add_argument("--every-set", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.cpu_time else args.threads)
    sets = len(KERNELS) if args.every_set else 1
    clock = time.thread_time if args.cpu_time else time.perf_counter
    with torch.inference_mode():
        for tokens in args.tokens:
            for rows, columns in (map(int, shape.split("x")) for shape in args.shapes):
                for name in args.patterns if tokens == 1 else args.patterns[:1]:
                    pattern = Unstructured(0.5, "row") if name == "unstructured" else parse_nm(name)
                    measure((rows, columns), pattern, tokens, sets, args.rounds, 1e6 * args.megabytes, clock)


if __name__ == "__main__":
    main()
