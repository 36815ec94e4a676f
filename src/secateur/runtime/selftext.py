"""Text that a model writes itself, to calibrate it on where there is no other.

Each sample begins with a random token of the vocabulary, as in LLM-QAT (Liu et al., arXiv 2305.17888), since a model
that was trained on chats has little to say after the same beginning. What follows is drawn as the model's probabilities
have it, so that the text is as likely as what it was trained on. LLM-QAT takes the likeliest tokens after the first,
which made worse beginnings (docs/calibration.md); Williams, Chrysostomou and Aletras (arXiv 2410.17711), who calibrate
pruning and quantization so, begin alike, at a temperature that falls. A text that ends is followed by another.

Some texts fall into repetition, which the model finds more likely than any real text, and some lose their thread, which
it finds less likely. Of each batch of :data:`WRITTEN` samples, those of the lowest and of the highest perplexity go, by
the model itself, as many of the one as of the other, and :data:`KEPT` are left.

Writing takes a pass through the whole model for each token, so that what was written is kept, in
:mod:`secateur.checkpoint.cache`. Batches are drawn one by one: the first of many samples are those of few.
"""

import os
import random
import warnings
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from secateur.checkpoint import Source
from secateur.checkpoint.cache import cache_of, locked, remove_unused
from secateur.checkpoint.durable import replacing
from secateur.data import start_of
from secateur.devices import free_memory, full_precision, return_freed_memory
from secateur.digests import digest, file_digest
from secateur.errors import InputError, Notice, naming
from secateur.options import Bos
from secateur.progress import Progress
from secateur.runtime.loading import load
from secateur.sizes import parse_size, show_size

# Samples that are written together, and how many of them are kept.
WRITTEN, KEPT = 16, 12
TEMPERATURE = 1.0
# To be raised whenever the same model comes to write something else.
VERSION = 1
# Texts in the cache: each takes a few megabytes.
_TEXTS = 100
_FILE = "ids.safetensors"


def write_samples(
    source: Source,
    samples: int,
    length: int,
    seed: int,
    *,
    bos: Bos = "once",
    device: torch.device,
    dtype: torch.dtype,
    memory: str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The first of the samples that the model of ``source`` writes by this seed: int64 ``(samples, length)``.

    They are the same each time on the same kind of device, as far as its sums are.

    Args:
        source: a model folder.
        samples: how many.
        length: tokens of each, a first one included that begins any text.
        seed: of all draws.
        bos: whether there is one, settled: with ``once`` where the tokenizer puts one.
        device: where the model runs.
        dtype: the precision that it runs in.
        memory: of the machine that may be taken, such as ``8GB``; by default what is free.
        progress: is told how far it is.

    Raises:
        InputError: when the samples are too short, the model does not fit into memory whole, or it cannot write.
    """
    writer = _Writer(source, length, seed, bos, device, dtype, progress or Progress())
    try:
        key = cache_of("selftext") / f"{writer.key}.lock"
        held = locked(key, shared=False)
    except OSError as error:
        said = error.strerror or str(error)
        warnings.warn(f"what the model writes is not kept for the next run: {said}", Notice, stacklevel=3)
        return writer.more(torch.empty(0, length, dtype=torch.int64), samples, memory)[:samples]
    with held:
        folder = key.with_suffix("")
        ids = _kept(folder / _FILE, length)
        if len(ids) < samples:
            ids = writer.more(ids, samples, memory)
            with suppress(OSError, SafetensorError):  # on a full disk it is written again the next time
                folder.mkdir(exist_ok=True)
                with replacing(folder / _FILE) as path:
                    save_file({"ids": ids}, path)
                remove_unused(key, _TEXTS)
        if folder.is_dir():
            os.utime(folder)
    return ids[:samples]


def origin() -> dict[str, Any]:
    """How samples are written, as the manifest says it: all that does not depend on the run."""
    return {
        "version": VERSION,
        "first": "a random token of the vocabulary",
        "temperature": TEMPERATURE,
        "kept": [KEPT, WRITTEN],
        "dropped": "as many of the lowest as of the highest perplexity under the model itself",
    }


def _kept(path: Path, length: int) -> Tensor:
    """What was written before, in whole batches; nothing where there is nothing that is as it should be."""
    with suppress(OSError, SafetensorError, KeyError):
        ids = load_file(path)["ids"]
        if ids.dtype == torch.int64 and ids.dim() == 2 and ids.shape[1] == length and len(ids) % KEPT == 0:
            return ids
    return torch.empty(0, length, dtype=torch.int64)


class _Writer:
    """Whatever one model writes by one seed.

    Attributes:
        key: what it depends on.
    """

    def __init__(
        self,
        source: Source,
        length: int,
        seed: int,
        bos: Bos,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress,
    ) -> None:
        self._source, self._length, self._seed = source, length, seed
        self._device, self._dtype, self._progress = device, dtype, progress
        tokenizer = source.tokenizer()
        self._start = start_of(tokenizer, bos)
        special = {*tokenizer.all_special_ids}
        tokens = min(len(tokenizer), source.config.get_text_config().vocab_size)
        self._tokens = torch.tensor([token for token in range(tokens) if token not in special])
        if length < (least := len(self._start) + 2):
            raise InputError(f"a model writes samples of {least} tokens or more, not of {length} (--length)")

    @property
    def key(self) -> str:
        files = sorted({source.file for source in self._source.held.values()})
        parts = [file_digest(self._source.folder / "config.json"), *map(file_digest, files)]
        how = [VERSION, transformers.__version__, torch.__version__, self._device.type, self._dtype]
        return digest(" ".join(map(str, [*parts, *how, self._start, self._length, self._seed])))

    def more(self, ids: Tensor, samples: int, memory: str | None) -> Tensor:
        """The ``ids`` of the first batches, and of as many after those as make so many samples."""
        source, batches = self._source, range(len(ids) // KEPT, -(-samples // KEPT))
        self._check_fits(memory)
        tokens = len(batches) * WRITTEN * (self._length - len(self._start) - 1)
        self._progress.start("text of the model itself", tokens)
        model = load(source.folder, self._dtype, self._device, form="dense")
        model.generation_config = GenerationConfig()  # whatever its authors want of it is for other purposes
        devices = [self._device] if self._device.type == "cuda" else []
        named = naming(source.folder, "cannot write text to calibrate on")
        with named, torch.random.fork_rng(devices), torch.inference_mode(), full_precision():
            written = [self._batch(model, number) for number in batches]
        del model
        return_freed_memory()
        return torch.cat([ids, *written])

    def _check_fits(self, memory: str | None) -> None:
        """Raise InputError where the whole model and the keys and values of a batch do not fit into memory."""
        source, config, size = self._source, self._source.config.get_text_config(), self._dtype.itemsize
        weights = size * sum(prod(source.shape(name)) for name in source.names())
        # Where heads share keys and values these take less.
        states = 2 * size * config.num_hidden_layers * config.hidden_size * WRITTEN * self._length
        free = free_memory(self._device)
        bounded = memory is not None and self._device.type == "cpu"
        have = min(free, parse_size(memory)) if memory is not None and bounded else free
        if weights + states > have:
            raise InputError(
                f"to write text to calibrate on, {source.folder} takes {show_size(weights + states)} of memory (the "
                f"whole model, and keys and values of {WRITTEN} samples of {self._length} tokens), and "
                f"{show_size(have)} {'are allowed (--memory)' if bounded else 'are free'}: take shorter samples "
                "(--length), or another text (--calibration)"
            )

    def _batch(self, model: PreTrainedModel, number: int) -> Tensor:
        """Those samples of a batch that are kept, in the order in which they were written."""
        torch.manual_seed(random.Random(f"{self._seed} {number}").getrandbits(63))
        first = self._tokens[torch.randint(len(self._tokens), (WRITTEN, 1))]
        start = torch.tensor(self._start, dtype=torch.int64).expand(WRITTEN, -1)
        prompt = torch.cat([start, first], 1).to(self._device)
        ids: Tensor = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=self._length - prompt.shape[1],
            pad_token_id=0,  # nothing is padded, but it wants to know
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            streamer=_Teller(self._progress),
        )
        losses = torch.tensor([_mean_nll(model, sample) for sample in ids])
        if losses.isnan().any():
            raise InputError("it gives logits that are no numbers (NaN)")
        middle = losses.argsort(stable=True)[(WRITTEN - KEPT) // 2 :][:KEPT]
        return ids.cpu()[middle.sort().values]


class _Teller(BaseStreamer):
    """Tells how many tokens were written."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._began = progress, False

    def put(self, value: Tensor) -> None:
        """Is called with the prompt first."""
        if self._began:
            self._progress.advance(value.numel())
        self._began = True

    def end(self) -> None:
        """Nothing is left to tell."""


def _mean_nll(model: PreTrainedModel, sample: Tensor) -> float:
    """Of the tokens of a sample ``(L,)`` after the first, in nats."""
    logits = model(sample[None], use_cache=False).logits[0, :-1].float()
    return float(nn.functional.cross_entropy(logits, sample[1:]))
