"""How much a model may be given at a time."""

import torch
from transformers import PreTrainedModel

from secateur.devices import free_memory
from secateur.sizes import parse_size

# More at a time brings nothing: a CPU is busy with one window of the usual length, a GPU with a few.
MOST_ON_CPU, MOST_ON_GPU = 2048, 16384
# Logits are held three times: as the model computes them, in float32, and as log-probabilities.
BYTES_PER_LOGIT = 3 * 4


def free_beside(model: PreTrainedModel, memory: str | None) -> int:
    """Bytes that are free for anything else on the device of a loaded model, within ``memory`` if that is given."""
    free = free_memory(next(model.parameters()).device)
    if memory is not None:
        weights = (*model.parameters(), *model.buffers())
        free = min(free, parse_size(memory) - sum(x.nbytes for x in weights if not x.is_meta))
    return max(0, free - (model.offloaded.nbytes if model.offloaded else 0))


def tokens_at_a_time(vocabulary: int, device: torch.device, free: int) -> int:
    """The number of tokens whose logits, ``vocabulary`` wide, take at most a quarter of ``free`` bytes.

    Logits are by far the largest activation: those of 2,048 tokens of a vocabulary of 128,000 take 3 GB.
    """
    most = MOST_ON_GPU if device.type == "cuda" else MOST_ON_CPU
    return min(most, free // 4 // (BYTES_PER_LOGIT * vocabulary))
