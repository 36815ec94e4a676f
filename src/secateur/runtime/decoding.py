"""A model at work on text: the prompt at once, then a token at a time.

On a GPU a step of decoding is hundreds of launches, each of which takes the processor longer than the GPU takes for
a small product. So there a step is captured in a CUDA graph, for dense and sparse weights alike; that needs keys and
values whose memory stays where it is: transformers' static cache, filled from the one that the prompt made.

Capturing a prompt takes longer than processing it. So that is done only for one that is processed again and again, as
in a benchmark; its cache lies in the graph's own memory, and stays there.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer

from secateur.runtime import graphs

# What Mamba and RWKV call what they keep of the tokens so far; all others, ``past_key_values``.
_STATES = ("cache_params", "state")


class Continuation:
    """Sequences of token ids that a model continues with the likeliest token, a step at a time.

    Args:
        model: in eval mode.
        prompt: ``(B, S)``.
        most: so many steps of decoding may follow a prompt.
        repeated: whether the prompt is processed so often that a graph of that pays as well.

    Attributes:
        ids: the last token of each sequence, ``(B, 1)``; replaced, or written anew in place, by the next step.
        logits: what the prompt's last token gave, ``(B, 1, V)``.
        graph: whether steps run in a CUDA graph; None on a GPU before :meth:`prepare`.
    """

    def __init__(self, model: PreTrainedModel, prompt: Tensor, most: int, repeated: bool = False) -> None:
        self.model, self.prompt, self.most, self.repeated = model, prompt, most, repeated
        self.ids: Tensor = prompt
        self.logits: Tensor | None = None
        self.graph: bool | None = None if model.device.type == "cuda" else False
        self._cache: Any = None  # transformers' Cache, of a kind that the model chooses
        self._static: Any = None
        self._last: Any = None  # where the graph reads and writes ids
        self._first: Any = None  # where the prompt's graph writes them
        self._replay: Callable[[], None] | None = None
        self._replay_prefill: Callable[[], None] | None = None
        # As when text is generated: only the last token's logits are of use.
        takes = inspect.signature(model.forward).parameters
        self._options = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})
        self._kept = next((name for name in _STATES if name in takes), "past_key_values")

    def prefill(self) -> None:
        """Process the prompt, from the beginning; its continuation's first token is in ``ids``."""
        if self._replay_prefill is None:
            self._process_prompt()
        else:
            self._replay_prefill()
            self.ids = self._first

    @property
    def prefill_graph(self) -> bool:
        """Whether the prompt is processed in a CUDA graph."""
        return self._replay_prefill is not None

    def prepare(self) -> None:
        """After a prompt, get ready for :meth:`step`: on a GPU, capture a graph or hand it what the prompt made."""
        if self.graph is None:
            self.graph = _can_be_static(self._cache) and self._capture()
            if self.graph and self.repeated:
                self._capture_prefill()
        elif self.graph:
            self._fill()

    def step(self) -> None:
        """Process ``ids``, and write the next tokens in their place."""
        if self._replay is not None:
            self._replay()
            return
        out = self.model(input_ids=self.ids, **{self._kept: self._cache}, **self._options)
        self._cache, self.ids = out[self._kept], out.logits[:, -1:].argmax(-1)

    def steps(self, number: int) -> None:
        """So many steps."""
        for _ in range(number):
            self.step()

    def _process_prompt(self) -> None:
        out = self.model(input_ids=self.prompt, **self._options)
        self._cache, self.logits = out[self._kept], out.logits[:, -1:]
        self.ids = self.logits.argmax(-1)

    def _capture(self) -> bool:
        """Capture a step; False where this model's cannot be captured, and runs as it is."""
        first = self.ids
        self._static = StaticCache(config=self.model.config, max_cache_len=self.prompt.shape[1] + self.most)
        self._last = first.clone()
        self._fill()
        try:
            self._replay = graphs.capture(self._static_step)
        except RuntimeError:
            self._static, self.ids = None, first
            return False
        self.ids = first  # warming up took steps of its own
        self._fill()
        return True

    def _capture_prefill(self) -> None:
        """Capture the prompt, if that can be; the cache that it fills is one that steps in a graph leave as it is."""
        before = self._cache, self.ids
        try:
            self._replay_prefill = graphs.capture(self._process_prompt)
        except RuntimeError:
            self._cache, self.ids = before
            return
        self._first = self.ids
        self.prefill()
        self._fill()

    def _fill(self) -> None:
        """Copy keys and values of the prompt, and its continuation's first token, to where the graph reads them."""
        self._static.reset()
        for static, dynamic in zip(self._static.layers, self._cache.layers, strict=True):
            static.update(dynamic.keys, dynamic.values)
        self._last.copy_(self.ids)
        self.ids = self._last

    def _static_step(self) -> None:
        out = self.model(input_ids=self._last, past_key_values=self._static, **self._options)
        self._last.copy_(out.logits[:, -1:].argmax(-1))


def _can_be_static(cache: Cache) -> bool:
    """Whether every layer keeps all keys and values: windows and other states count in Python."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
