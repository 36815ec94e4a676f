"""RIA, Appendix I: does pruning shrink the minima and maxima of groups, and so what quantizing costs?

    python experiments/group_ranges.py MODEL PRUNED... [--bits 4] [--group-size 128]

For each pruned model, over all groups of columns of its pruned linears: how wide the range from minimum to maximum is
that a grid has to span, beside that of the dense group; in how many groups it is narrower at all; and the squared error
of rounding the kept weights to the pruned group's grid, over that of rounding the same weights to the dense group's.
The last is about 1 where a narrower range is not worth anything. Channels have to be in the dense model's order.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from common import show
from torch import Tensor

from secateur.checkpoint import Source, local_folder, read_orders
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.quantization.grid import Grid, check_group, fit


@dataclass
class Sums:
    """Over the groups of all linears."""

    groups: int = 0
    narrower: int = 0
    ranges: float = 0
    pruned_error: float = 0
    dense_error: float = 0

    def add(self, dense: Tensor, pruned: Tensor, bits: int, group: int) -> None:
        """Add a linear, ``(O, I)`` float32 both; reconstruction may have changed what is kept."""
        before, after = fit(dense, bits, group), fit(pruned, bits, group)
        kept = pruned != 0
        widths = _widths(after, pruned) / _widths(before, dense).clamp(min=1e-30)
        self.groups += widths.numel()
        self.narrower += int((widths < 1).sum())
        self.ranges += widths.double().sum().item()
        self.pruned_error += _error(after, pruned, kept)
        self.dense_error += _error(before, pruned, kept)


def _widths(grid: Grid, weight: Tensor) -> Tensor:
    """From the smallest weight of each group, or zero, to the largest, ``(O, G)``."""
    parts = weight.unflatten(1, (-1, grid.group))
    return parts.amax(-1).clamp(min=0) - parts.amin(-1).clamp(max=0)


def _error(grid: Grid, weight: Tensor, kept: Tensor) -> float:
    return ((grid.values(grid.codes(weight)) - weight) * kept).square().sum(dtype=torch.float64).item()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("pruned", nargs="+")
    arguments.add_argument("--bits", type=int, default=4)
    arguments.add_argument("--group-size", type=int, default=128)
    args = arguments.parse_args()
    with local_folder(args.model) as folder:
        dense = Source(folder)
        for name in args.pruned:
            pruned, sums = Source(Path(name)), Sums()
            if read_orders(Path(name), whole=False):
                raise InputError(f"the channels of {name} are in another order: prune with --permute none")
            skeleton = pruned.skeleton(torch.float32)
            for block in blocks_of(skeleton, family_of(skeleton)):
                for linear in block.linears:
                    tensor = block.prefix + linear.tensor
                    before, after = (linear.view(source.read([tensor])[tensor]).float() for source in (dense, pruned))
                    check_group(before.shape[1], args.group_size)
                    sums.add(before, after, args.bits, args.group_size)
            show(
                {
                    "model": name,
                    "mean range over dense": round(sums.ranges / sums.groups, 4),
                    "groups narrower": round(sums.narrower / sums.groups, 4),
                    "error of kept weights over dense grid's": round(sums.pruned_error / sums.dense_error, 4),
                }
            )


if __name__ == "__main__":
    main()
