"""What is in memory while a model is pruned, at its fullest."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from secateur.models.blocks import Block
from secateur.models.spaces import Linear
from secateur.planning.job import Job

FLOAT32 = torch.float32.itemsize
# Matrices of a weight's shape, in float32, that a linear has while its group is pruned: dense, score, changed, and
# mask and stored weight together. Then what is at work on one of them: a score, a selection, or a reconstruction.
KEPT, AT_WORK, AT_RECONSTRUCTION = 4, 4, 9
# Matrices (I, I) in float32 besides the sums themselves, where they are used: as a method takes them, and their factor.
FACTORS = 4


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what they are for.

    Attributes:
        host: of the machine's memory.
        device: of the GPU's; nothing where the processor computes.
    """

    host: Mapping[str, int]
    device: Mapping[str, int]


def memory_of(job: Job, device: str, process: int) -> Memory:
    """The memory that a run takes.

    Args:
        device: what computes, ``cpu`` or ``cuda``.
        process: bytes that Python, torch and transformers take by themselves.
    """
    blocks = [block for block in job.task.blocks if block.linears]
    largest = max(map(job.block_parameters, job.task.blocks))
    outer = job.outer_parameters
    copied = device != "cpu" or job.stored != job.computed  # else the module shares what was read
    stored = {
        "process": process,
        "outside the blocks": 2 * outer * job.stored.itemsize,  # in memory, and the pages of the file
        "three blocks": 3 * largest * job.stored.itemsize,  # one is read, and one written, beside the one at work
    }
    computing = {
        "weights in the model": copied * (outer + largest) * job.computed.itemsize,
        "hidden states": -(-job.samples.tokens // job.ranks) * job.width * job.computed.itemsize,
        "held-out outputs": 2 * -(-job.samples.held_out_tokens // job.ranks) * job.width * job.computed.itemsize,
        "statistics": max(_statistics(job, block) for block in blocks),
        "at work": max(_activations(job), *(_at_work(job, block) for block in blocks)),
    }
    host, gpu = (stored | computing, {}) if device == "cpu" else (stored, computing)
    return Memory(_some(host), _some(gpu))


def _statistics(job: Job, block: Block) -> int:
    """Sums over tokens of what enters the linears of a block."""
    columns = [job.shape(block, group[0])[1] for group, _ in job.groups(block)]
    return sum(job.recipe.needs_gram * FLOAT32 * c * c + job.recipe.needs_inputs * 8 * c for c in columns)


def _activations(job: Job) -> int:
    """Of a forward pass of one batch: an MLP has its width four times at once, and the hidden states beside it."""
    if not job.samples.batches:
        return 0
    widest = max(max(job.shape(block, x)) for block in job.task.blocks for x in block.linears)
    return job.samples.batches[0].numel() * (4 * widest + 4 * job.width) * job.computed.itemsize


def _at_work(job: Job, block: Block) -> int:
    """While the linears of a reader group are pruned."""
    most = 0
    for group, _ in job.groups(block):
        sizes = [_size(job, block, linear) for linear in group]
        columns = job.shape(block, group[0])[1]
        temporary = AT_RECONSTRUCTION if job.recipe.steps or job.recipe.sweeps else AT_WORK
        matrices = FACTORS * columns * columns if job.recipe.needs_gram else 0
        most = max(most, FLOAT32 * (KEPT * sum(sizes) + temporary * max(sizes) + matrices))
    return most


def _size(job: Job, block: Block, linear: Linear) -> int:
    rows, columns = job.shape(block, linear)
    return rows * columns


def _some(parts: Mapping[str, int]) -> dict[str, int]:
    return {what: size for what, size in parts.items() if size}
