"""What the files hold, block by block, against what the manifest says of it."""

from collections.abc import Callable, Mapping
from math import isclose

from torch import Tensor

from secateur.digests import bytes_digest, nonzeros_digest
from secateur.masks import obeys, sparsity_of
from secateur.models.blocks import Block
from secateur.pruning.prepare import Task
from secateur.verification.manifest import Layer


class WrittenChecks:
    """Checks of all tensors of a model, which pass once.

    Attributes:
        failures: the names of tensors that are not as the recipe and the manifest have them, by what is wrong.
    """

    def __init__(
        self,
        task: Task,
        layers: Mapping[str, Layer],
        unpruned: Mapping[str, str] | None,
        rounded: Callable[[str], Tensor | None] = lambda _: None,
    ) -> None:
        """Nothing has passed yet.

        Args:
            task: what was to become of each linear.
            layers: what the manifest says of those, by full name.
            unpruned: its digests of all other tensors, by name; None if it has none, and these are not checked.
            rounded: of a tensor whose values packing has rounded, where they are kept, bool; None of all others.
        """
        self._task, self._layers, self._unpruned, self._rounded = task, layers, unpruned, rounded
        self._zeros = self._numbers = 0
        self._gone = set(unpruned or ())
        self.failures: dict[str, list[str]] = {
            check: [] for check in ("pattern", "shape", "zeros", "bytes", "sparsity", "unpruned")
        }

    def outer(self, tensors: Mapping[str, Tensor]) -> None:
        """What lies outside the blocks."""
        if self._unpruned is None:
            return
        for name, tensor in tensors.items():
            self._gone.discard(name)
            if bytes_digest(tensor) != self._unpruned.get(name) and self._rounded(name) is None:
                self.failures["unpruned"].append(name)

    def block(self, block: Block, tensors: Mapping[str, Tensor]) -> None:
        """All tensors of one block."""
        held = {block.prefix + linear.tensor for linear in block.linears}
        masks = {name: mask for name in held if (mask := self._rounded(name)) is not None}
        for linear in block.linears:
            mask = block.stored(linear, masks) if block.prefix + linear.tensor in masks else None
            self._linear(block.full_name(linear), block.stored(linear, tensors), mask)
        self.outer({name: tensor for name, tensor in tensors.items() if name not in block.pruned})

    def _linear(self, name: str, weight: Tensor, rounded: Tensor | None) -> None:
        failures = self.failures
        self._zeros += weight.numel() - int(weight.count_nonzero())
        self._numbers += weight.numel()
        pattern = self._task.patterns.get(name)  # what was only quantized has none
        if pattern is not None and not obeys(weight, pattern):
            failures["pattern"].append(name)
        if (layer := self._layers.get(name)) is None:
            return
        if (shape := tuple(weight.shape)) != layer.shape:
            failures["shape"].append(f"{name} is {shape}, not {layer.shape}")
        if rounded is not None:
            # Without a mask nothing tells what was removed from what was rounded to zero.
            fewer = sparsity_of(weight) < layer.sparsity and not isclose(sparsity_of(weight), layer.sparsity)
            if fewer if rounded.all() else nonzeros_digest(rounded) != layer.nonzeros_sha256:
                failures["zeros"].append(name)
            return
        if nonzeros_digest(weight) != layer.nonzeros_sha256:
            failures["zeros"].append(name)
        elif not isclose(sparsity_of(weight), layer.sparsity):
            failures["sparsity"].append(f"{name} has {sparsity_of(weight):.2%} zeros, not {layer.sparsity:.2%}")
        if bytes_digest(weight) != layer.weight_sha256:
            failures["bytes"].append(name)

    def end(self, sparsity: float | None) -> None:
        """All have passed; ``sparsity`` is the model's as the manifest has it, if it speaks of what is written."""
        share = self._zeros / max(1, self._numbers)
        if sparsity is not None and not self.failures["zeros"] and not isclose(share, sparsity):
            self.failures["sparsity"].append(f"{share:.2%} of all weights are zero, not {sparsity:.2%}")
        self.failures["unpruned"] += [f"{name} is gone" for name in sorted(self._gone)]
