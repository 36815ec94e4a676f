"""What is in memory while a model is pruned, at its fullest, and what waits in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from transformers import PreTrainedModel

from secateur.pruning.footprint import SHARE, footprint, pruning
from secateur.pruning.prepare import Samples, Task
from secateur.sizes import parse_size


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the peak, by what they are for.

    Attributes:
        host: of the machine's memory.
        device: of the GPU's; nothing where the processor computes.
        file: what waits in a file, because memory has no room for it.
        grams: the room for Gram matrices that are gathered at once.
    """

    host: Mapping[str, int]
    device: Mapping[str, int]
    file: int
    grams: int


class _Described:
    """The tensors of a model folder as a model that has none says them: what a footprint asks of a source."""

    def __init__(self, model: PreTrainedModel, stored: torch.dtype) -> None:
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._stored = stored
        # Experts lie in files one by one.
        self.stacks = SimpleNamespace(members=[name for name, shape in self._shapes.items() if ".experts." in name])

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self._shapes if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._stored


def memory_of(
    model: PreTrainedModel,
    task: Task,
    samples: Samples,
    *,
    stored: torch.dtype,
    device: str,
    process: int,
    free: int,
    device_free: int,
    ranks: int,
) -> Memory:
    """The memory that a run takes.

    Args:
        model: on the meta device, in the dtype that is computed in.
        task: what becomes of it.
        samples: all that there are.
        stored: the dtype of the checkpoint's weights.
        device: what computes, ``cpu`` or ``cuda``.
        process: bytes that the process has already.
        free: bytes of the host's memory that are free.
        device_free: bytes of the device's memory that are free.
        ranks: processes that share the samples.
    """
    work = partial(pruning, task, model)
    takes = footprint(task, _Described(model, stored), model, samples, torch.device(device), work)
    itemsize, width = next(model.parameters()).dtype.itemsize, model.config.get_text_config().hidden_size
    learnt = samples.seen_tokens * (1 + bool(task.recipe.corrects)) if task.recipe.tuning_epochs else 0
    kept = samples.tokens + 2 * samples.held_out_tokens + learnt
    states = -(-kept // ranks) * width * itemsize
    bound = task.recipe.memory
    given = parse_size(bound) - process if bound is not None else int(SHARE * free)
    stays = {"outside the blocks": takes.outer[0], "blocks": takes.block[0]}
    computes = {"outside the blocks": takes.outer[1], "blocks": takes.block[1], "work on a block": takes.work}
    if device == "cpu":
        host, gpu = {what: stays.get(what, 0) + size for what, size in computes.items()}, {}
        left = [(host, given - sum(host.values()))]
    else:
        host, gpu = stays, computes
        left = [(gpu, int(SHARE * device_free) - sum(gpu.values())), (host, given - sum(host.values()))]
    grams, file = 0, 0
    for what, size in (("waiting inside a block", takes.waiting), ("hidden states", states)):
        for number, (place, room) in enumerate(left):
            fits = max(0, min(size, room))
            place[what], size = fits, size - fits
            left[number] = (place, room - fits)
            if number == 0 and what != "hidden states":
                grams = fits
        file += size
    return Memory(_some({"process": process} | host), _some(gpu), file, grams)


def _some(parts: Mapping[str, int]) -> dict[str, int]:
    return {what: size for what, size in parts.items() if size}
