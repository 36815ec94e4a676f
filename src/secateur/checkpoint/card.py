"""The model card of a written folder: ``README.md`` in the hub's format, for people and for the hub's search.

All that it says follows from the manifest, the config, and what the card of the model before says of its terms: no
times, and no name of the folder that it lies in, so that the same run writes the same bytes. Of the text of that other
card nothing is taken. A path is private: of a model or a text on this machine only the last part of its name is told.

Everything that is read here may come from anyone, and what cannot be read is left out: at the end of a long run a
damaged card of the model before is no reason to lose it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from secateur.checkpoint.layout import CARD, GATHER_TYPE, PACKED_TYPE, terms_in
from secateur.citations import PAPERS, RIA
from secateur.data import hub_dataset, public_name
from secateur.errors import InputError
from secateur.files import member, read_text
from secateur.importance import METHODS
from secateur.patterns import NM
from secateur.quantization.methods import QUANTIZATIONS
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.scores import SCORES
from secateur.shrinkage import Shrinkage

# What a model is called on the hub; no path that begins at a root, at "." or at "~" looks so.
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# Longer words are none that a card's metadata has.
_MOST_CHARACTERS, _MOST_WORDS = 200, 100

# Between these lies what has been measured; see :mod:`secateur.evaluation.cards`.
MEASURED, MEASURED_END = "<!-- measured by secateur eval -->", "<!-- end of what was measured -->"

T = TypeVar("T")


class _Samples(msgspec.Struct, frozen=True):
    source: str
    samples: int
    length: int
    seed: int


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was done to the model, as the manifest has it."""

    model: str
    calibration: _Samples | None = None
    computed_in: str
    secateur: str
    versions: dict[str, str] = {}

    @property
    def done(self) -> str:
        """What, in a word."""
        raise NotImplementedError

    @property
    def tags(self) -> list[str]:
        """What the hub may search by."""
        raise NotImplementedError

    @property
    def methods(self) -> list[str]:
        """The names of the methods whose papers are cited."""
        raise NotImplementedError

    @property
    def lines(self) -> list[str]:
        """How, for people."""
        raise NotImplementedError

    def section(self, parents: Sequence[str]) -> str:
        """All of it, for people."""
        versions = {"secateur": self.secateur, **self.versions}
        computed = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines = [
            f"Made of: {_named(self.model, parents)}",
            *self.lines,
            _sampled(self.calibration),
            f"Computed in {_code(self.computed_in)} with {_code(computed)}",
        ]
        return f"## {self.done.capitalize()}\n\n" + "\n".join(f"- {line}" for line in lines)


class _Pruned(_Step, frozen=True, kw_only=True):
    recipe: Recipe
    sparsity: float
    layers: list[Any]

    @property
    def done(self) -> str:
        return "pruned"

    @property
    def tags(self) -> list[str]:
        target = self.recipe.target
        pattern = f"{target.kept}:{target.group}" if isinstance(target, NM) else "unstructured-sparsity"
        return ["sparsity", pattern, self.recipe.score]

    @property
    def methods(self) -> list[str]:
        recipe = self.recipe
        return [recipe.score, *[recipe.permute] * recipe.orders_channels, recipe.reconstruct]

    @property
    def lines(self) -> list[str]:
        recipe, target = self.recipe, self.recipe.target
        lines = [f"Removed: {self.sparsity:.2%} of the weights of {len(self.layers)} linears"]
        if isinstance(target, NM):
            lines.append(f"Pattern: {target}, of {target.group} consecutive input channels {target.kept} weights stay")
        else:
            lines.append(f"Pattern: unstructured; weights compete within the {target.scope}")
        alpha = f", alpha {recipe.alpha:g}" * (recipe.score == "ria")
        lines.append(f"Score: {recipe.score}, which is {SCORES[recipe.score].about}{alpha}")
        if recipe.orders_channels:
            lines.append(f"Order of the channels: by {recipe.permute}, {_FOLDS[recipe.fold]}")
        if recipe.reconstruct != "none":
            lines.append(f"Reconstruction: by {recipe.reconstruct}, kept weights make up for those that were removed")
        if recipe.refine:
            lines.append("Refinement: kept weights were exchanged for removed ones where outputs err less so")
        if recipe.reconstruct == "none" and not recipe.refine:
            lines.append("Reconstruction: none, kept weights have their bits")
        return lines


class _Shrunk(_Step, frozen=True, kw_only=True):
    shrinkage: Shrinkage
    sparsity: float

    @property
    def done(self) -> str:
        return "shrunk"

    @property
    def tags(self) -> list[str]:
        return ["structured-pruning"]

    @property
    def methods(self) -> list[str]:
        return [self.shrinkage.method]

    @property
    def lines(self) -> list[str]:
        method, left = self.shrinkage.method, "zeros" if self.shrinkage.in_place else "a smaller model"
        return [
            f"Removed: {self.sparsity:.2%} of the weights of the blocks' linears, which leaves {left}",
            f"Method: {method}, {METHODS[method].about}",
        ]


class _Quantized(_Step, frozen=True, kw_only=True):
    recipe: QuantizationRecipe
    bits_per_weight: float
    layers: list[Any]

    @property
    def done(self) -> str:
        return "quantized"

    @property
    def tags(self) -> list[str]:
        return [self.recipe.method, f"{self.recipe.bits}-bit"]

    @property
    def methods(self) -> list[str]:
        return [self.recipe.method]

    @property
    def lines(self) -> list[str]:
        recipe = self.recipe
        return [
            f"Weights: {recipe.bits} bits in groups of {recipe.group_size}, {self.bits_per_weight:.2f} with scales and "
            f"zero-points, of {len(self.layers)} linears; what was zero is zero",
            f"Method: {recipe.method}, {QUANTIZATIONS[recipe.method].about}",
        ]


class _Rounded(msgspec.Struct, frozen=True):
    bits: int


# What became of the order of the channels.
_FOLDS = {
    "exact": "which is folded into the weights of a plain model",
    "gather": "which is applied before each reader, and only by Secateur",
    "none": "for the choice of the mask alone",
}


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
    parts = (_part(manifest, _Pruned), _part(manifest, _Shrunk), _part(manifest.get("quantization"), _Quantized))
    steps: list[_Step] = [part for part in parts if part]
    rounded, packed = _part(manifest.get("rounded"), _Rounded), config.get("model_type") == PACKED_TYPE
    own = packed or GATHER_TYPE in (config.get("model_type"), _base_of(config).get("model_type"))
    words = [*(step.done for step in steps), *["quantized"] * bool(rounded), *["packed"] * packed]
    done = list(dict.fromkeys(words))
    carried = [tag for tag in _listed(_words(before.get("tags"))) if tag != "packed"]  # which ends with unpacking
    corpora = [hub_dataset(step.calibration.source) for step in steps if step.calibration]
    data = ModelCardData(
        base_model=parents[0] if parents else None,
        datasets=[corpus for corpus in dict.fromkeys(corpora) if corpus and _ON_HUB.fullmatch(corpus)] or None,
        language=_words(before.get("language")),
        library_name="secateur" if own else "transformers",
        license=_word(before.get("license")),
        license_name=_word(before.get("license_name")),
        license_link=_word(before.get("license_link")),
        pipeline_tag=_word(before.get("pipeline_tag")) or "text-generation",
        tags=[*carried, "secateur", *done, *(tag for step in steps for tag in step.tags)],
        # The hub has no word for pruning; it shows a model without one under its base all the same.
        base_model_relation="quantized" if parents and "quantized" in done else None,
    )
    first = steps[0].model if steps else str(model)  # to pack is no step: unpacked it is what it was, card included
    sections = [
        f"# {', '.join([_code(_last(first)), *done])}",
        f"Made of {_named(first, parents)} by Secateur, without any training.",
        *(step.section(parents) for step in steps),
        *_packing(rounded, packed),
        _loading(own, "quantization_config" in config),
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


def _part(content: Any, kind: type[T]) -> T | None:
    """A part of a manifest; None where it is not there, or not as Secateur writes it."""
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, InputError):
        return None


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
    return [name for name in dict.fromkeys(names) if _ON_HUB.fullmatch(name)]


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


def _code(text: str) -> str:
    """As code, in which Markdown and HTML mean nothing."""
    plain = "".join(character if character.isprintable() and character != "`" else " " for character in text)
    return f"`{plain.strip() or '?'}`"


def _last(model: str) -> str:
    """The last part of a path or a name on the hub."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name or path.resolve().name


def _named(model: str, parents: Sequence[str]) -> str:
    """A model by its name on the hub, if that is known, and else by that of its folder or file."""
    known = next((name for name in parents if _last(name) == _last(model)), None)
    return f"[{known}](https://huggingface.co/{known})" if known else _code(_last(model))


def _sampled(samples: _Samples | None) -> str:
    if samples is None:
        return "Calibrated on nothing: the method reads no activations"
    known, named = hub_dataset(samples.source), _code(public_name(samples.source))
    text = f"[{known}](https://huggingface.co/datasets/{known})" if known and _ON_HUB.fullmatch(known) else named
    return f"Calibrated on {samples.samples:,} samples of {samples.length:,} tokens of {text}, seed {samples.seed}"


def _packing(rounded: _Rounded | None, packed: bool) -> list[str]:
    lines = []
    if packed:
        lines.append("- Linears are stored as a mask of one bit per weight, and the weights that it keeps")
    if rounded:
        lines.append(f"- Values were rounded to {rounded.bits} bits, with a scale for each row and 128 columns")
    return [f"## {'Packed' if packed else 'Rounded'}\n\n" + "\n".join(lines)] if lines else []


def _loading(own: bool, quantized: bool) -> str:
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
    return f"""## Use it

transformers{needs} loads it, without Secateur.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")
```"""


def _measuring(model: str, parents: Sequence[str]) -> str:
    dense = next((name for name in parents if _last(name) == _last(model)), "THE_MODEL_BEFORE")
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
        words.append(f"This model comes under the terms of the one that it was made of: {_code(said)}.")
    if files := terms_in(folder):
        words.append(f"They are in {', '.join(map(_code, files))}.")
    return ["## Terms\n\n" + " ".join(words)] if words else []


def _citations(methods: Sequence[str]) -> str:
    papers = [PAPERS[method] for method in dict.fromkeys(methods) if method in PAPERS]
    return "## Cite\n\n```bibtex\n" + "\n\n".join([RIA, *papers]) + "\n```"
