"""What a block is to learn: to give, pruned, what it gave while it was dense, on what the pruned blocks before it make.

It may also be told to make up for some of what those have done: then the aim is moved towards what the dense model has
there (docs/tuning.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.calibrate.guard import Guard, squared_error
from secateur.calibrate.stream import Stream
from secateur.memory import Shelf
from secateur.ranks import Ranks


@dataclass(frozen=True)
class Lesson:
    """The samples that a block learns from.

    Attributes:
        stream: has what enters it.
        index: its number.
        wanted: per batch of the stream that is not held out, what it is to give, ``(B, L, H)``.
        ranks: those that have a share of the samples each.
        guard: judges it by the same aim on held-out samples, if there are any.
    """

    stream: Stream
    index: int
    wanted: Shelf
    ranks: Ranks
    guard: Guard | None = None

    @property
    def batches(self) -> int:
        """The number of batches of all ranks."""
        return sum(self.ranks.gather(len(self.wanted)))

    def slope(self, batch: int, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Gradients, by the parameters of the block, of the mean squared relative error over the tokens of a batch.

        All ranks ask for it at once. One of them has the batch, and gives the gradients to the others.

        Args:
            batch: its number among those of all ranks.
            parameters: of the block's module, each of which has a gradient or none.
        """
        counts = self.ranks.gather(len(self.wanted))
        owner = next(rank for rank in range(len(counts)) if batch < sum(counts[: rank + 1]))
        if self.ranks.rank == owner:
            gradients = self._slope(batch - sum(counts[:owner]), parameters)
        else:
            gradients = [torch.empty_like(parameter) for parameter in parameters]
        for gradient in gradients:
            self.ranks.give(gradient, owner)
        return gradients

    @torch.enable_grad()
    def _slope(self, batch: int, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        before = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        output = self.stream.call(self.index, batch, self.stream.hidden[batch])
        error = squared_error(output, self.wanted[batch])
        real = self.stream.real[batch]
        loss = (error if real is None else error[real]).mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
        return [gradient.contiguous() for gradient in gradients]
