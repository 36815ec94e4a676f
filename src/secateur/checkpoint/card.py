"""The model card of a written folder: ``README.md`` in the hub's format, for people and for the hub's search.

All that it says follows from the manifest, the config, and what the card of the model before says of its terms: no
times, and no name of the folder that it lies in, so that the same run writes the same bytes. Of the text of that other
card nothing is taken. A path is private: of a model or a text on this machine only the last part of its name is told.

Everything that is read here may come from anyone, and what cannot be read is left out: at the end of a long run a
damaged card of the model before is no reason to lose it.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from secateur.checkpoint.layout import CARD, GATHER_TYPE, PACKED_TYPE, terms_in
from secateur.checkpoint.steps import ON_HUB, code, last_part, named, rounded_to, steps_of
from secateur.citations import PAPERS, RIA
from secateur.data import hub_dataset, parts_of
from secateur.errors import InputError
from secateur.files import member, read_text

# Longer words are none that a card's metadata has.
_MOST_CHARACTERS, _MOST_WORDS = 200, 100

# Between these lies what has been measured; see :mod:`secateur.evaluation.cards`.
MEASURED, MEASURED_END = "<!-- measured by secateur eval -->", "<!-- end of what was measured -->"


def model_card(model: str | Path, folder: Path, manifest: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The text of the card.

    Args:
        model: what the written folder was made of, as the user named it.
        folder: the files of that.
        manifest: of the written folder, whole but for its list of files.
        config: the content of its ``config.json``.
    """
    before = _front_matter(folder)
    parents = _parents(str(model), folder, before, config)
    steps, bits, packed = steps_of(manifest), rounded_to(manifest), config.get("model_type") == PACKED_TYPE
    own = packed or GATHER_TYPE in (config.get("model_type"), _base_of(config).get("model_type"))
    sees = _base_of(_base_of(config)).get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    words = [*(step.done for step in steps), *["quantized"] * bool(bits), *["packed"] * packed]
    done = list(dict.fromkeys(words))
    # What follows "secateur" told of the model before: a packed one may be unpacked now, or pruned to another pattern.
    carried = takewhile(lambda tag: tag != "secateur", _listed(_words(before.get("tags"))))
    sources = [part.source for step in steps if step.calibration for part in parts_of(step.calibration.source)]
    corpora = map(hub_dataset, sources)
    data = ModelCardData(
        base_model=parents[0] if parents else None,
        datasets=[corpus for corpus in dict.fromkeys(corpora) if corpus and ON_HUB.fullmatch(corpus)] or None,
        language=_words(before.get("language")),
        library_name="secateur" if own else "transformers",
        license=_word(before.get("license")),
        license_name=_word(before.get("license_name")),
        license_link=_word(before.get("license_link")),
        pipeline_tag=_word(before.get("pipeline_tag")) or ("image-text-to-text" if sees else "text-generation"),
        tags=[*carried, "secateur", *done, *(tag for step in steps for tag in step.tags)],
        # The hub has no word for pruning; it shows a model without one under its base all the same.
        base_model_relation="quantized" if parents and "quantized" in done else None,
    )
    first = steps[0].model if steps else str(model)  # to pack is no step: unpacked it is what it was, card included
    sections = [
        f"# {', '.join([code(last_part(first)), *done])}",
        f"Made of {named(first, parents)} by Secateur, without any training.",
        *(step.section(parents) for step in steps),
        *_packing(bits, packed),
        _loading(own, "quantization_config" in config, sees),
        _measuring(first, parents),
        *_terms(folder, data),
        _citations([method for step in steps for method in step.methods]),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


# ---------------------------------------------------------------- what is known


def _front_matter(folder: Path) -> dict[str, Any]:
    """The metadata of the card in ``folder``; none where there is none that can be read."""
    try:
        path = member(folder, CARD)
        found = REGEX_YAML_BLOCK.search(read_text(path)) if path else None
        data = yaml.safe_load(found.group(2)) if found else {}
    except (InputError, OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _base_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    base = config.get("base")
    return base if isinstance(base, Mapping) else config


def _parents(model: str, folder: Path, before: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What the hub has of the models behind this one, the nearest first."""
    cached = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    names = [
        folder.parent.parent.name.removeprefix("models--").replace("--", "/") if cached else "",
        "" if Path(model).exists() else model,
        *_listed(_words(before.get("base_model"))),
    ]
    written = _base_of(_base_of(config)).get("_name_or_path")
    if not any(names) and "/" in (name := _word(written) or ""):  # else it may be a folder's
        names.append(name)
    return [name for name in dict.fromkeys(names) if ON_HUB.fullmatch(name)]


def _word(value: Any) -> str | None:
    """A text of one line."""
    fits = isinstance(value, str) and len(value) <= _MOST_CHARACTERS and value.isprintable() and value.strip()
    return value if fits else None


def _words(value: Any) -> list[str] | str | None:
    if isinstance(value, list):
        return [word for each in value[:_MOST_WORDS] if (word := _word(each))] or None
    return _word(value)


def _listed(words: list[str] | str | None) -> list[str]:
    return [words] if isinstance(words, str) else words or []


# ---------------------------------------------------------------- what is said


def _packing(bits: int | None, packed: bool) -> list[str]:
    lines = []
    if packed:
        lines.append("- Linears are stored as a mask of one bit per weight, and the weights that it keeps")
    if bits:
        lines.append(f"- Values were rounded to {bits} bits, with a scale for each row and 128 columns")
    return [f"## {'Packed' if packed else 'Rounded'}\n\n" + "\n".join(lines)] if lines else []


def _loading(own: bool, quantized: bool, sees: bool) -> str:
    if own:
        return """## Use it

Secateur loads it; plain transformers does not.

```python
import secateur

model = secateur.load("THIS_FOLDER")
```

```
secateur generate THIS_FOLDER "The capital of France is"
```"""
    needs = " with `compressed-tensors`" if quantized else ""
    model, words = ("ImageTextToText", "Processor") if sees else ("CausalLM", "Tokenizer")
    return f"""## Use it

transformers{needs} loads it, without Secateur.

```python
from transformers import AutoModelFor{model}, Auto{words}

{words.lower()} = Auto{words}.from_pretrained("THIS_FOLDER")
model = AutoModelFor{model}.from_pretrained("THIS_FOLDER", dtype="auto")
```"""


def _measuring(model: str, parents: Sequence[str]) -> str:
    dense = next((name for name in parents if last_part(name) == last_part(model)), "THE_MODEL_BEFORE")
    return f"""## What it is worth

{MEASURED}
Nothing has been measured yet. This measures, and writes the results here:

```
secateur eval {dense} THIS_FOLDER --data wikitext2 --card
```
{MEASURED_END}"""


def _terms(folder: Path, data: ModelCardData) -> list[str]:
    """What is known of the terms, if anything is."""
    said = data.license_name or data.license
    words = []
    if said:
        words.append(f"This model comes under the terms of the one that it was made of: {code(said)}.")
    if files := terms_in(folder):
        words.append(f"They are in {', '.join(map(code, files))}.")
    return ["## Terms\n\n" + " ".join(words)] if words else []


def _citations(methods: Sequence[str]) -> str:
    papers = [PAPERS[method] for method in dict.fromkeys(methods) if method in PAPERS]
    return "## Cite\n\n```bibtex\n" + "\n\n".join([RIA, *papers]) + "\n```"
