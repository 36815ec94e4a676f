"""Experts, which files hold one by one, and models in stacks."""

from collections.abc import Iterable, Mapping
from functools import reduce

import torch
from torch import Tensor

from secateur.checkpoint.names import Names
from secateur.errors import InputError


class Stacks:
    """Which tensors of a model are stacks of others in its files, such as experts, and what these call all others.

    Attributes:
        names: the model's tensors by its own names, in the order of the files.
        members: by the name of a stack, its layers: per expert, the tensors in the files that lie there one above
            the other.
    """

    def __init__(self, files: Iterable[str], called: Names) -> None:
        """Sort the names of the tensors that the files hold.

        Args:
            files: the names.
            called: what the model calls them, where that is something else.

        Raises:
            InputError: where experts are missing, or two tensors are one.
        """
        self.members: dict[str, list[list[str]]] = {}
        self._stored: dict[str, str] = {}  # of all others, the name in the files
        layers: dict[str, dict[int, dict[int, str]]] = {}
        for name in files:
            current = called.renamed.get(name, "lm_head.weight" if name == "embed_out.weight" else name)
            if name in called.stacked:
                stack, layer, part = called.stacked[name]
                layers.setdefault(stack, {}).setdefault(layer, {})[part] = name
                self._stored[stack] = ""
            elif other := self._stored.get(current):
                raise InputError(f"the files hold {other} and {name}, which are the same tensor of the model")
            else:
                self._stored[current] = name
        for stack, experts in layers.items():
            if (numbers := sorted(experts)) != list(range(len(experts))):
                raise InputError(f"the files hold experts {', '.join(map(str, numbers))} of {stack}: some are missing")
            self.members[stack] = [[parts[part] for part in sorted(parts)] for _, parts in sorted(experts.items())]
        shared = {name: first for name, first in called.shared.items() if first in self._stored}
        self._shared = shared.keys() - self._stored
        self._stored |= {name: self._stored[shared[name]] for name in shared if name in self._shared}
        self.names = list(self._stored)

    def layers(self, name: str) -> list[list[str]]:
        """The names in the files of what makes up the tensor ``name``: of a stack as in ``members``, else one layer."""
        return self.members.get(name) or [[self._stored[name]]]

    def parts(self, name: str) -> list[str]:
        """The same in one list."""
        return [part for layer in self.layers(name) for part in layer]

    def join(self, name: str, parts: Mapping[str, Tensor]) -> Tensor:
        """The tensor ``name`` from its parts: ``(experts, O, I)`` if it is a stack."""
        if name in self.members:
            layers = [[parts[part] for part in layer] for layer in self.members[name]]
            shape = (len(layers), sum(len(part) for part in layers[0]), *layers[0][0].shape[1:])
            dtype = reduce(torch.promote_types, (part.dtype for layer in layers for part in layer))
            stack = torch.empty(shape, dtype=dtype)
            for place, layer in zip(stack, layers, strict=True):  # with no second copy of all of them
                torch.cat(layer, out=place)
            return stack
        return parts[self._stored[name]]

    def split(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as the model has them, as the files hold them; what the files did not hold keeps its name.

        What blocks share is held once, with the first of them.
        """
        stored = {}
        for name, tensor in tensors.items():
            if name in self._shared:
                continue
            if name not in self.members:
                stored[self._stored.get(name, name)] = tensor
                continue
            for parts, layer in zip(self.members[name][: len(tensor)], tensor, strict=True):  # some may have gone
                stored |= dict(zip(parts, layer.chunk(len(parts)), strict=True))
        return stored
