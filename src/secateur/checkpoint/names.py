"""The names of tensors: files keep those that a model had when it was published, and transformers may have others."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from secateur.checkpoint.config import is_wrapper

_BLOCK = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Names:
    """What a model calls the tensors in its files.

    Attributes:
        renamed: its names of those that have another name in the files, by these.
        shared: of weights that serve in several blocks, and are in the files once, the names in the later blocks; and
            by these the one that is there.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
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
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    renamed = {}
    for name in files:
        current = name
        for renaming in renamings if name not in own else ():
            current, _ = renaming.rename_source_key(current)
        if current != name:
            renamed[name] = current
    tied = model.all_tied_weights_keys.items()
    return Names(renamed, {name: first for name, first in tied if _BLOCK.search(name) and _BLOCK.search(first)})
