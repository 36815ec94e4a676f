"""A tokenizer as GGUF has it: tokens, their types, merges or scores, and the name of the way in which text is split.

llama.cpp has the splits of the tokenizers that it knows in its code, each under a name, and a file says no more than
that name (``tokenizer.ggml.pre``). A wrong one makes other tokens of the same text, and nobody notices. So a tokenizer
is compared, part by part, with what each name stands for, and what is none of them is refused.

What a tokenizer adds around a text is found by asking it. What it does with the text is read from its own description
of itself, the content of a ``tokenizer.json``, as transformers runs it.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from secateur.errors import InputError, Notice

# The types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# The regular expressions that are published with these tokenizers.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
)  # fmt: skip
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)  # fmt: skip

# What llama.cpp's names stand for: expressions that text is split by, one after the other; and whether a word that is a
# token stays whole, whatever the merges make of it.
SPLITS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "smollm": ((_DIGIT, _GPT2), False),
    "qwen2": ((_QWEN2,), False),
    "llama-bpe": ((_LLAMA3,), True),
    "tekken": ((_TEKKEN,), True),
}
_SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> dict[str, Any]:
    """What a GGUF file says of a tokenizer, by key.

    Args:
        tokenizer: of the model.
        config: of the model: how many tokens its embedding has, and its special tokens where the tokenizer has none.

    Raises:
        InputError: when it cannot be said in GGUF, or llama.cpp would make other tokens of the same text.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        raise InputError(
            f"the tokenizer, a {type(tokenizer).__name__}, has no tokenizer.json, which is what is exported"
        )
    said = json.loads(backend.to_str())
    model = said["model"]
    _refuse_unknown(said)
    pieces = model["byte_fallback"]
    tokens = _tokens(said, config.vocab_size)
    ids = _special_ids(tokenizer, config, len(tokens))
    if pieces and "unknown" in ids:
        tokens[ids["unknown"]] = (tokens[ids["unknown"]][0], UNKNOWN)
    entries = {
        **(_of_pieces(said, tokens) if pieces else _of_bytes(said)),
        "ggml.tokens": [text for text, _ in tokens],
        "ggml.token_type": [kind for _, kind in tokens],
        **{f"ggml.{name}_token_id": number for name, number in ids.items()},
        **_added_around(tokenizer),
    }
    return {f"tokenizer.{key}": value for key, value in entries.items()}


def _refuse_unknown(said: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` where a tokenizer does what no GGUF file says, whatever its kind."""
    model = said["model"]
    more = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model[key] for key in more) or not model["merges"]:
        raise InputError(f"only a plain BPE with merges is exported, and the tokenizer, a {model['type']}, is none")
    for token in said["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise InputError(
                f"the tokenizer finds {token['content']!r} together with the spaces around it, or only as a word, "
                "which no GGUF file says"
            )


def _tokens(said: Mapping[str, Any], rows: int) -> list[tuple[str, int]]:
    """The text and the type of each token of which the embedding has a row."""
    tokens = [(f"[PAD{number}]", UNUSED) for number in range(rows)]
    pieces = said["model"]["byte_fallback"]
    for text, number in said["model"]["vocab"].items():
        if number < rows:
            tokens[number] = (text, BYTE if pieces and text in _BYTES else NORMAL)
    for token in said["added_tokens"]:
        if token["id"] < rows:
            tokens[token["id"]] = (token["content"], CONTROL if token["special"] else USER_DEFINED)
    return tokens


def _special_ids(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, rows: int) -> dict[str, int]:
    """The special tokens by GGUF's names for them: the tokenizer's own, or else the config's."""
    ids = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = getattr(tokenizer, f"{key}_token_id")
        if number is None:
            written = getattr(config, f"{key}_token_id", None)
            number = next(iter(written), None) if isinstance(written, list) else written
        if number is not None and 0 <= number < rows:
            ids[name] = number
    if "eos" not in ids:
        raise InputError(
            "neither the tokenizer nor the config has an eos_token, and llama.cpp would take another for it"
        )
    return ids


def _added_around(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the tokenizer puts before and after a text, and around the turns of a chat."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    begins, ends = first is not None and whole[:1] == [first], last is not None and whole[-1:] == [last]
    if whole != [*[first] * begins, *plain, *[last] * ends]:
        raise InputError(f"the tokenizer adds {len(whole) - len(plain)} tokens to a text, others than bos and eos")
    entries: dict[str, Any] = {"ggml.add_bos_token": begins, "ggml.add_eos_token": ends}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return entries | ({"chat_template": template} if template else {})


# ---------------------------------------------------------------- tokens of bytes


def _of_bytes(said: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer that merges bytes, as GPT-2's does."""
    if said["normalizer"] not in (None, {"type": "NFC"}):
        raise InputError(f"the tokenizer changes text before it is split ({_brief(said['normalizer'])})")
    found = (_expressions(said["pre_tokenizer"]), said["model"]["ignore_merges"])
    names = [name for name, split in SPLITS.items() if split == found]
    if not names:
        whole = ", and takes words that are tokens whole" if found[1] else ""
        raise InputError(
            f"the tokenizer splits text by {_brief(said['pre_tokenizer'])}{whole}: that is none of the ways that are "
            f"known to be llama.cpp's ({', '.join(SPLITS)}), and another would make other tokens"
        )
    merges = [" ".join(pair) for pair in said["model"]["merges"]]
    return {"ggml.model": "gpt2", "ggml.pre": names[0], "ggml.merges": merges}


def _expressions(split: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """What a pre-tokenizer of bytes splits by, one after the other; None where it is something else."""
    if split is None:
        return None
    *parts, last = split["pretokenizers"] if split["type"] == "Sequence" else [split]
    found = []
    for part in parts:
        if part["type"] == "Digits" and part["individual_digits"]:
            found.append(_DIGIT)
        elif part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
            found.append(part["pattern"].get("Regex"))
        else:
            return None
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    return (*found, *[_GPT2] * last["use_regex"])


# ---------------------------------------------------------------- pieces of text


def _of_pieces(said: Mapping[str, Any], tokens: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A tokenizer that merges characters, as sentencepiece does, and falls back to bytes."""
    if absent := set(_BYTES) - {text for text, kind in tokens if kind == BYTE}:
        raise InputError(f"the tokenizer lacks {len(absent)} of the tokens for single bytes, such as {min(absent)}")
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.scores": _scores(tokens, [(left, right) for left, right in said["model"]["merges"]]),
        "ggml.add_space_prefix": _begins_with_space(said),
    }


def _begins_with_space(said: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before it; raises :class:`InputError` where spaces are treated otherwise."""
    before, split = said["normalizer"], said["pre_tokenizer"]
    steps = before["normalizers"] if before and before["type"] == "Sequence" else [before]
    if split is None and steps in ([_REPLACE], [{"type": "Prepend", "prepend": _SPACE}, _REPLACE]):
        return len(steps) == 2
    scheme = (split or {}).get("prepend_scheme")
    meta = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}
    if before is not None or split != meta:
        raise InputError(
            f"the tokenizer changes text by {_brief(before)} and splits it by {_brief(split)}, and sentencepiece, as "
            "llama.cpp has it, does neither"
        )
    if scheme == "never":
        return False
    after = ", and text after a special token," if scheme == "first" else ""
    warnings.warn(
        f"text that begins with a space{after} gets one more from llama.cpp, as from sentencepiece, which this "
        "tokenizer.json does not do: there tokens differ",
        Notice,
        stacklevel=5,
    )
    return True


def _scores(tokens: Sequence[tuple[str, int]], merges: Sequence[tuple[str, str]]) -> list[float]:
    """A score for each token with which merging the best first, and the leftmost of the best, does what ``merges`` do.

    sentencepiece merges whatever two neighbours make a token, that of the highest score first. Merges are the same if
    they are all pairs that make a token, and those that make one follow each other. Runs of spaces have one score in
    LLaMA's vocabulary, and the pair with the longest left part goes first: the leftmost, since a run grows from there.

    Raises:
        InputError: when they are not.
    """
    texts = {text for text, kind in tokens if kind == NORMAL}
    parts = [(text[:cut], text[cut:]) for text in texts for cut in range(1, len(text))]
    alike = {(left, right) for left, right in parts if left in texts and right in texts} == set(merges)
    last = {left + right: rank for rank, (left, right) in enumerate(merges)}
    scores: dict[str, float] = {}
    begin = end = -1
    for rank, (left, right) in enumerate(merges):
        made = left + right
        if rank > end:  # all that was made so far is made no more
            begin = rank
        elif made != merges[begin][0] + merges[begin][1]:
            alike &= set(made) == {_SPACE} and len(left) <= len(merges[rank - 1][0])
        end = max(end, last[made])
        scores[made] = -float(begin)
    if not alike:
        raise InputError(
            "the tokenizer merges other pairs than sentencepiece would, or in another order, and no GGUF file says so"
        )
    least = -float(len(merges))
    return [scores.get(text, least) if kind == NORMAL else 0.0 for text, kind in tokens]


def _brief(part: Any) -> str:
    text = re.sub(r"\s+", " ", json.dumps(part, ensure_ascii=False))
    return text if len(text) < 200 else f"{text[:200]} …"
