"""What each stage of pruning costs: amounts of a few kinds of work, as formulas of shapes and tokens.

A machine is the rate at which it does each kind (:class:`~secateur.planning.rates.Rates`), so that the time of a stage
is the sum of its amounts over their rates. Stages are those of a manifest's ``seconds``. Kinds whose unit is the
floating-point operation are counted exactly: a multiplication and an addition are two. The others are what counts of
a routine: the passes over a weight that a score and a mask take are one amount, and one rate, measured together.

Processes that prune together (*ranks*) share the samples, and are dealt the reader groups and spaces of each block; all
read, and one writes.

Notation: O and I are rows and columns of a weight, T tokens, R rows of a score, M channels of a group, K = I/M groups.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from secateur.knapsack import LEVELS
from secateur.models.blocks import Block
from secateur.models.spaces import Linear
from secateur.patterns import NM
from secateur.permute import lsa, shortlist
from secateur.planning.job import Job
from secateur.pruning.allocation import ROWS, probe
from secateur.pruning.order import SURVEYED_ROWS
from secateur.pruning.prepare import Passes
from secateur.reconstruct import admm, refine
from secateur.reconstruct.columns import PANEL
from secateur.scores import SCORES

# The kinds that are counted exactly, in floating-point operations.
FLOPS = ("products", "products32", "grams")

# What follows is about as often as it is: bytes that elementwise operations move, operations that are called.
# How often the elementwise operations of a block read and write the inputs and outputs of its linears: norms, rotary
# embeddings, activation functions, residuals. Between the 4 of a fused implementation and the 12 of a plain one.
ELEMENTWISE = 8
# Operations that a forward pass of a block calls, and for each expert.
CALLS, CALLS_PER_EXPERT = 70, 8
# Bytes that are moved per weight to check a block that is read.
CHECKED = 8
# Reading a tokenizer and a text, and all that is imported for it, takes as long as so many small operations.
STARTING = 150_000
# To score a weight is this share of scoring it, masking it and looking at the result.
SCORING = 1 / 3
# Passes of the search ``lsa`` after groups are grown: from 1 to 8, as long as they gain. Bytes that it moves to value a
# group, for each row; and operations that it calls to reassign a slot.
SEARCH_PASSES, VALUED, CALLS_PER_SLOT = 2, 500, 150
# Products of all rows: ten steps of conjugate gradient, and the residual that they start from.
CG = 11
# A step of tuning: a backward pass takes two products for each of the forward pass. Bytes that its optimizer moves per
# weight.
BACKWARD, STEPPED = 3, 60


@dataclass(frozen=True)
class Cost:
    """An amount of work of one kind.

    Attributes:
        stage: of a run: load, read, calibrate, allocate, order, prune, tune or write.
        what: it is for, in words.
        kind: the name of the rate, in :class:`~secateur.planning.rates.Rates`, at which it is done.
        amount: in the unit of that rate, of all processes together.
        busiest: of it, what the busiest process does.
    """

    stage: str
    what: str
    kind: str
    amount: float
    busiest: float


# What for, of which kind, and how much.
Work = tuple[str, str, float]


def costs_of(job: Job) -> list[Cost]:
    """All that a run does: a cost for each stage, purpose and kind."""
    totals: dict[tuple[str, str, str], tuple[float, float]] = {}

    def add(stage: str, works: Iterable[Work], busiest: float) -> None:
        for what, kind, amount in works:
            before = totals.get((stage, what, kind), (0.0, 0.0))
            totals[stage, what, kind] = before[0] + amount, before[1] + busiest * amount

    add("load", _load(job), 1)
    add("read", _read(job), 1)
    add("write", _write(job), 1)
    add("order", _shared_order(job), 1)
    for index, block in enumerate(job.task.blocks):
        add("calibrate", _calibrate(job, index), 1 / job.ranks)
        add("allocate", _allocate(job, index), 1)
        add("order", _fold(job, block), 1)
        spaces = [list(works) for works in _order(job, block)]
        for works in spaces:
            add("order", works, _dealt([len(works) > 0 for works in spaces], job.ranks))
        add("prune", _judge(job, index), 1 / job.ranks)
        add("tune", _tune(job, index), 1)
        groups = list(job.groups(block))
        sizes = [job.group_cost(block, group) for group, _ in groups]
        for group, share in groups:
            add("prune", _prune(job, block, group, share), _dealt(sizes, job.ranks))
    return [Cost(*key, *amounts) for key, amounts in totals.items() if amounts[0]]


def _dealt(sizes: Sequence[float], ranks: int) -> float:
    """The share that the busiest process has of things of these sizes, which are dealt out, the largest first."""
    loads = [0.0] * ranks
    for size in sorted(sizes, reverse=True):
        loads[loads.index(min(loads))] += size
    return max(loads) / sum(loads) if sum(loads) else 1


# ---------------------------------------------------------------- files


def _load(job: Job) -> Iterator[Work]:
    """Build the model without weights, draw the samples, read what lies outside the blocks."""
    outer = job.outer_parameters * job.stored.itemsize
    yield "model without weights", "calls", 100 * sum(1 for _ in job.model.modules())
    if job.samples.batches:
        yield "samples", "calls", STARTING
        yield "samples", "tokenized", job.samples.tokens
    yield "weights", "disk_read", outer
    yield "weights", "hashed", outer


def _read(job: Job) -> Iterator[Work]:
    """Read each block, in a survey as well and twice for an allocation, check it and take its digest."""
    weights = job.readings * (job.parameters - job.outer_parameters)
    yield "blocks", "disk_read", weights * job.stored.itemsize
    yield "blocks", "hashed", weights * job.stored.itemsize
    yield "blocks", "moved", weights * CHECKED


def _write(job: Job) -> Iterator[Work]:
    """Write each block and a record of it; digests of where weights are zero, of weights, and of the file."""
    pruned = sum(prod(block.shape(linear)) for block in job.task.blocks for linear in block.linears)
    yield "blocks", "disk_write", job.stored_bytes
    yield "blocks", "hashed", pruned + 2 * job.stored_bytes
    yield "blocks", "files", 2 * (1 + len(job.task.blocks))


# ---------------------------------------------------------------- calibration


def _calibrate(job: Job, index: int) -> Iterator[Work]:
    """Run the samples through a block, dense and as it is pruned; the guard's first pass is of this stage."""
    block, passes = job.passes[index]
    surveyed, held_out = job.surveyed(block), job.samples.held_out_tokens
    last = index + 1 == len(job.task.blocks)
    tokens = passes.observe + passes.advance + passes.beside + passes.compare + held_out + surveyed
    ending = [passes.observe] if last or not job.recipe.one_shot else []
    ending += [surveyed] if last else []  # a survey moves the samples on in the pass that observes
    first = job.samples.batches[0].numel() if job.samples.batches else 0
    saved = job.unneeded_flops(block) * sum(max(0, ends - first) for ends in ending)
    yield "forward passes", "products", tokens * job.block_flops(block) - saved
    yield from _elementwise(job, block, "forward passes", tokens)
    grams = job.recipe.needs_gram * job.samples.seen_tokens
    grams += job.samples.seen_tokens if surveyed and SCORES[job.recipe.score].needs_gram else 0
    for group, share in job.groups(block):
        columns = block.shape(group[0])[1]
        yield "statistics", "moved", 4 * share * (passes.observe + surveyed) * columns * job.computed.itemsize
        yield "Gram matrices", "grams", 2 * share * grams * columns**2


def _elementwise(job: Job, block: Block, what: str, tokens: float) -> Iterator[Work]:
    """What is no product in forward passes of a block, on so many tokens."""
    channels = sum(
        share * (sum(block.shape(linear)[0] for linear in group) + block.shape(group[0])[1])
        for group, share in job.groups(block)
    )
    experts = len({linear.expert for linear in block.linears if linear.stack})
    batches = tokens / job.samples.batches[0].numel() if job.samples.batches else 0
    yield what, "moved", ELEMENTWISE * tokens * channels * job.computed.itemsize
    yield what, "calls", batches * (CALLS + CALLS_PER_EXPERT * experts)


# ---------------------------------------------------------------- allocation


def _allocate(job: Job, index: int) -> Iterator[Work]:
    """Some tokens forwards through a block, and back; each linear pruned to all levels, on some of them."""
    if not job.recipe.allocate:
        return
    block, tokens = job.task.blocks[index], probe(job.samples).numel()
    passes, rows = job.probed(index) + tokens * (BACKWARD - 1), min(ROWS, tokens)
    yield "allocation", "products", passes * job.block_flops(block)
    yield from _elementwise(job, block, "allocation", passes)
    for group, share in job.groups(block):
        weights = sum(math.prod(block.shape(linear)) for linear in group)
        yield "allocation", "selected", (2 + len(LEVELS)) * weights
        yield "allocation", "products32", (1 + len(LEVELS)) * 2 * share * rows * weights


# ---------------------------------------------------------------- order


def _shared_order(job: Job) -> Iterator[Work]:
    """Search the one order of the residual space: on rows from all its readers."""
    if job.surveys:
        yield from search(job, SURVEYED_ROWS, job.width)


def _fold(job: Job, block: Block) -> Iterator[Work]:
    """Move the channels of the linears of a block."""
    if job.recipe.orders_channels and job.recipe.fold != "none":
        yield "folding", "moved", 4 * job.block_parameters(block) * job.stored.itemsize


def _order(job: Job, block: Block) -> Iterator[Iterator[Work]]:
    """For each place where a space of a block is read: score what reads it, and search an order."""
    recipe = job.recipe
    if not recipe.orders_channels or recipe.fold == "none":
        return
    for group, _ in job.groups(block):
        rule = job.task.family.rules.get(group[0].reads or "")
        if rule is not None:
            yield _order_of(job, block, group, rule)


def _order_of(job: Job, block: Block, group: Sequence[Linear], rule: str) -> Iterator[Work]:
    recipe = job.recipe
    sizes = [block.shape(linear)[0] for linear in group]
    rows, columns = sum(sizes), block.shape(group[0])[1]
    yield "scores", "pruned", SCORING * rows * columns
    if SCORES[recipe.score].needs_gram:
        yield "scores", "factored", columns**3
    if rule == "block" or (rule == "model" and recipe.fold == "gather"):
        yield from search(job, rows, columns)
    queries, keys, width = job.task.family.heads
    if rule == "heads" and width % _group(job) == 0:
        for _ in range(keys):
            yield from search(job, rows * queries // keys, width)
    if recipe.compare_folds:
        for one in (rows, *sizes):
            yield from search(job, one, columns)


def search(job: Job, rows: int, columns: int) -> Iterator[Work]:
    """An order of the columns of a score (R, I), by the recipe's search; :mod:`secateur.permute` has the methods."""
    recipe, group = job.recipe, _group(job)
    parts = min(recipe.communities, columns // group)
    groups = columns / group / parts
    yield "search", "moved", 8 * rows * columns
    if recipe.permute == "greedy":
        swaps = columns
        yield "search", "distances", parts * (columns / parts) ** 2 * rows + swaps * 2 * group * columns / parts * rows
        yield "search", "moved", 16 * swaps * (columns / parts) ** 2
    if recipe.permute == "lsa-published":
        yield "search", "distances", group * parts * groups**2 * rows
        yield "search", "assigned", group * parts * groups**3
    if recipe.permute == "lsa":
        slots = parts * (group - 1 + SEARCH_PASSES * group)
        yield "search", "products", slots * 2 * shortlist.TERMS * groups**2 * rows
        yield "search", "moved", slots * (VALUED * groups * rows + 32 * groups**2)
        yield "search", "listed", slots * groups * min(lsa.LISTED, groups)
        yield "search", "calls", slots * CALLS_PER_SLOT


def _group(job: Job) -> int:
    """Channels of a group, the most if patterns differ; 1 where weights may go anywhere."""
    return max(pattern.group if isinstance(pattern, NM) else 1 for _, pattern in job.recipe.targets)


# ---------------------------------------------------------------- masks and weights


def _judge(job: Job, index: int) -> Iterator[Work]:
    """What the guard runs after its first pass, of reader groups."""
    block, passes = job.passes[index]
    tokens = max(0, passes.judge - job.samples.held_out_tokens - _judged_epochs(job, passes))
    yield "guard", "products", tokens * job.block_flops(block)
    yield from _elementwise(job, block, "guard", tokens)


def _judged_epochs(job: Job, passes: Passes) -> int:
    """Tokens that the guard runs before and after epochs of tuning."""
    return job.samples.held_out_tokens * (1 + job.recipe.tuning_epochs) if passes.learn else 0


def _tune(job: Job, index: int) -> Iterator[Work]:
    """Epochs, one step after the other, by however many processes, and what the guard runs around them."""
    block, passes = job.passes[index]
    for what, tokens in (("epochs", BACKWARD * passes.learn), ("guard", _judged_epochs(job, passes))):
        yield what, "products", tokens * job.block_flops(block)
        yield from _elementwise(job, block, what, tokens)
    steps = passes.learn / job.samples.batches[0].numel() if passes.learn else 0
    yield "steps", "moved", steps * STEPPED * job.block_parameters(block)


def _prune(job: Job, block: Block, group: Sequence[Linear], share: float) -> Iterator[Work]:
    """Scores, masks and steps of a reader group that sees a share of the tokens."""
    recipe = job.recipe
    shapes = [block.shape(linear) for linear in group]
    columns = shapes[0][1]
    for rows, _ in shapes:
        yield "scores and masks", "pruned", rows * columns
        if recipe.orders_channels and recipe.fold == "none":
            yield from search(job, rows, columns)
        if recipe.needs_inputs:
            yield "output errors", "products32", _error_flops(job, rows, columns, share)
        yield "reconstruction", "products32", _reconstruction_flops(job, rows, columns)
        yield from _beside_products(job, rows, columns)
    if recipe.needs_inputs:  # before a step, whether the first of them loses anything
        yield "output errors", "products32", len(recipe.steps) * _error_flops(job, *shapes[0], share)
    if "sparsegpt" in (recipe.score, recipe.reconstruct):
        yield "factors", "factored", columns**3
    if recipe.reconstruct == "admm":
        yield "factors", "diagonalized", columns**3


def _error_flops(job: Job, rows: int, columns: int, share: float) -> float:
    """Two products: of the weight and of its change, with the Gram matrix or with the sampled rows."""
    return 4 * rows * columns * (columns if job.recipe.needs_gram else job.error_rows(share))


def _reconstruction_flops(job: Job, rows: int, columns: int) -> int:
    """Products of matrices alone, of the method and of the refinement after it."""
    recipe, whole, flops = job.recipe, 2 * rows * columns**2, 0
    if recipe.reconstruct == "cg":
        flops += CG * whole
    if recipe.reconstruct == "admm":
        flops += (1 + 2 * admm.STEPS + 2 * CG + 2 * 2) * whole  # two output errors decide
    if recipe.reconstruct == "sparsegpt":
        flops += _across_panels(rows, columns, _panel(PANEL, _group(job)))
    if recipe.refine:
        group = _exchanged(job)
        panel = _panel(refine.PANEL, group)
        inside = sum(2 * rows * (stop - start) ** 2 for start, stop in _panels(columns, panel))
        refit = (1 + refine.STEPS) * whole if recipe.reconstruct != "none" else 0
        flops += refine.ROUNDS * (whole + inside + _across_panels(rows, columns, panel) + refit)
    return flops


def _beside_products(job: Job, rows: int, columns: int) -> Iterator[Work]:
    """What reconstruction does besides: selections of ADMM, columns of a sweep, exchanges."""
    recipe, weights = job.recipe, rows * columns
    if recipe.reconstruct == "admm":
        yield "reconstruction", "selected", admm.STEPS * weights
        yield "reconstruction", "moved", (12 * admm.STEPS + 2 * 10 * CG) * 4 * weights
    if recipe.reconstruct == "cg":
        yield "reconstruction", "moved", 10 * CG * 4 * weights
    if recipe.reconstruct == "sparsegpt":
        yield "reconstruction", "calls", 8 * columns
        yield "reconstruction", "moved", PANEL / 2 * 8 * weights
    if recipe.refine:
        size = _exchanged(job)
        yield "reconstruction", "calls", refine.ROUNDS * 40 * columns / size
        yield "reconstruction", "moved", refine.ROUNDS * 40 * size * weights


def _exchanged(job: Job) -> int:
    """Channels among which the refinement exchanges weights."""
    return _group(job) if _group(job) > 1 else refine.NEIGHBOURS


def _panel(width: int, group: int) -> int:
    """The columns of a panel: a multiple of the group."""
    return max(group, width - width % group)


def _panels(columns: int, width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, columns, width):
        yield start, min(start + width, columns)


def _across_panels(rows: int, columns: int, width: int) -> int:
    """FLOPs of what reaches from each panel of columns to those on its right, in one product each."""
    return sum(2 * rows * (stop - start) * (columns - stop) for start, stop in _panels(columns, width))
