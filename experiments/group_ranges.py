"""RIA, Appendix I: does pruning shrink the minima and maxima of groups, and so what quantizing to 4 bits costs?

Over all groups of columns of the linears, as GPTQ would take them: how wide the range from minimum to maximum is that a
grid has to span, over that of the dense group; the share of groups in which it is narrower at all; and the squared
error of rounding the kept weights to the pruned group's grid, over that of rounding them to the dense group's. The last
is about 1 where a narrower range is not worth anything.
"""

from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from experiments.common import LLAMA, Report, Setting, main
from experiments.few_bits import group_size
from experiments.table1 import METHODS
from secateur.checkpoint import Source
from secateur.models.blocks import blocks_of, family_of
from secateur.quantization.grid import Grid, fit
from secateur.sweeps.tables import Table

MODELS = LLAMA[:1]
BITS = 4


@dataclass
class Sums:
    """Over the groups of all linears."""

    groups: int = 0
    narrower: int = 0
    ranges: float = 0
    pruned_error: float = 0
    dense_error: float = 0

    def add(self, dense: Tensor, pruned: Tensor, group: int) -> None:
        """Add a linear, ``(O, I)`` float32 both; reconstruction may have changed what is kept."""
        before, after = fit(dense, BITS, group), fit(pruned, BITS, group)
        kept = pruned != 0
        widths = _widths(after, pruned) / _widths(before, dense).clamp(min=1e-30)
        self.groups += widths.numel()
        self.narrower += int((widths < 1).sum())
        self.ranges += widths.double().sum().item()
        self.pruned_error += _error(after, pruned, kept)
        self.dense_error += _error(before, pruned, kept)


def run(setting: Setting) -> Report:
    cells = []
    for model in setting.models:
        for name, options in METHODS.items():
            key = {"ranges of": setting.options(**options), "bits": BITS}
            sums = Sums(**setting.measured(model, key, partial(_measured, setting, model, options)))
            ratios = sums.ranges / sums.groups, sums.narrower / sums.groups, sums.pruned_error / sums.dense_error
            cells.append([model, name, *(f"{ratio:.4f}" for ratio in ratios)])
    headings = ["model", "pruned", "mean range over dense", "groups narrower", "error over dense grid's"]
    return Report(tables=[("50 % unstructured.", Table.plain(headings, cells, words=2))], data=[headings, *cells])


def _measured(setting: Setting, model: str, options: dict[str, str]) -> dict[str, float]:
    """The sums of a model that is pruned to half of its weights."""
    sums = Sums()
    with setting.folder(model) as folder:
        dense, pruned = Source(folder), Source(setting.prune(model, folder, sparsity=0.5, **options))
        skeleton, group = dense.skeleton(torch.float32), group_size(dense)
        for block in blocks_of(skeleton, family_of(skeleton)):
            for linear in block.linears:
                name = block.prefix + linear.tensor
                before, after = (linear.view(source.read([name])[name]).float() for source in (dense, pruned))
                sums.add(before, after, group)
    return asdict(sums)


def _widths(grid: Grid, weight: Tensor) -> Tensor:
    """From the smallest weight of each group, or zero, to the largest, ``(O, G)``."""
    parts = weight.unflatten(1, (-1, grid.group))
    return parts.amax(-1).clamp(min=0) - parts.amin(-1).clamp(max=0)


def _error(grid: Grid, weight: Tensor, kept: Tensor) -> float:
    return ((grid.values(grid.codes(weight)) - weight) * kept).square().sum(dtype=torch.float64).item()


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
