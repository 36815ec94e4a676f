"""A quantized model beside the one that it was made of: whether what was zero still is."""

from collections.abc import Collection, Mapping

from torch import Tensor

from secateur.checkpoint import Source


class ZerosComparison:
    """Compares a quantized model with the one that it was made of, while its tensors pass once.

    Attributes:
        wrong: the names of tensors that are not zero where the other's are, or that are others where nothing was
            quantized.
    """

    def __init__(self, before: Source, quantized: Collection[str], scales: bool) -> None:
        """Nothing has passed yet.

        Args:
            before: the model that was quantized.
            quantized: the names of the tensors that were.
            scales: whether the method has scaled channels, and with them tensors that are not quantized.
        """
        self.wrong: list[str] = []
        self._before, self._quantized, self._scales = before, quantized, scales

    def outer(self, tensors: Mapping[str, Tensor]) -> None:
        """What lies outside the blocks."""
        for name, ours in tensors.items():
            theirs = self._before.read([name])[name]
            if self._scales and theirs.ndim == 1:  # a norm that multiplies by 1 + its weight may have had zeros
                same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
            elif name in self._quantized or self._scales:
                same = ours.dtype == theirs.dtype and not ((theirs == 0) & (ours != 0)).any()
            else:
                same = ours.dtype == theirs.dtype and bool((ours == theirs).all())
            if not same:
                self.wrong.append(name)

    def block(self, _: int, tensors: dict[str, Tensor]) -> None:
        """All tensors of a block."""
        self.outer(tensors)

    def logit_difference(self) -> None:
        """Nobody expects the same logits."""
