"""Find the orders of a model's channel spaces, and fold them.

Spaces inside a block are ordered when the block is pruned, from the scores of the linears that read them.
The residual space has one order for the whole model, so that it must be found before any block is pruned:
from the scores of all its readers, with statistics of the dense model.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.layers import score_of, search_order, share_kept
from secateur.models.blocks import Block
from secateur.models.fold import by_head, fold_block, inverse, join_heads, spread_to_queries
from secateur.models.spaces import Family, Linear, reader_groups
from secateur.recipe import Recipe
from secateur.runtime.gather import ORDER
from secateur.sparsity import NM
from secateur.stats import InputStats

Tensors = dict[str, Tensor]
Stats = dict[str, InputStats]

# The one order for the whole model is searched on about this many rows, taken evenly from all its readers.
SURVEYED_ROWS = 16_384


class Orderer:
    """Orders and folds the blocks of one model by one recipe.

    Attributes:
        orders: every order found so far, int64, by the full name of its space or linear.
    """

    def __init__(self, recipe: Recipe, family: Family, device: torch.device) -> None:
        assert isinstance(recipe.target, NM)
        self.recipe, self.family, self.device = recipe, family, device
        self.pattern: NM = recipe.target
        self.orders: Tensors = {}
        self.shared: dict[str, list[Tensor]] = {}

    def search(self, score: Tensor) -> Tensor:
        """An order of the columns of ``score`` (R, I) by the recipe's method, int64 on the CPU."""
        return search_order(score, self.recipe).cpu()

    def score(self, block: Block, linear: Linear, tensors: Mapping[str, Tensor], stats: Stats) -> Tensor:
        """The score of one linear of a block, on the device."""
        weight = block.stored(linear, tensors).to(self.device)
        return score_of(block.full_name(linear), weight, stats.get(linear.name), self.recipe)

    # ---------------------------------------------------------------- one order for the whole model

    def survey(self, block: Block, blocks: int, tensors: Mapping[str, Tensor], stats: Stats) -> None:
        """Remember some rows of the scores of the readers of model-wide spaces in one block, of ``blocks``."""
        for space in self._spaces("model"):
            readers = [linear for linear in block.linears if linear.reads == space]
            for linear in readers:
                score = self.score(block, linear, tensors, stats)
                stride = max(1, score.shape[0] * len(readers) * blocks // SURVEYED_ROWS)
                # Every linear counts by the shares of its own score: some have far larger inputs than others.
                rows = score[::stride] / score.mean().clamp_min(torch.finfo(score.dtype).tiny)
                self.shared.setdefault(space, []).append(rows)

    def settle_shared(self) -> None:
        """Search the orders of the surveyed spaces, all readers together."""
        for space, rows in self.shared.items():
            self.orders[space] = self.search(torch.cat(rows))
        self.shared.clear()

    def fold_shared(self, block: Block, tensors: Tensors) -> None:
        """Fold the model-wide orders into the tensors of one block."""
        for space in self._spaces("model"):
            if space in self.orders:
                fold_block(tensors, block.prefix, self.family, space, self.orders[space], self.orders[space])

    # ---------------------------------------------------------------- orders of one block

    def order_block(self, block: Block, tensors: Tensors, stats: Stats) -> None:
        """Search and fold the orders of the spaces inside ``block``; ``tensors`` and ``stats`` follow, in place."""
        for space in (*self._spaces("heads"), *self._spaces("block")):
            readers = [linear for linear in block.linears if linear.reads == space]
            if not readers:
                continue
            score = torch.cat([self.score(block, linear, tensors, stats) for linear in readers])
            if self.family.rules[space] == "block":
                written = read = self.search(score)
            elif self.family.heads[2] % self.pattern.group:
                continue  # groups would reach across heads, between which no channel may move
            else:
                written = join_heads(torch.stack([self.search(head) for head in by_head(score, self.family.heads)]))
                read = spread_to_queries(written, self.family.heads)
            fold_block(tensors, block.prefix, self.family, space, written, read)
            self._follow(stats, [linear.name for linear in readers], read)
            self.orders[block.prefix + space] = written
        if self.recipe.fold == "gather":
            self._gather(block, tensors, stats)

    def _gather(self, block: Block, tensors: Tensors, stats: Stats) -> None:
        """An order for each place where model-wide spaces are read, stored as a tensor of the norm there."""
        for group in reader_groups(x for space in self._spaces("model") for x in self.family.readers(space)):
            pruned = [linear for linear in group if linear in block.linears]
            norm = group[0].norm
            if not pruned or norm is None:
                continue
            order = self.search(torch.cat([self.score(block, linear, tensors, stats) for linear in pruned]))
            for linear in group:  # those that are not pruned read the same inputs
                weight = block.stored(linear, tensors)
                weight.copy_(weight[:, order])
            self._follow(stats, [linear.name for linear in pruned], order)
            tensors[block.prefix + norm + ORDER] = self.orders[block.prefix + norm] = order

    def _follow(self, stats: Stats, names: list[str], read: Tensor) -> None:
        """Give the readers of one place their statistics in the order ``read``: one object for all, as before."""
        seen = [name for name in names if name in stats]
        if seen:
            stats.update(dict.fromkeys(seen, stats[seen[0]].select(read.to(self.device))))

    def _spaces(self, rule: str) -> list[str]:
        return [space for space, allowed in self.family.rules.items() if allowed == rule]

    # ---------------------------------------------------------------- what other orders would do

    def compare(self, block: Block, tensors: Mapping[str, Tensor], stats: Stats) -> dict[str, dict[str, float]]:
        """What no order, and orders that this fold mode does not allow, would retain of each linear's score.

        Called before the block is ordered. The key ``gather`` is there only for readers of model-wide
        spaces: the other orders of that mode are the exact ones.
        """
        shares: dict[str, dict[str, float]] = {}
        for group in reader_groups(block.linears):
            scores = {linear.name: self.score(block, linear, tensors, stats) for linear in group}
            shared = self.orders.get(group[0].reads or "")
            for name, score in scores.items():
                alone = self.search(score).to(self.device)
                unordered = score if shared is None else score[:, inverse(shared).to(self.device)]
                shares[name] = {
                    "unordered": share_kept(unordered, self.pattern),
                    "none": share_kept(score[:, alone], self.pattern),
                }
            if group[0].reads in self._spaces("model"):
                together = self.search(torch.cat(list(scores.values()))).to(self.device)
                for name, score in scores.items():
                    shares[name]["gather"] = share_kept(score[:, together], self.pattern)
        return shares
