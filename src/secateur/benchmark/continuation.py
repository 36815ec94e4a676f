"""A model at work on text, one step at a time, so that each can be timed."""

import inspect

from torch import Tensor
from transformers import PreTrainedModel


class Continuation:
    """Sequences of token ids ``(B, S)`` that a model continues with the likeliest token, a step at a time."""

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        self.cache = None
        # As when text is generated: only the last token's logits are of use.
        last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.options = {"use_cache": True} | ({"logits_to_keep": 1} if last else {})

    def step(self) -> None:
        """Process ``ids``, and put the next token ``(B, 1)`` in their place."""
        out = self.model(input_ids=self.ids, past_key_values=self.cache, **self.options)
        self.cache = out.past_key_values
        self.ids = out.logits[:, -1:].argmax(-1)

    def steps(self, number: int) -> None:
        """So many steps."""
        for _ in range(number):
            self.step()
