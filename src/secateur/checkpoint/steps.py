"""What was done to a model, read from its manifest and told to people: the middle of a card.

A manifest may come from anyone: a part that is not as Secateur writes it counts as absent, and names are told as code.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from secateur.data import SELF, hub_dataset, parts_of, public_name
from secateur.errors import InputError
from secateur.importance import METHODS
from secateur.patterns import NM, Unstructured, show_patterns
from secateur.quantization.methods import QUANTIZATIONS
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.scores import SCORES
from secateur.shrinkage import Shrinkage

# What a model is called on the hub; no path that begins at a root, at "." or at "~" looks so.
ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# What became of the order of the channels.
_FOLDS = {
    "exact": "which is folded into the weights of a plain model",
    "gather": "which is applied before each reader, and only by Secateur",
    "none": "for the choice of the mask alone",
}

T = TypeVar("T")


class _Samples(msgspec.Struct, frozen=True):
    source: str
    samples: int
    length: int
    seed: int
    bos: str = "once"


class Step(msgspec.Struct, frozen=True, kw_only=True):
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
            f"Made of: {named(self.model, parents)}",
            *self.lines,
            _sampled(self.calibration),
            f"Computed in {code(self.computed_in)} with {code(computed)}",
        ]
        return f"## {self.done.capitalize()}\n\n" + "\n".join(f"- {line}" for line in lines)


class _HeldOut(msgspec.Struct, frozen=True):
    kl: float
    top1: float
    tokens: int


class _Mask(msgspec.Struct, frozen=True):
    of: str


class _Pruned(Step, frozen=True, kw_only=True):
    recipe: Recipe
    sparsity: float
    layers: list[Any]
    allocated: bool = False
    held_out: _HeldOut | None = None
    mask: _Mask | None = None

    @property
    def done(self) -> str:
        return "pruned"

    @property
    def tags(self) -> list[str]:
        patterns = [pattern for _, pattern in self.recipe.targets]
        kinds = [f"{x.kept}:{x.group}" if isinstance(x, NM) else "unstructured-sparsity" for x in patterns]
        return ["sparsity", *dict.fromkeys(kinds), self.recipe.score]

    @property
    def methods(self) -> list[str]:
        recipe = self.recipe
        return [recipe.score, *[recipe.permute] * recipe.orders_channels, recipe.reconstruct, *["tune"] * recipe.tune]

    @property
    def lines(self) -> list[str]:
        recipe = self.recipe
        lines = [f"Removed: {self.sparsity:.2%} of the weights of {len(self.layers)} linears"]
        patterns = list(dict.fromkeys(pattern for _, pattern in recipe.targets))
        for target in patterns:
            if isinstance(target, NM):
                told = f"of {target.group} consecutive input channels {target.kept} weights stay"
                lines.append(f"Pattern: {target}, {told}")
        if free := [pattern for pattern in patterns if isinstance(pattern, Unstructured)]:
            shares = f" by layer, {show_patterns(free)}" if len(patterns) > 1 else ""
            lines.append(f"Pattern: unstructured{shares}; weights compete within the {free[0].scope}")
        if self.allocated:
            lines.append("Allocation: more is removed where that changes the model's predictions less")
        alpha = f", alpha {recipe.alpha:g}" * (recipe.score == "ria")
        lines.append(f"Score: {recipe.score}, which is {SCORES[recipe.score].about}{alpha}")
        if recipe.orders_channels:
            lines.append(f"Order of the channels: by {recipe.permute}, {_FOLDS[recipe.fold]}")
        if recipe.reconstruct != "none":
            lines.append(f"Reconstruction: by {recipe.reconstruct}, kept weights make up for those that were removed")
        if recipe.refine:
            lines.append("Refinement: kept weights were exchanged for removed ones where outputs err less so")
        if recipe.tune:
            epochs = f"{recipe.epochs} epochs of Adam at {recipe.learning_rate:g}"
            lines.append(f"Tuning: block by block, kept weights, norms and biases learned the dense output, {epochs}")
        if self.mask:
            lines.append(f"Mask: found on {named(self.mask.of, ())}, and put on again after the weights had changed")
        if not recipe.changes_weights and not recipe.refine:
            lines.append("Reconstruction: none, kept weights have their bits")
        if far := self.held_out:
            lines.append(
                f"Against the dense model, on {far.tokens:,} tokens of the calibration text that were held out: "
                f"KL divergence {far.kl:.3g} nats per token, the same likeliest next token at {far.top1:.1%}"
            )
        return lines


class _Shrunk(Step, frozen=True, kw_only=True):
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
        return ["reap" if self.shrinkage.experts is not None else self.shrinkage.method]

    @property
    def lines(self) -> list[str]:
        if self.shrinkage.experts is not None:
            return [
                f"Removed: experts of each block, {self.sparsity:.2%} of the weights in the blocks' matrices, which "
                "leaves a smaller model",
                "Method: reap, what an expert adds to the tokens that are routed to it: mean of gate × ‖output‖",
            ]
        method, left = self.shrinkage.method, "zeros" if self.shrinkage.in_place else "a smaller model"
        return [
            f"Removed: {self.sparsity:.2%} of the weights of the blocks' linears, which leaves {left}",
            f"Method: {method}, {METHODS[method].about}",
        ]


class _Quantized(Step, frozen=True, kw_only=True):
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


def steps_of(manifest: Mapping[str, Any]) -> list[Step]:
    """What a manifest says was done, first things first; packing is none of it."""
    parts = (_part(manifest, _Pruned), _part(manifest, _Shrunk), _part(manifest.get("quantization"), _Quantized))
    return [part for part in parts if part]


def rounded_to(manifest: Mapping[str, Any]) -> int | None:
    """The bits that packing has rounded values to, if it has."""
    rounded = _part(manifest.get("rounded"), _Rounded)
    return rounded.bits if rounded else None


def _part(content: Any, kind: type[T]) -> T | None:
    """A part of a manifest; None where it is not there, or not as Secateur writes it."""
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, InputError):
        return None


def code(text: str) -> str:
    """As code, in which Markdown and HTML mean nothing."""
    plain = "".join(character if character.isprintable() and character != "`" else " " for character in text)
    return f"`{plain.strip() or '?'}`"


def last_part(model: str) -> str:
    """The last part of a path or a name on the hub."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name or path.resolve().name


def named(model: str, parents: Sequence[str]) -> str:
    """A model by its name on the hub, if that is known, and else by that of its folder or file."""
    known = next((name for name in parents if last_part(name) == last_part(model)), None)
    return f"[{known}](https://huggingface.co/{known})" if known else code(last_part(model))


def _sampled(samples: _Samples | None) -> str:
    if samples is None:
        return "Calibrated on nothing: the method reads no activations"
    parts = parts_of(samples.source)
    whole = sum(part.share for part in parts)
    told = [f"{float(part.share / whole):.0%} {_text(part.source)}" for part in parts]
    of = f"a mixture: {', '.join(told)}" if len(told) > 1 else _text(samples.source)
    bos = {"each": ", each of which begins with BOS", "never": ", without BOS"}.get(samples.bos, "")
    return f"Calibrated on {samples.samples:,} samples of {samples.length:,} tokens of {of}, seed {samples.seed}{bos}"


def _text(source: str) -> str:
    if source == SELF:
        return "text that the model itself wrote"
    known, named = hub_dataset(source), code(public_name(source))
    return f"[{known}](https://huggingface.co/datasets/{known})" if known and ON_HUB.fullmatch(known) else named
