"""What each stage of pruning costs: amounts of a few kinds of work, as formulas of shapes and tokens.

A machine is the rate at which it does each kind (:class:`~secateur.planning.rates.Rates`), so that the time of a stage
is the sum of its amounts over their rates. Stages are those of a manifest's ``seconds``. Kinds whose unit is the
floating-point operation are counted exactly: a multiplication and an addition are two. The others are what counts of
a routine: the passes over a weight that a score and a mask take are one amount, and one rate, measured together.

Notation: O and I are rows and columns of a weight, T tokens, R rows of a score, M channels of a group, K = I/M groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from secateur.models.blocks import Block
from secateur.patterns import NM
from secateur.planning.job import Job
from secateur.pruning.order import SURVEYED_ROWS
from secateur.reconstruct import admm, refine, sparsegpt
from secateur.scores import SCORES

# The kinds that are counted exactly, in floating-point operations.
FLOPS = ("products", "products32", "grams")
# How often the elementwise operations of a block read and write the inputs and outputs of its linears: norms, rotary
# embeddings, activation functions, residuals. Between the 4 of a fused implementation and the 12 of a plain one.
ELEMENTWISE = 8
# Operations that a forward pass of a block calls, and for each expert.
CALLS, CALLS_PER_EXPERT = 70, 8
# Bytes that are moved per weight to check, convert and copy it when a block is read.
READING = 16
# Reading a tokenizer and a text, and all that is imported for it, takes as long as so many small operations.
STARTING = 150_000
# Passes of the search ``lsa`` over the groups after they are grown: between 2 and 8, as long as they gain.
SEARCH_PASSES = 4
# A product of all rows of ten steps of conjugate gradient, and of the residual that they start from.
CG = 11


@dataclass(frozen=True)
class Cost:
    """An amount of work of one kind.

    Attributes:
        stage: of a run: load, read, calibrate, order, prune or write.
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


def costs_of(job: Job) -> list[Cost]:
    """All that a run does: a cost for each stage, purpose and kind."""
    totals: dict[tuple[str, str, str], float] = {}
    for stage in (_load, _read, _calibrate, _order, _prune, _write):
        for cost in stage(job):
            key = (cost.stage, cost.what, cost.kind)
            totals[key] = totals.get(key, 0) + cost.amount
    return [Cost(*key, amount) for key, amount in totals.items() if amount]


# ---------------------------------------------------------------- files


def _load(job: Job) -> Iterator[Cost]:
    """Build the model without weights, draw the samples, read what lies outside the blocks."""
    outer = job.outer_parameters * job.stored.itemsize
    yield Cost("load", "model without weights", "calls", 100 * sum(1 for _ in job.model.modules()))
    if job.samples.batches:
        yield Cost("load", "samples", "calls", STARTING)
        yield Cost("load", "samples", "tokenized", job.samples.tokens)
    yield Cost("load", "weights", "disk_read", outer)
    yield Cost("load", "weights", "hashed", outer)


def _read(job: Job) -> Iterator[Cost]:
    """Read each block, in the survey as well, check it and take its digest."""
    times = 1 + job.surveys
    for block in job.task.blocks:
        weights = job.block_parameters(block)
        yield Cost("read", "blocks", "disk_read", times * weights * job.stored.itemsize)
        yield Cost("read", "digests", "hashed", times * weights * job.stored.itemsize)
        yield Cost("read", "checks", "moved", times * READING * weights)


def _write(job: Job) -> Iterator[Cost]:
    """Write each block and a record of it; digests of where weights are zero, of weights, and of the file."""
    pruned = sum(rows * columns for rows, columns in _shapes(job))
    yield Cost("write", "blocks", "disk_write", job.stored_bytes)
    yield Cost("write", "digests", "hashed", pruned + 2 * job.stored_bytes)
    yield Cost("write", "files", "files", 2 * (1 + len(job.task.blocks)))


# ---------------------------------------------------------------- calibration


def _calibrate(job: Job) -> Iterator[Cost]:
    """Run the samples through the dense block, and through the pruned one; the guard's first pass is of this stage."""
    first = job.samples.batches[0].numel() if job.samples.batches else 0
    for index, (block, passes) in enumerate(job.passes):
        last = index + 1 == len(job.task.blocks)
        tokens = passes.observe + passes.advance + job.samples.held_out_tokens + job.surveyed
        ends_early = (0 if job.recipe.one_shot and not last else passes.observe) + (job.surveyed if last else 0)
        saved = job.unneeded_flops(block) * max(0, ends_early - first * (bool(passes.observe) + (last and job.surveys)))
        yield Cost("calibrate", "forward passes", "products", (tokens * job.block_flops(block) - saved) / job.ranks)
        yield from _elementwise(job, block, "calibrate", "forward passes", tokens / job.ranks)
        yield from _statistics(job, block, passes.observe, job.recipe.needs_gram)
        yield from _statistics(job, block, job.surveyed, SCORES[job.recipe.score].needs_gram)


def _statistics(job: Job, block: Block, tokens: int, gram: bool) -> Iterator[Cost]:
    for group, share in job.groups(block):
        seen, columns = share * tokens / job.ranks, job.shape(block, group[0])[1]
        yield Cost("calibrate", "statistics", "moved", 4 * seen * columns * job.computed.itemsize)
        if gram:
            yield Cost("calibrate", "Gram matrices", "grams", 2 * seen * columns**2)


def _elementwise(job: Job, block: Block, stage: str, what: str, tokens: float) -> Iterator[Cost]:
    """What is no product in forward passes of a block, on so many tokens."""
    channels = sum(
        share * (sum(job.shape(block, x)[0] for x in group) + job.shape(block, group[0])[1])
        for group, share in job.groups(block)
    )
    experts = len({linear.expert for linear in block.linears if linear.stack})
    batches = tokens / max(1, job.samples.batches[0].numel()) if job.samples.batches else 0
    yield Cost(stage, what, "moved", ELEMENTWISE * tokens * channels * job.computed.itemsize)
    yield Cost(stage, what, "calls", batches * (CALLS + CALLS_PER_EXPERT * experts))


# ---------------------------------------------------------------- order


def _order(job: Job) -> Iterator[Cost]:
    """Score what reads a space, search an order, fold it."""
    recipe, rules = job.recipe, job.task.family.rules
    if not recipe.orders_channels or recipe.fold == "none":
        return
    surveyed = 0
    for block in job.task.blocks:
        for group, _ in job.groups(block):
            shapes = [job.shape(block, linear) for linear in group]
            weights = sum(rows * columns for rows, columns in shapes)
            rows, columns = sum(rows for rows, _ in shapes), shapes[0][1]
            rule = rules.get(group[0].reads or "")
            yield Cost("order", "scores", "pruned", (rule is not None) * weights / 3)
            yield Cost("order", "folding", "moved", 4 * weights * job.stored.itemsize)
            if SCORES[recipe.score].needs_gram and rule is not None:
                yield Cost("order", "scores", "factored", columns**3)
            if rule == "model" and recipe.fold == "gather":
                yield from search(job, "order", rows, columns)
            elif rule == "model":
                surveyed = columns
            elif rule == "block":
                yield from search(job, "order", rows, columns)
            elif rule == "heads":
                queries, keys, width = job.task.family.heads
                if width % _group(job) == 0:
                    for _ in range(keys):
                        yield from search(job, "order", rows * queries // keys, width)
            if recipe.compare_folds:
                yield from search(job, "order", rows, columns)
                for each, _ in shapes:
                    yield from search(job, "order", each, columns)
    if surveyed and job.surveys:
        yield from search(job, "order", SURVEYED_ROWS, surveyed)


def search(job: Job, stage: str, rows: int, columns: int) -> Iterator[Cost]:
    """An order of the columns of a score (R, I), by the recipe's search; :mod:`secateur.permute` has the methods."""
    recipe, group = job.recipe, _group(job)
    parts = min(recipe.communities, columns // group)
    groups = columns / group / parts
    yield Cost(stage, "search", "moved", 8 * rows * columns)
    if recipe.permute == "greedy":
        swaps = columns
        pairs = (columns / parts) ** 2 * parts
        yield Cost(stage, "search", "distances", (pairs + swaps * 2 * group * columns / parts) * rows)
        yield Cost(stage, "search", "moved", 16 * swaps * pairs)
    elif recipe.permute != "heuristic":
        turns = group if recipe.permute == "lsa-published" else group - 1 + SEARCH_PASSES * group
        yield Cost(stage, "search", "distances", turns * parts * groups**2 * rows)
        yield Cost(stage, "search", "assigned", turns * parts * groups**3)
        yield Cost(stage, "search", "moved", 4 * turns * group * rows * columns / group)


def _group(job: Job) -> int:
    target = job.recipe.target
    return target.group if isinstance(target, NM) else 1


# ---------------------------------------------------------------- masks and weights


def _prune(job: Job) -> Iterator[Cost]:
    """Score, mask and steps, reader group after reader group; what the guard runs after its first pass."""
    recipe = job.recipe
    for block, passes in job.passes:
        judged = max(0, passes.judge - job.samples.held_out_tokens)
        yield Cost("prune", "guard", "products", judged * job.block_flops(block) / job.ranks)
        yield from _elementwise(job, block, "prune", "guard", judged / job.ranks)
        for group, share in job.groups(block):
            shapes = [job.shape(block, linear) for linear in group]
            columns = shapes[0][1]
            for rows, _ in shapes:
                yield Cost("prune", "scores and masks", "pruned", rows * columns)
                if recipe.orders_channels and recipe.fold == "none":
                    yield from search(job, "prune", rows, columns)
                if recipe.needs_inputs:
                    yield Cost("prune", "output errors", "products32", _error_flops(job, rows, columns, share))
                yield Cost("prune", "reconstruction", "products32", _reconstruction_flops(job, rows, columns))
                yield from _rest_of_reconstruction(job, rows, columns)
            if recipe.needs_inputs and recipe.steps:  # whether the first of them loses anything
                losses = len(recipe.steps) * _error_flops(job, *shapes[0], share)
                yield Cost("prune", "output errors", "products32", losses)
            if "sparsegpt" in (recipe.score, recipe.reconstruct):
                yield Cost("prune", "factors", "factored", columns**3)
            if recipe.reconstruct == "admm":
                yield Cost("prune", "factors", "diagonalized", columns**3)


def _error_flops(job: Job, rows: int, columns: int, share: float) -> float:
    """Two products: of the weight and of its change, with the Gram matrix or with the sampled rows."""
    return 4 * rows * columns * (columns if job.recipe.needs_gram else job.error_rows(share))


def _reconstruction_flops(job: Job, rows: int, columns: int) -> int:
    """Products of matrices alone, of the method and of the refinement after it."""
    recipe, whole = job.recipe, 2 * rows * columns**2
    flops = 0
    if recipe.reconstruct == "cg":
        flops += CG * whole
    if recipe.reconstruct == "admm":
        flops += (1 + 2 * admm.STEPS + 2 * CG + 2 * 2) * whole  # two output errors decide
    if recipe.reconstruct == "sparsegpt":
        flops += _panels(rows, columns, _width(sparsegpt.BLOCK, _group(job)))
    if recipe.refine:
        refit = (1 + refine.STEPS) * whole if recipe.reconstruct != "none" else 0
        group = _group(job) if isinstance(recipe.target, NM) else refine.NEIGHBOURS
        width = _width(refine.PANEL, group)
        inside = sum(2 * rows * (stop - start) * (stop - start) for start, stop in _edges(columns, width))
        flops += refine.ROUNDS * (whole + inside + _panels(rows, columns, width) + refit)
    return flops


def _rest_of_reconstruction(job: Job, rows: int, columns: int) -> Iterator[Cost]:
    """What is no product of matrices: selections of ADMM, columns of a sweep, exchanges."""
    recipe, group = job.recipe, _group(job)
    if recipe.reconstruct == "admm":
        yield Cost("prune", "reconstruction", "selected", admm.STEPS * rows * columns)
        yield Cost("prune", "reconstruction", "moved", (12 * admm.STEPS + 2 * 10 * CG) * 4 * rows * columns)
    if recipe.reconstruct == "cg":
        yield Cost("prune", "reconstruction", "moved", 10 * CG * 4 * rows * columns)
    if recipe.reconstruct == "sparsegpt":
        yield Cost("prune", "reconstruction", "calls", 8 * columns)
        yield Cost("prune", "reconstruction", "moved", sparsegpt.BLOCK / 2 * 8 * rows * columns)
    if recipe.refine:
        size = group if isinstance(recipe.target, NM) else refine.NEIGHBOURS
        yield Cost("prune", "reconstruction", "calls", refine.ROUNDS * 40 * columns / size)
        yield Cost("prune", "reconstruction", "moved", refine.ROUNDS * 40 * size * rows * columns)


def _width(panel: int, group: int) -> int:
    """The columns of a panel, a multiple of the group."""
    return max(group, panel - panel % group)


def _edges(columns: int, width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, columns, width):
        yield start, min(start + width, columns)


def _panels(rows: int, columns: int, width: int) -> int:
    """FLOPs of what reaches from each panel of columns to those on its right, in one product each."""
    return sum(2 * rows * (stop - start) * (columns - stop) for start, stop in _edges(columns, width))


def _shapes(job: Job) -> Iterator[tuple[int, int]]:
    for block in job.task.blocks:
        for linear in block.linears:
            yield job.shape(block, linear)
