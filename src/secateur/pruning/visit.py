"""A block while the walk is at it."""

from dataclasses import dataclass, field

from torch import Tensor

from secateur.calibrate.guard import Guard
from secateur.calibrate.lesson import Lesson
from secateur.models.blocks import Block
from secateur.pruning.result import Results
from secateur.stats.inputs import InputStats


@dataclass
class Visit:
    """One block, what is known of it, and what was done to it.

    Attributes:
        where: which one it is, for people, such as ``"block 3/30"``.
        block: the block. Its module has the weights in memory.
        tensors: its tensors by full name, as stored, on the CPU; changed in place.
        stats: of what enters its linears, by their names in the block; those that share their inputs share one object.
        guard: judges its output on held-out samples, if there are any.
        lesson: what it is to learn, if anything.
        results: of this block alone.
        quantized: by the full names of tensors, those that are written in their stead; ``tensors`` has what they decode
            to.
        finished: an earlier run has done the work; nothing was observed.
    """

    where: str
    block: Block
    tensors: dict[str, Tensor]
    stats: dict[str, InputStats]
    guard: Guard | None
    lesson: Lesson | None = None
    results: Results = field(default_factory=Results)
    quantized: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    finished: bool = False
