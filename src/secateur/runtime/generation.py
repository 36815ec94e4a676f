"""Generate text with a model folder, and see how fast."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from secateur.checkpoint import Source, context_of, local_folder
from secateur.data import check_ids
from secateur.devices import check_dtype, choose_device
from secateur.errors import InputError, naming
from secateur.runtime.choosing import Choice
from secateur.runtime.kernels import KERNELS
from secateur.runtime.loading import load
from secateur.runtime.sparse_linear import SparseLinear


@dataclass(frozen=True)
class Generation:
    """What came of a prompt.

    Attributes:
        model: the model, as it was named.
        text: what was generated, without the prompt.
        prompt_tokens: tokens of the prompt.
        tokens: tokens that were generated.
        prefill_seconds: until the first token was there.
        tokens_per_second: of those after the first; None when there were none.
        kernels: what multiplied packed weights on a CPU, or None where none are packed.
        dtype: the precision of the activations.
        device: where the model ran.
        choices: on a GPU, how the 2:4 linears of each kind were multiplied with, and why.
    """

    model: str
    text: str
    prompt_tokens: int
    tokens: int
    prefill_seconds: float
    tokens_per_second: float | None
    kernels: str | None
    dtype: str
    device: str
    choices: tuple[Choice, ...]


def generate(
    model: str | Path, prompt: str, *, tokens: int = 64, dtype: str = "auto", device: str = "auto"
) -> Generation:
    """Continue ``prompt``, taking the likeliest token each time.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        prompt: the text to continue.
        tokens: generate at most so many.
        dtype: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` …

    Raises:
        InputError: when the model or the device cannot be used, or the prompt is empty.
    """
    check_dtype(dtype)
    if tokens < 1:
        raise InputError(f"{tokens} tokens cannot be generated")
    chosen = choose_device(device)
    with local_folder(str(model)) as folder:
        source = Source(folder)
        tokenizer = source.tokenizer()
        words = _encode(prompt, tokenizer, source.config, tokens).to(chosen)
        loaded = load(folder, dtype, chosen)
        number, watch = words["input_ids"].shape[1], _Stopwatch()
        with torch.inference_mode(), naming(folder, "cannot continue the prompt"):
            how = {"do_sample": False, "num_beams": 1, "streamer": watch, "logits_processor": [_check_first]}
            ids = loaded.generate(**words, max_new_tokens=tokens, **how)
            ids = ids[0, number:]
            text = tokenizer.decode(ids, skip_special_tokens=True)
    packed = any(isinstance(module, SparseLinear) for module in loaded.modules())
    return Generation(
        model=str(model),
        text=text,
        prompt_tokens=number,
        tokens=len(ids),
        prefill_seconds=round(watch.times[1] - watch.times[0], 4),
        tokens_per_second=watch.rate(),
        kernels=KERNELS[0].name if packed else None,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        choices=loaded.choices,
    )


def _encode(prompt: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, tokens: int) -> BatchEncoding:
    """The prompt as the model takes it; raises :class:`InputError` where that and ``tokens`` more do not fit."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not a text: it has half a character ({error})") from None
    with naming("the model's tokenizer", "cannot encode the prompt"):
        words = tokenizer(prompt, return_tensors="pt")
    number = words["input_ids"].shape[1]
    if not number:
        raise InputError("the prompt has no tokens")
    check_ids(words["input_ids"], config.get_text_config().vocab_size, "the prompt")
    if (context := context_of(config)) and number + tokens > context:
        raise InputError(
            f"a prompt of {number} tokens and {tokens} more exceed the model's context of {context} (--tokens)"
        )
    return words


def _check_first(ids: Tensor, logits: Tensor) -> Tensor:
    """Logits ``(B, V)`` as they are; raises :class:`InputError` if there is no likeliest among them."""
    if logits.isnan().any():
        raise InputError("the model gives logits that are no numbers (NaN): its weights are damaged or too large")
    return logits


class _Stopwatch(BaseStreamer):
    """Notes when the prompt went in and when each token came out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """The prompt, or a token, is there."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """There are no more."""

    def rate(self) -> float | None:
        """Tokens per second after the first."""
        later = len(self.times) - 2
        return round(later / (self.times[-1] - self.times[1]), 2) if later > 0 else None
