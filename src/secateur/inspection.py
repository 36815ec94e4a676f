"""What a checkpoint's linears are, and how sparse, from its files alone."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from secateur.checkpoint import Source, local_folder
from secateur.masks import obeys, sparsity_of
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.spaces import Linear
from secateur.patterns import NM

# From the sparsest to the densest, and from the tightest to the loosest: the first that holds says most.
_USUAL = [NM(1, 4), NM(2, 8), NM(2, 4), NM(4, 8), NM(8, 16), NM(16, 32), NM(3, 4)]


@dataclass(frozen=True)
class LayerView:
    """One linear of a checkpoint.

    Attributes:
        name: its full name.
        shape: ``(O, I)``.
        dtype: as stored, or of what it decodes to.
        bits: of a code, if it is quantized.
        sparsity: the share of weights that are zero.
        pattern: the tightest usual N:M that its non-zeros obey in storage order, or None.
        reads: the channel space of its input channels, or None if unknown.
        writes: the channel space of its output channels, or spaces if it is fused; None if unknown.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    bits: int | None
    sparsity: float
    pattern: str | None
    reads: str | None
    writes: str | None


@dataclass(frozen=True)
class Inspection:
    """A model as it was named, the family that it was recognised as, and its prunable linears."""

    model: str
    family: str
    layers: list[LayerView]


def inspect(model: str | Path) -> Inspection:
    """Describe the prunable linears of a model: a hub name, a folder, or a ``.gguf`` file.

    Raises:
        InputError: when ``model`` is not a model that can be read.
    """
    with local_folder(str(model)) as folder:
        source = Source(folder)
        skeleton = source.skeleton(torch.float32)
        family = family_of(skeleton)
        layers = [layer for block in blocks_of(skeleton, family) for layer in _layers(source, block)]
    return Inspection(str(model), family.name, layers)


def _layers(source: Source, block: Block) -> list[LayerView]:
    names = sorted({block.prefix + linear.tensor for linear in block.linears})
    tensors = source.read(names)
    bits = {
        name: source.scheme.bits if source.scheme and source.stacks.parts(name)[0] in source.quantized else None
        for name in names
    }
    return [
        _view(block.full_name(linear), block.stored(linear, tensors), linear, bits[block.prefix + linear.tensor])
        for linear in block.linears
    ]


def _view(name: str, weight: Tensor, linear: Linear, bits: int | None) -> LayerView:
    return LayerView(
        name=name,
        shape=(weight.shape[0], weight.shape[1]),
        dtype=str(weight.dtype).removeprefix("torch."),
        bits=bits,
        sparsity=sparsity_of(weight),
        pattern=next((f"{p.kept}:{p.group}" for p in _USUAL if obeys(weight, p)), None),
        reads=linear.reads,
        writes=" ".join(dict.fromkeys(linear.parts)) or None,
    )
