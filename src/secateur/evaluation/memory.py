"""How much a model may be given at a time."""

import psutil
import torch

# More at a time brings nothing: a CPU is busy with one window of the usual length, a GPU with a few.
MOST_ON_CPU, MOST_ON_GPU = 2048, 16384
# Logits are held three times: as the model computes them, in float32, and as log-probabilities.
BYTES_PER_LOGIT = 3 * 4


def tokens_at_a_time(vocabulary: int, device: torch.device) -> int:
    """The number of tokens whose logits, ``vocabulary`` wide, take at most a quarter of the memory that is free now.

    Logits are by far the largest activation: those of 2,048 tokens of a vocabulary of 128,000 take 3 GB.
    """
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    return min(MOST_ON_GPU if on_gpu else MOST_ON_CPU, free // 4 // (BYTES_PER_LOGIT * vocabulary))
