"""What the files hold, block by block, against what the manifest says of it."""

from collections.abc import Mapping
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
        rounded: Mapping[str, str],
    ) -> None:
        """Nothing has passed yet.

        Args:
            task: what was to become of each linear.
            layers: what the manifest says of those, by full name.
            unpruned: its digests of all other tensors, by name; None if it has none, and these are not checked.
            rounded: its digests of the tensors that packing has rounded, by name, pruned or not.
        """
        self._task, self._layers, self._unpruned, self._rounded = task, layers, unpruned, rounded
        self._of_others = {**(unpruned or {}), **rounded}
        self._zeros = self._numbers = 0
        self._gone = {*self._of_others}
        self.failures: dict[str, list[str]] = {
            check: [] for check in ("pattern", "shape", "zeros", "bytes", "sparsity", "unpruned")
        }

    def outer(self, tensors: Mapping[str, Tensor]) -> None:
        """What lies outside the blocks."""
        for name, tensor in tensors.items():
            self._gone.discard(name)
            if self._unpruned is None and name not in self._rounded:
                continue
            if bytes_digest(tensor) != self._of_others.get(name):
                self.failures["bytes" if name in self._rounded else "unpruned"].append(name)

    def block(self, block: Block, tensors: Mapping[str, Tensor]) -> None:
        """All tensors of one block."""
        for linear in block.linears:
            rounded = block.prefix + linear.tensor in self._rounded
            self._linear(block.full_name(linear), block.stored(linear, tensors), rounded)
        self.outer({name: tensor for name, tensor in tensors.items() if name not in block.pruned - {*self._rounded}})

    def _linear(self, name: str, weight: Tensor, rounded: bool) -> None:
        failures = self.failures
        share = sparsity_of(weight)
        self._zeros += round(share * weight.numel())
        self._numbers += weight.numel()
        pattern = self._task.patterns.get(name)  # what was only quantized has none
        if pattern is not None and not obeys(weight, pattern):
            failures["pattern"].append(name)
        if (layer := self._layers.get(name)) is None:
            return
        if (shape := tuple(weight.shape)) != layer.shape:
            failures["shape"].append(f"{name} is {shape}, not {layer.shape}")
        if rounded:  # to zero as well, now and then
            if share < layer.sparsity and not isclose(share, layer.sparsity):
                failures["zeros"].append(name)
            return
        if nonzeros_digest(weight) != layer.nonzeros_sha256:
            failures["zeros"].append(name)
        elif not isclose(share, layer.sparsity):
            failures["sparsity"].append(f"{name} has {share:.2%} zeros, not {layer.sparsity:.2%}")
        if bytes_digest(weight) != layer.weight_sha256:
            failures["bytes"].append(name)

    def end(self, sparsity: float | None) -> None:
        """All have passed; ``sparsity`` is the model's as the manifest has it, if it speaks of what is written."""
        share = self._zeros / max(1, self._numbers)
        if sparsity is not None and not self.failures["zeros"] and not isclose(share, sparsity):
            self.failures["sparsity"].append(f"{share:.2%} of all weights are zero, not {sparsity:.2%}")
        self.failures["unpruned"] += [f"{name} is gone" for name in sorted(self._gone)]
