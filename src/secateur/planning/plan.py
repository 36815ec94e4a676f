"""``plan()``: what pruning a model would take here, and what it would come to. From its config alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.benchmark.machine import Machine, this_machine
from secateur.checkpoint import outline
from secateur.data import share_out
from secateur.devices import DTYPES
from secateur.errors import InputError
from secateur.models.blocks import left_dense
from secateur.patterns import count_kept
from secateur.planning.costs import FLOPS, Cost, costs_of
from secateur.planning.job import Job
from secateur.planning.memory import Memory, memory_of
from secateur.planning.rates import Rates, measure, read_rate
from secateur.planning.sizes import Bound, RolePlan, bounds_of, roles_of
from secateur.pruning.journal import Setting
from secateur.pruning.order import Orderer
from secateur.pruning.prepare import prepare, samples_to_come, tokens_of_a_pass
from secateur.recipe import Recipe

# One after the other, while a thread reads the next block and another one writes the one before.
COMPUTING = ("calibrate", "order", "prune", "tune")
STAGES = ("load", "read", *COMPUTING, "write")
# A plan lists the batches of a run, and no calibration set is as large as this.
MOST_TOKENS = 10**10


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk, without headers of files.

    Attributes:
        read: of the model, each time that they are read.
        written: of the model that is written.
        temporary: besides, until the run ends: a GGUF file as a folder, and what finds no room in memory.
    """

    read: int
    written: int
    temporary: int


@dataclass(frozen=True)
class Plan:
    """What it would take to prune a model, and what it would be, pruned and packed.

    Attributes:
        model: the model, as it was named.
        method: the recipe in a few words.
        pattern: what its linears would obey.
        blocks: how many it has.
        parameters: its weights.
        prunable: those in linears that are pruned.
        removed: those that will be zero.
        left_dense: weights of blocks that nobody asked to leave dense and that are not pruned: by name, the share of
            all weights in blocks.
        calibration: by source, how many samples it gives; the model is not asked to write any.
        tokens: that the progress bar counts: over all blocks and passes, those that a block is run on.
        flops: floating-point operations of products of matrices, by what they are for.
        costs: all that is done, stage by stage.
        seconds: expected, by stage. Blocks are read and written beside the rest.
        total: seconds from the beginning to the end.
        memory: bytes at the peak.
        disk: bytes on the disk.
        roles: its prunable linears by role.
        bounds: the ways to store them.
        dense_linears: linears that Secateur stores packed, but expands to run them: transposed weights.
        machine: where the read rates were measured.
        rates: of the machine that the times are for.
        ranks: processes that share the samples.
    """

    model: str
    method: str
    pattern: str
    blocks: int
    parameters: int
    prunable: int
    removed: int
    left_dense: Mapping[str, float]
    calibration: Mapping[str, int]
    tokens: int
    flops: Mapping[str, int]
    costs: list[Cost]
    seconds: Mapping[str, float]
    total: float
    memory: Memory
    disk: Disk
    roles: list[RolePlan]
    bounds: list[Bound]
    dense_linears: int
    machine: Machine
    rates: Rates
    ranks: int


def plan(
    model: str | Path,
    recipe: Recipe | None = None,
    *,
    rates: Rates | None = None,
    ranks: int = 1,
    rate: Callable[[int], float] = read_rate,
) -> Plan:
    """Predict what pruning ``model`` by ``recipe`` takes, and what packing the result would save.

    Counts and sizes are exact, operations of the search for orders excepted; times and memory are estimates. Sizes of
    packed models are those that ``secateur pack`` writes of a bfloat16 checkpoint. Bounds on the speed of generating
    leave out the KV cache and the activations, which are read as well: real times can only be longer.

    Args:
        model: a hub name, a folder that may hold nothing but its config, or a ``.gguf`` file.
        recipe: what is to be done; by default RIA at 50 %, calibrated on C4.
        rates: of the machine that prunes. By default this one is measured, which takes some seconds.
        ranks: the number of processes that share the calibration samples, each with a device of that kind.
        rate: what measures how fast a number of bytes is read, for the bounds.

    Raises:
        InputError: when the model or the recipe cannot be used, or do not fit each other.
    """
    recipe = recipe or Recipe()
    if ranks < 1:
        raise InputError(f"{ranks} processes are too few to prune with")
    if recipe.samples * recipe.length > MOST_TOKENS:
        raise InputError(f"{recipe.samples} samples of {recipe.length} tokens are more than any text has (--samples)")
    skeleton = outline(str(model))
    if empty := [name for name, parameter in skeleton.named_parameters() if not parameter.numel()]:
        raise InputError(f"by its config {model} has weights without numbers ({empty[0]}): a size there is 0")
    task = prepare(skeleton, recipe)
    stored = skeleton.config.dtype or torch.float32
    if rates is None:
        setting = Setting.choose(recipe, stored, {})
        rates, batch = measure(torch.device(setting.device), DTYPES[setting.dtype]), setting.batch
    else:
        batch = max(1, tokens_of_a_pass(recipe, rates.device) // recipe.length)
    samples = samples_to_come(recipe, skeleton.config, batch)
    skeleton.to(DTYPES[rates.dtype])
    memory = memory_of(
        skeleton,
        task,
        samples,
        stored=stored,
        device=rates.device,
        process=rates.process,
        free=rates.free,
        device_free=rates.device_free,
        ranks=ranks,
    )
    job = Job(
        model=skeleton,
        task=task,
        samples=samples,
        stored=stored,
        computed=DTYPES[rates.dtype],
        surveys=Orderer(task).needs_survey,
        room=memory.grams,
        ranks=ranks,
    )
    costs = costs_of(job)
    flops: dict[str, int] = {}
    seconds = dict.fromkeys(STAGES, 0.0)
    for cost in costs:
        seconds[cost.stage] += cost.busiest / getattr(rates, cost.kind)
        if cost.kind in FLOPS:
            flops[cost.what] = flops.get(cost.what, 0) + round(cost.amount)
    computing = sum(seconds[stage] for stage in COMPUTING)
    linears = [(block, linear) for block in task.blocks for linear in block.linears]
    shapes = [job.shape(*one) for one in linears]
    prunable = sum(rows * columns for rows, columns in shapes)
    return Plan(
        model=str(model),
        method=recipe.summary(),
        pattern=str(recipe.target),
        blocks=len(task.blocks),
        parameters=job.parameters,
        prunable=prunable,
        removed=prunable - sum(count_kept(*shape, recipe.target) for shape in shapes),
        left_dense=left_dense(task.blocks, task.skipped),
        calibration=share_out(recipe.calibration, recipe.samples) if recipe.needs_inputs else {},
        tokens=job.forward_tokens,
        flops=flops,
        costs=costs,
        seconds={stage: round(spent, 3) for stage, spent in seconds.items()},
        total=round(seconds["load"] + max(seconds["read"], seconds["write"], computing), 3),
        memory=memory,
        disk=Disk(
            read=job.stored_bytes + job.surveys * (job.stored_bytes - job.outer_parameters * stored.itemsize),
            written=job.stored_bytes,
            temporary=memory.file + (job.stored_bytes if Path(model).suffix == ".gguf" else 0),
        ),
        roles=roles_of(task),
        bounds=bounds_of(skeleton, task, rate),
        dense_linears=sum(linear.transposed for _, linear in linears),
        machine=this_machine(),
        rates=rates,
        ranks=ranks,
    )
