"""Generate text with a model folder, and see how fast."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from secateur.checkpoint import Source, context_of, local_folder
from secateur.data import check_ids
from secateur.devices import check_dtype, choose_device
from secateur.errors import InputError, naming
from secateur.runtime.choosing import Choice
from secateur.runtime.decoding import Continuation
from secateur.runtime.kernels import KERNELS
from secateur.runtime.loading import FREE, load
from secateur.runtime.sparse_linear import SparseLinear


@dataclass(frozen=True)
class Generation:
    """What a model made of a prompt.

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
        graph: whether tokens were generated in a CUDA graph.
        choices: on a GPU, how pruned linears were multiplied with, and why.
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
    graph: bool
    choices: tuple[Choice, ...]


def generate(
    model: str | Path,
    prompt: str,
    *,
    tokens: int = 64,
    dtype: str = "auto",
    device: str = "auto",
    form: str = "auto",
    memory: str | None = None,
) -> Generation:
    """Continue ``prompt``, taking the likeliest token each time.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        prompt: the text to continue.
        tokens: generate at most so many.
        dtype: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` …
        form: on a GPU, the form of pruned linears: ``auto`` (the fastest), ``dense``, ``2:4`` or ``packed``.
        memory: how much of the device's memory may be used, such as ``8GB``; by default what is free. A model that
            needs more is read from disk once for each token.

    Raises:
        InputError: when the model, the device or the form cannot be used, or the prompt is empty.
    """
    check_dtype(dtype)
    if tokens < 1:
        raise InputError(f"{tokens} tokens cannot be generated")
    chosen = choose_device(device)
    with local_folder(str(model)) as folder:
        source = Source(folder)
        tokenizer = source.tokenizer()
        words = _encode(prompt, tokenizer, source.config, tokens).to(chosen)
        loaded = load(folder, dtype, chosen, form, memory or FREE)
        with torch.inference_mode(), naming(folder, "cannot continue the prompt"):
            ids, prefill_seconds, rate, graph = _continue(loaded, words, tokens)
            text = tokenizer.decode(ids, skip_special_tokens=True)
    return Generation(
        model=str(model),
        text=text,
        prompt_tokens=words.shape[1],
        tokens=len(ids),
        prefill_seconds=round(prefill_seconds, 4),
        tokens_per_second=None if rate is None else round(rate, 2),
        kernels=_kernels(loaded),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        graph=graph,
        choices=loaded.choices,
    )


def _encode(prompt: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, tokens: int) -> Tensor:
    """The ids of the prompt, ``(1, S)``; raises :class:`InputError` where that and ``tokens`` more do not fit."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not a text: it has half a character ({error})") from None
    with naming("the model's tokenizer", "cannot encode the prompt"):
        words: Tensor = tokenizer(prompt, return_tensors="pt")["input_ids"]
    number = words.shape[1]
    if not number:
        raise InputError("the prompt has no tokens")
    check_ids(words, config.get_text_config().vocab_size, "the prompt")
    if (context := context_of(config)) and number + tokens > context:
        raise InputError(
            f"a prompt of {number} tokens and {tokens} more exceed the model's context of {context} (--tokens)"
        )
    return words


def _continue(model: PreTrainedModel, words: Tensor, most: int) -> tuple[list[int], float, float | None, bool]:
    """What follows ``words`` (1, S), up to an end token; seconds of prefill, tokens per second, whether in a graph."""
    ends = model.generation_config.eos_token_id
    last = set(ends if isinstance(ends, list) else [ends])
    run = Continuation(model, words, most)
    if model.offloaded:  # what reads files cannot be captured
        run.graph = False
    began = time.perf_counter()
    run.prefill()
    if run.logits is not None and run.logits.isnan().any():
        raise InputError("the model gives logits that are no numbers (NaN): its weights are damaged or too large")
    ids = [int(run.ids)]  # which waits for a GPU
    prefill_seconds = time.perf_counter() - began
    if most == 1 or ids[-1] in last:
        return ids, prefill_seconds, None, False
    run.prepare()
    began = time.perf_counter()
    while len(ids) < most and ids[-1] not in last:
        run.step()
        ids.append(int(run.ids))
    return ids, prefill_seconds, (len(ids) - 1) / (time.perf_counter() - began), bool(run.graph)


def _kernels(model: PreTrainedModel) -> str | None:
    """What multiplies with packed weights on a CPU, or None."""
    packed = any(isinstance(module, SparseLinear) and not module.values.is_cuda for module in model.modules())
    return KERNELS[0].name if packed and KERNELS else None
