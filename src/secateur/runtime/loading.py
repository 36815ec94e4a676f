"""Load a model folder for running it, whatever Secateur wrote there."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from secateur.checkpoint import Source, load_whole
from secateur.runtime.gather import ORDER, attach_orders


def load(folder: str | Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """A transformers model, in eval mode, on the CPU.

    A plain folder loads as ``AutoModelForCausalLM.from_pretrained`` loads it; one that was written with
    ``--fold gather`` gets the norms that it needs.

    Args:
        folder: a local model folder.
        dtype: ``auto`` for the precision in which it is stored.

    Raises:
        InputError: when the folder cannot be read.
    """
    source = Source(Path(folder))
    model = load_whole(Path(folder), config=source.config, dtype=dtype)
    orders = source.read([name for name in source.names() if name.endswith(ORDER)])
    attach_orders(model, orders)
    return model.eval()
