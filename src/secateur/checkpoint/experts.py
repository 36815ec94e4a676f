"""What files call a model's tensors: often otherwise than the model, and experts one by one, which it has in stacks.

transformers knows how: it keeps, for each type of model, what it renames when it reads files, and what it stacks.
"""

import re
from collections.abc import Iterable, Mapping
from functools import reduce

import torch
from torch import Tensor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming

from secateur.errors import InputError


class _Names:
    """What transformers calls the tensors in the files of a type of model."""

    def __init__(self, model_type: str) -> None:
        rules = get_checkpoint_conversion_mapping(model_type) or []
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._stackings = [rule for rule in rules if isinstance(rule, WeightConverter) and _stacks(rule)]

    def of(self, name: str) -> tuple[str, tuple[int, int] | None]:
        """The model's name for a tensor of the files; of a part of a stack, that and which layer and part it is."""
        if name == "embed_out.weight":
            return "lm_head.weight", None
        for renaming in self._renamings:
            name, _ = renaming.rename_source_key(name)
        for stacking in self._stackings:
            stack, pattern = stacking.rename_source_key(name)
            if pattern is not None:
                return stack, (int(_NUMBER.findall(name)[-1]), stacking.source_patterns.index(pattern))
        return name, None


_NUMBER = re.compile(r"\.(\d+)(?=\.)")


def _stacks(rule: WeightConverter) -> bool:
    """Whether it stacks layers, each of some parts one above the other, and does nothing else."""
    merge, *joins = rule.operations
    if not isinstance(merge, MergeModulelist) or merge.dim != 0 or len(joins) > 1:
        return False
    return not joins or (isinstance(joins[0], Concatenate) and joins[0].dim == 1)


class Stacks:
    """Which tensors of a model are stacks of others in its files, such as experts, and what these call all others.

    Attributes:
        names: the model's tensors by its own names, in the order of the files.
        members: by the name of a stack, its layers: per expert, the tensors in the files that lie there one above
            the other.
    """

    def __init__(self, files: Iterable[str], model_type: str) -> None:
        """Sort the names of the tensors that the files hold; raises :class:`InputError` where experts are missing."""
        names = _Names(model_type)
        self.members: dict[str, list[list[str]]] = {}
        self._stored: dict[str, str] = {}  # of all others, the name in the files
        layers: dict[str, dict[int, dict[int, str]]] = {}
        for name in files:
            known, place = names.of(name)
            if place is None:
                self._stored[known] = name
            else:
                layer, part = place
                layers.setdefault(known, {}).setdefault(layer, {})[part] = name
                self._stored[known] = ""
        for stack, experts in layers.items():
            if (numbers := sorted(experts)) != list(range(len(experts))):
                raise InputError(f"the files hold experts {', '.join(map(str, numbers))} of {stack}: some are missing")
            self.members[stack] = [[parts[part] for part in sorted(parts)] for _, parts in sorted(experts.items())]
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
        """Tensors as the model has them, as the files hold them; what the files did not hold keeps its name."""
        stored = {}
        for name, tensor in tensors.items():
            if name not in self.members:
                stored[self._stored.get(name, name)] = tensor
                continue
            for parts, layer in zip(self.members[name], tensor, strict=True):
                stored |= dict(zip(parts, layer.chunk(len(parts)), strict=True))
        return stored
