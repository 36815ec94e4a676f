"""How sparse each linear is to be, where as many weights go in all: as sparse as the model's predictions bear.

Some blocks can lose far more than others, and so can some linears of a block. What is measured, on the dense model:

- for each block b, KL_b, the divergence of the model's next-token distributions from the dense model's when this
  block alone is pruned to the share S that is asked for;
- for each linear l, e_l(s), the relative error of its output at several shares s.

A linear then costs KL_b · e_l(s)² / Σ e(S)², the sum over the linears of its block, and the knapsack
(:mod:`secateur.knapsack`) takes the weights that cost the least. Formats that store a mask take the same for each kept
weight wherever it lies, so any mix of shares is as small as an even one.

Blocks are read once, in the order in which they run. The states that the pruned block b makes wait beside the dense
model's, and pass all blocks after it: L²/2 passes of a block on some hundred tokens, less than one pass over the
calibration samples. Output errors are those of the masks alone, whatever mends the weights later.
"""

from collections import Counter

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.calibrate.divergence import TOKENS, divergences
from secateur.calibrate.stream import Rooms, Stream
from secateur.knapsack import LEVELS, Point, cheapest
from secateur.masks import select
from secateur.memory import Shelf
from secateur.models.blocks import Block
from secateur.models.spaces import Linear
from secateur.patterns import Unstructured, count_kept
from secateur.progress import Clock, Progress
from secateur.pruning.linear import relative_error, score_of, sees_enough
from secateur.pruning.prepare import Samples, Task
from secateur.pruning.visit import Visit

# What a pruned block does is measured on at least so many tokens, if there are as many.
PROBED = 512


def probe(samples: Samples) -> Tensor:
    """The tokens that run through pruned blocks: the first samples, int64 ``(B, L)``."""
    batch = samples.batches[0]
    return batch[: -(-PROBED // batch.shape[1])]


def probed(task: Task, samples: Samples, index: int) -> int:
    """Tokens that block ``index`` is run on besides: dense, pruned, and behind each block that was pruned."""
    if not samples.batches:
        return 0
    return probe(samples).numel() * (1 + sum(bool(block.linears) for block in task.blocks[: index + 1]))


class Allocation:
    """The work of a walk over the dense model, and what comes of it."""

    def __init__(
        self, model: PreTrainedModel, task: Task, samples: Samples, rooms: Rooms, progress: Progress, clock: Clock
    ) -> None:
        """Nothing is measured yet.

        Args:
            model: with what lies outside its blocks in memory.
            task: all of its linears are to lose the same share.
            samples: of which the first run through pruned blocks.
            rooms: where hidden states wait.
            progress: is told of the tokens that a block has processed.
            clock: of the run.
        """
        self._model, self._task, self._rooms = model, task, rooms
        self._progress, self._clock = progress, clock
        self._batch, self._index = probe(samples), 0
        self._stream: Stream | None = None
        # Of each block that was pruned, the states of the tokens; and of its linears, how many weights go and the
        # squared output error, at all levels and at the share that is asked for.
        self._states = Shelf(rooms.states)
        self._points: list[dict[str, list[Point]]] = []
        self._sizes: Counter[str] = Counter()

    @torch.no_grad()
    def __call__(self, visit: Visit) -> None:
        """Look at one block, which is in the end as it was."""
        block, index = visit.block, self._index
        self._progress.at(f"allocation of {visit.where}")
        with self._clock("allocate"):
            self._stream = self._stream or Stream(
                self._model, self._task.blocks, [self._batch], self._progress, rooms=self._rooms
            )
            for number, states in enumerate(self._states):
                self._states[number] = self._stream.run(index, 0, states)
            if block.linears:
                dense = [block.weight(linear).clone() for linear in block.linears]
                found: dict[str, list[Point]] = {}
                for linear in block.linears:
                    name, points = _glob(block, linear), self._prune(visit, linear)
                    found[name] = _sums(found[name], points) if name in found else points
                    self._sizes[name] += block.weight(linear).numel()
                self._points.append(found)
                self._states.append(self._stream.run(index, 0))
                for linear, weight in zip(block.linears, dense, strict=True):
                    block.weight(linear).copy_(weight)
            self._stream.advance(index)
        self._index += 1

    def _prune(self, visit: Visit, linear: Linear) -> list[Point]:
        """Prune a linear in its module to the share that is asked for; its points at all levels and there."""
        block, name = visit.block, visit.block.full_name(linear)
        asked, stats, weight = self._task.patterns[name], visit.stats[linear.name], block.weight(linear)
        assert isinstance(asked, Unstructured)
        dense = weight.float()
        score = score_of(name, dense, stats, self._task.recipe)
        points = []
        for share in (*LEVELS, asked.sparsity):
            pattern = Unstructured(share, asked.scope)
            pruned = dense * select(score, pattern)
            known = sees_enough(stats)  # else by its weights alone, as it is pruned
            error = relative_error(dense, pruned, stats) if known else float((dense - pruned).norm() / dense.norm())
            points.append((dense.numel() - count_kept(*dense.shape, pattern), error**2))
        weight.copy_(pruned)
        return points

    @torch.no_grad()
    def settle(self) -> dict[str, float]:
        """The share that each linear is to lose, by globs of full names, when all blocks have been looked at."""
        curves, removed = {}, 0
        level_of: dict[tuple[str, int], float] = {}
        for found, divergence in zip(self._points, self._divergences(), strict=True):
            whole = sum(points[-1][1] for points in found.values()) or 1.0
            for name, (*levels, (asked, _)) in found.items():
                removed += asked
                costs = {0: 0.0} | {number: divergence * error / whole for number, error in levels}
                curves[name] = list(costs.items())
                level_of |= {(name, number): share for share, (number, _) in zip(LEVELS, levels, strict=True)}
        numbers = cheapest(curves, removed)
        return {name: level_of.get((name, number), number / self._sizes[name]) for name, number in numbers.items()}

    def _divergences(self) -> list[float]:
        """Of each block that was pruned, KL in nats, the mean over tokens."""
        assert self._stream is not None
        found = []
        for states in self._states:
            pieces = self._stream.pieces(0, [self._stream.hidden[0], states], TOKENS)
            total = sum(kl.sum(dtype=torch.float64) for dense, pruned in pieces for kl, _ in divergences(dense, pruned))
            found.append(max(0.0, float(total)) / self._batch.numel())
        return found


def _glob(block: Block, linear: Linear) -> str:
    """The full name of a linear; experts of a stack, which see few of the tokens each, go by one name together."""
    name = block.full_name(linear)
    if not linear.stack:
        return name
    stack, _, last = name.rsplit(".", 2)
    return f"{stack}.*.{last}"


def _sums(these: list[Point], those: list[Point]) -> list[Point]:
    return [(m + n, x + y) for (m, x), (n, y) in zip(these, those, strict=True)]
