"""Where the token that begins a text (BOS) stands in the windows that a model reads.

The literature tokenizes a text as a whole, so that BOS stands where the tokenizer puts it: once, before the first
window, or nowhere. So LLaMA is measured. Gemma has never seen a text without BOS, and falls apart in windows without it
(docs/calibration.md has figures). So there are three protocols:

- ``once``: as the tokenizer has it, once before the whole text, or before each document that is drawn from;
- ``each``: BOS begins every window, and as many tokens as fit follow; it is never predicted itself;
- ``never``: nowhere, whatever the tokenizer does.

``auto`` is one of them by what the checkpoint says, without running it: a pruned model has the same config and the same
tokenizer as the dense one, and so the same protocol.
"""

from typing import Any

from transformers import PreTrainedConfig

from secateur.errors import InputError, naming
from secateur.options import Bos

# In the config's model_type: gemma, gemma2, gemma3_text, recurrent_gemma …
_BEGINS_EVERY_TEXT = "gemma"


def settle_bos(asked: Bos, tokenizer: Any, config: PreTrainedConfig) -> Bos:
    """The protocol for a model of ``config`` that was ``asked`` for, or the one that ``auto`` comes to.

    Raises:
        InputError: when the tokenizer has no BOS that could begin every window.
    """
    has_one = tokenizer.bos_token_id is not None
    if asked == "each" and not has_one:
        raise InputError("the model's tokenizer has no token that begins a text, to put before each window (--bos)")
    if asked == "auto":
        return "each" if has_one and _BEGINS_EVERY_TEXT in config.model_type else "once"
    return asked


def start_of(tokenizer: Any, bos: Bos) -> list[int]:
    """The ids that begin a text: BOS, what the tokenizer puts before any text by itself, or none."""
    if bos == "each":
        return [tokenizer.bos_token_id]
    with naming("the model's tokenizer", "cannot encode the text"):
        return tokenizer("").input_ids[:1] if bos == "once" else []
