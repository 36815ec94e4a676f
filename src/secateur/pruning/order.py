"""Find the orders of a model's channel spaces, and fold them.

Spaces inside a block are ordered when the block is pruned, from the scores of the linears that read them.
The residual space has one order for the whole model, so that it must be found before any block is pruned:
from the scores of all its readers, with statistics of the dense model.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from secateur.masks import retained, select
from secateur.models.blocks import Block
from secateur.models.fold import by_head, join_heads, select_block, spread_to_queries
from secateur.models.gather import ORDER
from secateur.models.spaces import Linear, Rule, reader_groups
from secateur.patterns import NM, Unstructured
from secateur.permute.orders import inverse, share_kept
from secateur.pruning.linear import score_of, search_order
from secateur.pruning.prepare import Task
from secateur.pruning.visit import Visit
from secateur.ranks import Ranks
from secateur.scores import SCORES

# The one order for the whole model is searched on about this many rows, taken evenly from all its readers.
SURVEYED_ROWS = 16_384


class Orderer:
    """Orders and folds the blocks of one model; where the task has no orders to fold, it leaves them as they are.

    Attributes:
        shared: the orders of the spaces that have one for the whole model, int64, by the space's name.
        needs_survey: whether such orders are to be found, by a walk over the dense model.
    """

    def __init__(self, task: Task, ranks: Ranks | None = None) -> None:
        """Nothing is ordered yet. Of what there is to search in a block each of the ``ranks`` takes a part."""
        recipe = task.recipe
        folds = recipe.orders_channels and recipe.fold != "none"
        self._task, self._family = task, task.family
        self._rules = task.family.rules if folds else {}
        self._gathers = folds and recipe.fold == "gather"
        self._ranks = ranks or Ranks()
        self._surveyed: dict[str, tuple[list[NM], list[Tensor]]] = {}
        self.shared: dict[str, Tensor] = {}
        self.needs_survey = folds and recipe.fold == "exact" and self._minds_shared_orders()

    def _minds_shared_orders(self) -> bool:
        """Whether anybody who reads a space that has one order for the whole model has a pattern of groups."""
        spaces = self._spaces("model")
        readers = ((block, [x for x in block.linears if x.reads in spaces]) for block in self._task.blocks)
        return any(self._ordered(block, linears) for block, linears in readers)

    # ---------------------------------------------------------------- one order for the whole model

    def survey(self, visit: Visit) -> None:
        """Remember some rows of the scores of the readers of model-wide spaces in one block."""
        for space in self._spaces("model"):
            readers = self._readers(visit, space)
            groups = reader_groups(linear for linear, _ in readers)
            patterns, rows = self._surveyed.setdefault(space, ([], []))
            patterns += [pattern for _, pattern in readers]
            rows += self._ranks.each([partial(self._surveyed_rows, visit, group, len(readers)) for group in groups])

    def _surveyed_rows(self, visit: Visit, group: Sequence[Linear], readers: int) -> Tensor:
        """Some rows of the scores of a reader group, which are to stand for some of the ``readers`` in one block."""
        rows = []
        for linear in group:
            score = self._score(visit, linear)
            stride = max(1, score.shape[0] * readers * len(self._task.blocks) // SURVEYED_ROWS)
            # Every linear counts by the shares of its own score: some have far larger inputs than others.
            rows.append(score[::stride] / score.mean().clamp_min(torch.finfo(score.dtype).tiny))
        return torch.cat(rows)

    def settle_shared(self) -> None:
        """Search the orders of the surveyed spaces, all readers together."""
        jobs = [partial(self._search, rows, patterns) for patterns, rows in self._surveyed.values()]
        self.shared = dict(zip(self._surveyed, self._ranks.each(jobs), strict=True))
        self._surveyed.clear()

    def fold_shared(self, block: Block, tensors: dict[str, Tensor]) -> None:
        """Fold the model-wide orders found so far into the tensors of one block."""
        for space, order in self.shared.items():
            select_block(tensors, block.prefix, self._family, {space: order}, {space: order})

    # ---------------------------------------------------------------- orders of one block

    def order(self, visit: Visit) -> bool:
        """Search and fold the orders of the spaces inside a block; tensors and statistics follow, in place.

        Returns:
            whether anything may have moved.
        """
        inside = (*self._spaces("heads"), *self._spaces("block"))
        spaces = [space for space in inside if self._can_be_ordered(visit, space)]
        orders = self._ranks.each([partial(self._order_of, visit, space) for space in spaces])
        for space, written in zip(spaces, orders, strict=True):
            read = spread_to_queries(written, self._family.heads) if self._rules[space] == "heads" else written
            select_block(visit.tensors, visit.block.prefix, self._family, {space: written}, {space: read})
            self._follow(visit, [linear for linear in visit.block.linears if linear.reads == space], read)
            visit.results.orders[visit.block.prefix + space] = written
        if self._gathers:
            self._gather(visit)
        return bool(self._rules)

    def _readers(self, visit: Visit, space: str) -> list[tuple[Linear, NM]]:
        return self._ordered(visit.block, (x for x in visit.block.linears if x.reads == space))

    def _can_be_ordered(self, visit: Visit, space: str) -> bool:
        """Whether somebody minds how a space inside the block is ordered, and groups lie inside of heads."""
        patterns = [pattern for _, pattern in self._readers(visit, space)]
        across = self._rules[space] == "heads" and any(self._family.heads[2] % pattern.group for pattern in patterns)
        return bool(patterns) and not across  # between heads no channel may move

    def _order_of(self, visit: Visit, space: str) -> Tensor:
        """The order of a space inside the block, as it is written: int64."""
        readers = self._readers(visit, space)
        if self._rules[space] == "block":
            return self._search_readers(visit, readers)
        heads = by_head(torch.cat([self._score(visit, linear) for linear, _ in readers]), self._family.heads)
        patterns = [pattern for _, pattern in readers]
        return join_heads(torch.stack([self._search([head], patterns) for head in heads]))

    def _gather(self, visit: Visit) -> None:
        """An order for each place where model-wide spaces are read, stored as a tensor of the norm there."""
        block = visit.block
        places = []
        for group in reader_groups(x for space in self._spaces("model") for x in self._family.readers(space)):
            pruned = [linear for linear in group if linear in block.linears]
            if (readers := self._ordered(block, pruned)) and (norm := group[0].norm) is not None:
                places.append((group, pruned, readers, norm))
        orders = self._ranks.each([partial(self._search_readers, visit, readers) for _, _, readers, _ in places])
        for (group, pruned, _, norm), order in zip(places, orders, strict=True):
            for linear in group:  # those that are not pruned read the same inputs
                weight = block.stored(linear, visit.tensors)
                weight.copy_(weight[:, order])
            self._follow(visit, pruned, order)
            visit.tensors[block.prefix + norm + ORDER] = visit.results.orders[block.prefix + norm] = order

    def _follow(self, visit: Visit, readers: Sequence[Linear], read: Tensor) -> None:
        """Give the readers of one place their statistics in the order ``read``: one object for all, as before."""
        seen = [linear.name for linear in readers if linear.name in visit.stats]
        if seen:
            visit.stats.update(dict.fromkeys(seen, visit.stats[seen[0]].select(read.to(visit.block.device))))

    # ---------------------------------------------------------------- what other orders would do

    def compare(self, visit: Visit) -> dict[str, dict[str, float]]:
        """What no groups, no order, and orders that this fold mode does not allow, would retain of each linear's score.

        Called before the block is ordered. By the full names of linears; the key ``gather`` is there only for readers
        of model-wide spaces: the other orders of that mode are the exact ones.
        """
        shares: dict[str, dict[str, float]] = {}
        device = visit.block.device
        for group in reader_groups(visit.block.linears):
            readers = self._ordered(visit.block, group)
            patterns = {visit.block.full_name(linear): pattern for linear, pattern in readers}
            scores = {visit.block.full_name(linear): self._score(visit, linear) for linear, _ in readers}
            shared = self.shared.get(group[0].reads or "")
            for name, score in scores.items():
                alone = self._search([score], [patterns[name]]).to(device)
                unordered = score if shared is None else score[:, inverse(shared).to(device)]
                free = Unstructured(patterns[name].sparsity, SCORES[self._task.recipe.score].scope)
                shares[name] = {
                    "unstructured": retained(score, select(score, free)),
                    "unordered": share_kept(unordered, patterns[name]),
                    "none": share_kept(score[:, alone], patterns[name]),
                }
            if scores and group[0].reads in self._spaces("model"):
                together = self._search(list(scores.values()), list(patterns.values())).to(device)
                for name, score in scores.items():
                    shares[name]["gather"] = share_kept(score[:, together], patterns[name])
        return shares

    # ---------------------------------------------------------------- what all of it rests on

    def _spaces(self, rule: Rule) -> list[str]:
        return [space for space, allowed in self._rules.items() if allowed == rule]

    def _ordered(self, block: Block, linears: Iterable[Linear]) -> list[tuple[Linear, NM]]:
        """Those of some ``linears`` of a block that have an N:M pattern, and so an interest in an order."""
        patterns = ((linear, self._task.patterns[block.full_name(linear)]) for linear in linears)
        return [(linear, pattern) for linear, pattern in patterns if isinstance(pattern, NM)]

    def _score(self, visit: Visit, linear: Linear) -> Tensor:
        """The score of one linear of a block, on the device of its module."""
        weight = visit.block.stored(linear, visit.tensors).to(visit.block.device)
        return score_of(visit.block.full_name(linear), weight, visit.stats.get(linear.name), self._task.recipe)

    def _search_readers(self, visit: Visit, readers: Sequence[tuple[Linear, NM]]) -> Tensor:
        """One order for some readers, int64 on the CPU."""
        return self._search([self._score(visit, linear) for linear, _ in readers], [pattern for _, pattern in readers])

    def _search(self, scores: Sequence[Tensor], patterns: Sequence[NM]) -> Tensor:
        """One order for all ``scores`` (R, I), int64 on the CPU: by the pattern of most of them."""
        ((pattern, _),) = Counter(patterns).most_common(1)
        return search_order(torch.cat(list(scores)), pattern, self._task.recipe).cpu()
