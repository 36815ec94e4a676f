"""The names of tensors: files keep those that a model had when it was published, and transformers may have others.

transformers knows how they go together: it keeps, for each type of model, what it renames when it reads files, and what
it stacks.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming

from secateur.checkpoint.config import is_wrapper

_BLOCK = re.compile(r"\.\d+\.")
_NUMBER = re.compile(r"\.(\d+)(?=\.)")


@dataclass(frozen=True)
class Names:
    """What a model calls the tensors in its files.

    Attributes:
        renamed: its names of those that have another name in the files, by these.
        stacked: of those that it has in stacks, by their names in the files, the stack, and which layer and part of it.
        shared: of weights that serve in several blocks, and are in the files once, the names in the later blocks; and
            by these the one that is there.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    stacked: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


def are_as_stored(config: PreTrainedConfig) -> bool:
    """Whether the names in the files of a model of ``config`` are its own, so that it need not be built to tell.

    The parts of a wrapper may be renamed, each by rules of its own; and blocks that Zamba calls hybrid share weights.
    """
    renamed = is_wrapper(config) or get_checkpoint_conversion_mapping(config.model_type) is not None
    return not renamed and "hybrid" not in (getattr(config, "layers_block_type", None) or ())


def names_in(files: Iterable[str], model: PreTrainedModel) -> Names:
    """What ``model``, which may be on the meta device, calls what ``files`` hold, as transformers reads these names."""
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    stackings = [each for each in transforms if isinstance(each, WeightConverter) and _stacks(each)]
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    renamed, stacked = {}, {}
    for name in files:
        current = name
        for renaming in renamings if name not in own else ():
            current, _ = renaming.rename_source_key(current)
        for stacking in stackings if name not in own else ():
            stack, pattern = stacking.rename_source_key(current)
            if pattern is not None:
                part = stacking.source_patterns.index(pattern)
                stacked[name] = stack, int(_NUMBER.findall(current)[-1]), part
        if current != name:
            renamed[name] = current
    tied = model.all_tied_weights_keys.items()
    shared = {name: first for name, first in tied if _BLOCK.search(name) and _BLOCK.search(first)}
    return Names(renamed, stacked, shared)


def _stacks(rule: WeightConverter) -> bool:
    """Whether it stacks layers, each of some parts one above the other, and does nothing else."""
    merge, *joins = rule.operations
    if not isinstance(merge, MergeModulelist) or merge.dim != 0 or len(joins) > 1:
        return False
    return not joins or (isinstance(joins[0], Concatenate) and joins[0].dim == 1)
