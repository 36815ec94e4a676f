"""How the cost of each reconstruction grows with width and tokens.

    python benchmarks/reconstruction_cost.py [--widths 512 1024 2048] [--tokens 8192] [--rounds 3]

For a square layer of each width with a 2:4 mask: the seconds (median of rounds, methods in turn) of summing the
Gram matrix over the tokens, and of each method after that, which no longer depends on the tokens; the relative
output error that each leaves; and the same in forward passes of the layer over the tokens.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from secateur.masks import select
from secateur.patterns import NM
from secateur.reconstruct.admm import masked_admm
from secateur.reconstruct.cg import masked_cg
from secateur.reconstruct.refine import refined
from secateur.reconstruct.sparsegpt import sweep
from secateur.stats.gram import output_error
from secateur.stats.inputs import InputStats

PATTERN = NM(2, 4)


def case(width: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A random layer ``(width, width)``, and inputs ``(tokens, width)`` whose channels are correlated."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=draw)
    hidden = torch.randn(tokens, width // 4, generator=draw) @ torch.randn(width // 4, width, generator=draw)
    return weight, hidden / (width // 4) ** 0.5 + 0.5 * torch.randn(tokens, width, generator=draw)


def gram_of(inputs: Tensor) -> InputStats:
    stats = InputStats(inputs.shape[1], stride=len(inputs), gram=True)
    for part in inputs.split(2048):
        stats.update(part)
    return stats


def methods(weight: Tensor, mask: Tensor) -> dict[str, Callable[[InputStats], Tensor]]:
    """Each from the sums to the weights; factors of G are not kept from one to the next."""
    return {
        "sparsegpt": lambda stats: sweep(weight, stats.damped, mask=mask),
        "cg": lambda stats: masked_cg(weight, mask, stats.shrunk),
        "admm": lambda stats: masked_admm(weight, mask, stats.shrunk, PATTERN)[1],
        "cg + refine": lambda stats: refined(
            weight, mask, stats.shrunk, PATTERN, masked_cg(weight, mask, stats.shrunk), refit=True
        )[1],
    }


def measure(width: int, tokens: int, rounds: int) -> dict[str, object]:
    """One row of the table."""
    weight, inputs = case(width, tokens)
    mask = select(weight.abs() * inputs.norm(dim=0), PATTERN)
    stats = gram_of(inputs)
    assert stats.gram is not None
    errors = {"none": output_error(weight * mask, weight, stats.gram)}
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        began = time.perf_counter()
        inputs @ weight.T
        seconds.setdefault("forward", []).append(time.perf_counter() - began)
        began = time.perf_counter()
        stats = gram_of(inputs)
        seconds.setdefault("gram", []).append(time.perf_counter() - began)
        assert stats.gram is not None
        for name, method in methods(weight, mask).items():
            stats.forget()
            began = time.perf_counter()
            found = method(stats)
            seconds.setdefault(name, []).append(time.perf_counter() - began)
            errors[name] = output_error(found, weight, stats.gram)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "width": width,
        "tokens": tokens,
        "seconds": {name: round(t, 3) for name, t in medians.items()},
        "forward passes": {name: round(t / medians["forward"], 1) for name, t in medians.items()},
        "error": {name: round(error, 4) for name, error in errors.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for width in args.widths:
        for tokens in args.tokens:
            print(json.dumps(measure(width, tokens, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
