"""How much memory a run takes, from the shapes of its model, and how much of what is given is left for what may wait.

In memory at any time are what lies outside the blocks, one block as its module computes with it, three as stored, and
the largest of what observing, ordering and pruning need: that must fit. All else waits in rooms
(:mod:`secateur.memory`), or in a file where they are full: hidden states, the Gram matrices of a block, and weights of
experts that are judged together.

The numbers of copies are those of the code, rounded up; docs/memory.md compares them with what processes took.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from secateur.calibrate.divergence import TOKENS
from secateur.devices import free_memory, resident_memory
from secateur.errors import InputError
from secateur.models.blocks import Block
from secateur.models.spaces import Linear, judged_together, reader_groups
from secateur.pruning.order import SURVEYED_ROWS
from secateur.pruning.prepare import TOKENS_OF_A_STEP, Samples, Selection, Task
from secateur.scores import SCORES
from secateur.sizes import parse_size, show_size
from secateur.stats.inputs import gram_bytes

# Of the memory that is free at the start, what a run takes unless it is told: others may want some.
SHARE = 0.9
# What libraries take when they are first used, as for compiled kernels, and what the allocator holds between two trims.
OVERHEAD = 256 << 20
# The block that is computed with, the one after, which is read, and the one before, which is written.
STORED = 3
FLOAT = torch.float32.itemsize
# Float32 copies of a weight while its score and mask are found, and during a step.
SCORING, STEPPING = 6, 12
# Float32 copies of a block while it is tuned: gradients twice, masters, two moments, values at first, at best and now.
TUNING = 8
# Activations of a batch that wait for their gradients, for each input and output channel of a linear.
ACTIVATIONS = 3
# Masks of a linear that is judged: the first, the current one, and that of a step.
MASKS = 3
# Float32 copies of all scores that an order is searched for.
SEARCHING = 4
# A Gram matrix: copies of it as it is, with the factor of its inverse, and with its spectrum.
PLAIN, FACTORED, SPECTRAL = 3, 5, 7
# Copies of the logits of those tokens whose distributions are compared at a time.
LOGITS = 7
# Activations of a batch: copies of its hidden states, and of what all linears of a block put out.
STATES, OUTPUTS = 8, 3

Places = dict[torch.device, int]


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run takes besides what the process has before it.

    Attributes:
        outer: what lies outside the blocks: as stored, and as modules compute with it where that is other memory.
        block: the largest block, likewise, with the next one and the one before, as stored.
        work: the most that is needed beside both, on the device that computes.
        waiting: the most that waits for its turn inside a block.
    """

    outer: tuple[int, int]
    block: tuple[int, int]
    work: int
    waiting: int

    def takes(self, device: torch.device) -> Mapping[torch.device, int]:
        """What must fit, by device."""
        stored = self.outer[0] + self.block[0] + OVERHEAD
        computing = self.outer[1] + self.block[1] + self.work
        host = torch.device("cpu")
        return {host: stored + computing} if device.type == "cpu" else {device: computing, host: stored}


class Tensors(Protocol):
    """What is stored of a model: a :class:`~secateur.checkpoint.source.Source`, or something that knows as much."""

    @property
    def stacks(self) -> Any:
        """Which tensors are stacks of others in the files, as ``members``."""

    def names(self, prefix: str = "") -> list[str]:
        """The names of the tensors that begin with ``prefix``."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor ``name``."""

    def dtype(self, name: str) -> torch.dtype:
        """The type of the tensor ``name`` as stored."""


def footprint(
    task: Selection,
    source: Tensors,
    model: PreTrainedModel,
    samples: Samples,
    device: torch.device,
    work: Callable[[Block], int],
) -> Footprint:
    """That of a walk over ``model``, the skeleton of ``source``: its parameters have the dtype that is computed in.

    ``work`` says what is needed beside a block for what is done to it, in bytes.
    """
    computed = next(model.parameters()).dtype
    prefixes = tuple(block.prefix for block in task.blocks)
    outer = _held(source, [name for name in source.names() if not name.startswith(prefixes)], computed, device)
    blocks = [_held(source, source.names(block.prefix), computed, device) for block in task.blocks]
    copies = STORED + bool(source.stacks.members)  # a stack is read layer by layer, and then joined
    blocks = [(copies * stored, inside) for stored, inside in blocks]
    meant = [block for block in task.blocks if block.linears]
    works = [max(_observing(task, block, model, samples), work(block)) for block in meant]
    waiting = [_waiting(task, block, guarded=samples.held_out > 0) for block in meant]
    return Footprint(outer, max(blocks, key=sum), max(*works, _comparing(model, samples)), max(waiting))


def pruning(task: Task, model: PreTrainedModel, block: Block) -> int:
    """The most that ordering, pruning and tuning ``block`` need beside it."""
    ordering = _ordering(task, block, model.config.get_text_config().hidden_size)
    return max(ordering, _pruning(task, block), _tuning(task, block))


def quantizing(task: Selection, _: PreTrainedModel, block: Block) -> int:
    """The most that quantizing ``block`` needs beside it."""
    sizes = [_size(block, [linear]) for linear in block.linears]
    grams = [gram_bytes(block.weight(linear).shape[1]) for linear in block.linears if task.recipe.needs_gram]
    # GPTQ factors a Gram matrix whose channels are in another order.
    return STEPPING * FLOAT * max(sizes) + (FACTORED + 1) * max(grams, default=0)


def _held(source: Tensors, names: Iterable[str], computed: torch.dtype, device: torch.device) -> tuple[int, int]:
    """Bytes of tensors as stored, and beside them in modules that compute in ``computed`` on ``device``."""
    stored = inside = 0
    for name in names:
        number, dtype = math.prod(source.shape(name)), source.dtype(name)
        stored += number * dtype.itemsize
        inside += 0 if device.type == "cpu" and dtype == computed else number * computed.itemsize
    return stored, inside


def _observing(task: Selection, block: Block, model: PreTrainedModel, samples: Samples) -> int:
    """Activations of one batch and what statistics make of them, with one Gram matrix."""
    config, itemsize = model.config.get_text_config(), next(model.parameters()).dtype.itemsize
    shapes = {linear: block.weight(linear).shape for linear in block.linears}
    tokens = max((batch.numel() for batch in samples.batches), default=0)
    length = max((batch.shape[1] for batch in samples.batches), default=0)
    widest = max((columns for _, columns in shapes.values()), default=0)
    # Each token passes some experts of a stack and not all, and they are all of one shape.
    often = getattr(config, "num_experts_per_tok", 1)
    put_out = sum(rows * (often if x.stack else 1) for x, (rows, _) in shapes.items() if not x.expert)
    states = itemsize * (OUTPUTS * put_out + STATES * config.hidden_size) + 2 * FLOAT * widest
    if getattr(config, "_attn_implementation", None) == "eager":
        states += getattr(config, "num_attention_heads", 0) * length * (itemsize + 2 * FLOAT)
    return tokens * states + (gram_bytes(widest) if task.recipe.needs_gram else 0)


def _comparing(model: PreTrainedModel, samples: Samples) -> int:
    """Logits of some tokens by the dense model and by the pruned one, and what their divergence is computed of."""
    return LOGITS * FLOAT * TOKENS * model.config.get_text_config().vocab_size if samples.held_out else 0


def _ordering(task: Task, block: Block, width: int) -> int:
    """The scores that an order is searched for; those of the survey, of ``width`` channels, wait for it as well."""
    recipe, rules = task.recipe, task.family.rules
    if not recipe.orders_channels:
        return 0
    inner: Counter[str] = Counter()
    for linear in block.linears:
        if linear.reads and rules.get(linear.reads, "model") != "model":
            inner[linear.reads] += _size(block, [linear])
    searched = [*inner.values(), max(_size(block, [linear]) for linear in block.linears)]
    if recipe.fold == "gather" or recipe.compare_folds:
        searched += [_size(block, group) for group in reader_groups(block.linears)]
    return SEARCHING * FLOAT * max(*searched, SURVEYED_ROWS * width) + _factors(task, block, ordering=True)


def _pruning(task: Task, block: Block) -> int:
    """Copies of one linear, the masks of all that are judged with it, and a Gram matrix with its factors."""
    recipe = task.recipe
    copies = STEPPING if recipe.steps or recipe.sweeps else SCORING
    largest = max(_size(block, [linear]) for linear in block.linears)
    judged = max(_size(block, group) for group in judged_together(block.linears))
    return copies * FLOAT * largest + MASKS * judged + _factors(task, block)


def _tuning(task: Task, block: Block) -> int:
    """Copies of a block for steps of its optimizer, and the activations of a batch, which wait for their gradients."""
    if not task.recipe.tuning_epochs:
        return 0
    weights = sum(parameter.numel() for parameter in block.module.parameters())
    channels = sum(sum(block.weight(linear).shape) for linear in block.linears if not linear.expert)
    tokens = max(TOKENS_OF_A_STEP, task.recipe.length)
    return FLOAT * (TUNING * weights + ACTIVATIONS * tokens * channels)


def _factors(task: Task, block: Block, *, ordering: bool = False) -> int:
    """The largest Gram matrix, and what is computed from it: of scores alone while an order is searched."""
    recipe = task.recipe
    by_score = SCORES[recipe.score].needs_gram
    if not (by_score if ordering else recipe.needs_gram):
        return 0
    copies = FACTORED if by_score or recipe.reconstruct == "sparsegpt" else PLAIN
    if recipe.reconstruct == "admm" and not ordering:
        copies = SPECTRAL
    return copies * max(gram_bytes(block.weight(linear).shape[1]) for linear in block.linears)


def _size(block: Block, linears: Iterable[Linear]) -> int:
    """The number of weights."""
    return sum(block.weight(linear).numel() for linear in linears)


def _waiting(task: Selection, block: Block, guarded: bool) -> int:
    """Gram matrices of a block, and where steps are judged, weights before and after a step and as stored."""
    grams = sum(gram_bytes(block.weight(group[0]).shape[1]) for group in reader_groups(block.linears))
    judged = max(_size(block, group) for group in judged_together(block.linears))
    return (grams if task.recipe.needs_gram else 0) + (3 * FLOAT * judged if guarded else 0)


def places(takes: Footprint, bound: str | None, device: torch.device, beside: int = 1) -> tuple[Places, Places]:
    """The bytes, by device, for hidden states and for what else waits.

    What waits inside a block comes first: where it does not fit there are more passes over the samples, while hidden
    states are merely read and written. Of so many processes that run ``beside`` each other each takes its part of what
    is free.

    Raises:
        InputError: when the ``bound``, or else what is free, does not hold what must fit.
    """
    host = torch.device("cpu")
    before = resident_memory()
    given = parse_size(bound) - before if bound is not None else int(SHARE * free_memory(host)) // beside
    needed = takes.takes(device)
    if needed[host] > given:
        outer, block = sum(takes.outer), sum(takes.block)
        work, enough = needed[host] - outer - block, needed[host] + before + 10**8
        have = f"--memory {bound} leaves {show_size(max(0, given))}" if bound else f"{show_size(given)} are to be had"
        raise InputError(
            f"this takes {show_size(needed[host])} of memory at a time, as far as shapes tell ({show_size(outer)} "
            f"for what lies outside the blocks, {show_size(block)} for blocks, {show_size(work)} for the work on it), "
            f"and {have} beside the {show_size(before)} that the process has already: give "
            f"--memory {show_size(enough).replace(' ', '')} or more if the machine has it"
        )
    free = {place: given if place == host else int(SHARE * free_memory(place)) for place in needed}
    states, inside, wanted = {}, {}, takes.waiting
    for place, size in needed.items():
        left = max(0, free[place] - size)
        inside[place] = min(left, wanted)
        states[place] = left - inside[place]
        wanted -= inside[place]
    return states, inside
