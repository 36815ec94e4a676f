"""A written model beside the dense one that it was made of: their weights, and what they compute, block by block."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.calibrate.stream import Stream
from secateur.checkpoint import Source, read_orders, resident
from secateur.errors import InputError
from secateur.models.blocks import Block, blocks_of
from secateur.models.fold import fold_outer, select_block, spread_to_queries
from secateur.models.gather import ORDER
from secateur.models.spaces import Family, Linear
from secateur.permute.orders import inverse
from secateur.pruning.prepare import Task

CPU = torch.device("cpu")


def check_same_tensors(source: Source, dense: Source, name: str) -> None:
    """Raise :class:`InputError` unless ``dense``, called ``name``, holds tensors of the same names and shapes."""
    ours = {name: source.shape(name) for name in source.names() if not name.endswith(ORDER)}
    theirs = {name: dense.shape(name) for name in dense.names()}
    if ours != theirs:
        names = sorted(name for name, _ in ours.items() ^ theirs.items())
        raise InputError(f"{name} is another model than {source.folder}: they differ in {', '.join(names[:3])}")


class DenseComparison:
    """Compares a written model with the dense one, while their tensors pass once.

    Tensors are brought back to the dense model's order of channels and compared. Meanwhile the same tokens go through
    two models, in float32: the written one, and the dense one with those weights.

    Attributes:
        wrong: the names of tensors that are not those of the dense model, masked where they were pruned.
    """

    def __init__(
        self,
        source: Source,
        dense: Source,
        skeleton: PreTrainedModel,
        task: Task,
        pruned: Collection[str],
        tuned: Collection[str] = (),
    ) -> None:
        """Nothing has passed yet.

        Args:
            source: the written model.
            dense: the dense one, of the same tensors.
            skeleton: the written one without weights, of which ``task`` has the blocks.
            task: what was to become of its linears.
            pruned: the full names of those that the manifest lists.
            tuned: the full names of other tensors that were tuned, and so may have any values.
        """
        self.wrong: list[str] = []
        self._dense, self._task, self._pruned, self._tuned = dense, task, pruned, tuned
        self._orders = read_orders(source.folder) if task.recipe.fold != "none" else {}
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(skeleton.get_input_embeddings().num_embeddings, (2, 64), generator=generator)
        plain = dense.skeleton(torch.float32)
        self._folded = _Passage(skeleton, task.blocks, tokens)
        self._plain = _Passage(plain, blocks_of(plain, task.family), tokens)

    def outer(self, tensors: Mapping[str, Tensor]) -> None:
        """What lies outside the blocks, of the written model; before any block."""
        self._folded.outer = dict(tensors)
        unfolded = _without_orders(tensors)
        for space, rule in self._task.family.rules.items():
            if rule == "model" and space in self._orders:
                fold_outer(unfolded, self._task.family, space, inverse(self._orders[space]))
        self._compare(unfolded, {})
        self._plain.outer = unfolded

    def block(self, index: int, tensors: dict[str, Tensor]) -> None:
        """All tensors of a block of the written model, which may be changed."""
        block = self._task.blocks[index]
        self._folded.advance(index, tensors)
        unfolded = _without_orders(tensors)
        _unfold_block(unfolded, block, self._task.family, self._orders)
        views: dict[str, list[Linear]] = {}  # by the tensor that they are views of
        for linear in block.linears:
            if block.full_name(linear) in self._pruned:
                views.setdefault(block.prefix + linear.tensor, []).append(linear)
        self._compare(unfolded, views)
        self._plain.advance(index, unfolded)

    def logit_difference(self) -> float:
        """The largest difference of a logit, as a share of the largest logit; after the last block."""
        ours, theirs = self._folded.logits(), self._plain.logits()
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()

    def _compare(self, unfolded: Mapping[str, Tensor], pruned: Mapping[str, Sequence[Linear]]) -> None:
        """Of a weight that was reconstructed, and of what was tuned, only shape and type can be compared."""
        changed = self._task.recipe.changes_weights
        for name, ours in unfolded.items():
            theirs = self._dense.read([name])[name]
            for linear in pruned.get(name, ()):
                kept, weight = linear.view(ours), linear.view(theirs)
                weight.copy_(kept if changed else weight.where(kept != 0, 0))
            same = name in self._tuned or torch.equal(ours, theirs)
            if ours.dtype != theirs.dtype or not same:
                self.wrong.append(name)


class _Passage:
    """Tokens on their way through a model, one block of which is in memory at a time.

    Attributes:
        outer: what lies outside its blocks, as it is stored.
    """

    def __init__(self, model: PreTrainedModel, blocks: Sequence[Block], tokens: Tensor) -> None:
        self.outer: dict[str, Tensor] = {}
        self._model, self._blocks, self._tokens = model, blocks, tokens
        self._stream: Stream | None = None

    def advance(self, index: int, tensors: dict[str, Tensor]) -> None:
        """Through block ``index``, whose tensors these are."""
        block = self._blocks[index]
        with ExitStack() as stack:
            if index == 0:
                stack.enter_context(resident(self._model, self.outer, "", CPU))
            stack.enter_context(resident(block.module, tensors, block.prefix, CPU))
            self._stream = self._stream or Stream(self._model, self._blocks, [self._tokens])
            self._stream.advance(index)

    def logits(self) -> Tensor:
        """What the model makes of what leaves its last block, ``(B, L, V)``."""
        assert self._stream is not None
        with resident(self._model, self.outer, "", CPU):
            return self._stream.output(0).logits


def _without_orders(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(ORDER)}


def _unfold_block(tensors: dict[str, Tensor], block: Block, family: Family, orders: Mapping[str, Tensor]) -> None:
    """Bring the channels of a block back to the order of the dense model, in place."""
    for linear in family.linears:  # readers that were not pruned had to follow as well
        order = orders.get(block.prefix + linear.norm) if linear.norm else None
        if order is not None and block.prefix + linear.tensor in tensors:
            weight = block.stored(linear, tensors)
            weight.copy_(weight[:, inverse(order)])
    for space, rule in family.rules.items():
        order = orders.get(space if rule == "model" else block.prefix + space)
        if order is not None:
            written = inverse(order)
            read = spread_to_queries(written, family.heads) if rule == "heads" else written
            select_block(tensors, block.prefix, family, {space: written}, {space: read})
