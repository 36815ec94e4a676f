"""What a sweep is to do, as data: a grid of models, recipes and seeds, and how each is measured.

A grid is a product of axes. An axis is a list of values of one option, or labels, each with the options that it stands
for; ``recipes`` is the first of them. Options come in layers, of which the later win: a preset, ``base``, the recipe,
the other axes. So ``base`` says what all rows have in common, and a recipe only what is its own.

    models: [./llama, HuggingFaceTB/SmolLM2-135M]
    base: {calibration: c4, samples: 128}
    recipes:
      magnitude: {score: magnitude}
      ria: {score: ria}
      ria+cg: {score: ria, reconstruct: cg}
      best: {preset: best}
    grid:
      pattern: [2:4, 4:8]
      order:
        as it is: {permute: none}
        lsa: {permute: lsa}
    seeds: [0, 1, 2]
    evaluate: {data: [wikitext2, c4]}
    baseline: {recipe: magnitude}
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import yaml

from secateur.errors import InputError
from secateur.files import read_text
from secateur.recipe import Recipe

MOST_VARIANTS = 10_000
RECIPE, DENSE = "recipe", "dense"
_KEYS = ("models", "base", "recipes", "grid", "seeds", "evaluate", "baseline")
_OPTIONS = tuple(field.name for field in dataclasses.fields(Recipe))
# Columns of the table that are no axes, and ways to say one thing.
_TAKEN = ("model", "seed", "rows", "failed", "zeros", "retained", "relative_error", "seconds")
_TARGET = ("sparsity", "pattern")

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How every model is measured: the arguments of :func:`secateur.evaluate`, by the same names.

    Attributes:
        data: the texts; wikitext2 if there are no tasks either.
        window: tokens per window.
        stride: tokens from one window to the next.
        limit: use only so many windows of each text.
        tasks: names of tasks.
        task_files: a folder of task files.
        task_limit: use only so many items of each task.
        shots: examples before each question.
        device: where to compute.
        dtype: in which precision.
    """

    data: tuple[str, ...] = ()
    window: int | None = None
    stride: int | None = None
    limit: int | None = None
    tasks: tuple[str, ...] = ()
    task_files: str | None = None
    task_limit: int | None = None
    shots: int | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Variant:
    """One way to prune.

    Attributes:
        labels: its place on each axis.
        recipe: with the seed of its own; None for the dense model, which is left as it is.
    """

    labels: tuple[str, ...]
    recipe: Recipe | None

    def __str__(self) -> str:
        return " ".join(label for label in self.labels if label)


@dataclass(frozen=True)
class Skipped:
    """A combination that makes no row: it makes no sense, or no difference.

    Attributes:
        model: for which model, by its label; None for all.
        labels: its place on each axis.
        reason: why.
    """

    model: str | None
    labels: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Row:
    """One model, pruned in one way with one seed: what is computed at a time.

    Attributes:
        model: the model's label.
        variant: in which way.
        recipe: the variant's, with the row's seed, and with options that do nothing at one value; None for the dense.
    """

    model: str
    variant: Variant
    recipe: Recipe | None

    def __str__(self) -> str:
        seed = f" seed {self.recipe.seed}" if self.recipe else ""
        return f"{self.model} {self.variant}{seed}"


@dataclass(frozen=True)
class Grid:
    """A sweep to be.

    Attributes:
        models: what a user calls them, by label.
        axes: the names of the axes.
        variants: the combinations that make sense.
        skipped: those that do not, and those that are the same as another.
        seeds: of the draw of the samples; none to leave each recipe its own.
        protocol: how every model is measured.
        baseline: labels, by axis, of the variant against which the share of the loss that others prevent is measured;
            on the other axes it is where the row is.
    """

    models: Mapping[str, str]
    axes: tuple[str, ...]
    variants: tuple[Variant, ...]
    skipped: tuple[Skipped, ...] = ()
    seeds: tuple[int, ...] = ()
    protocol: Protocol = Protocol()
    baseline: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> "Grid":
        """Read a YAML file.

        Raises:
            InputError: when there is none, or as :meth:`from_dict` does.
        """
        try:
            return cls.from_dict(_Loader(read_text(Path(path))).get_single_data(), str(path))
        except OSError as error:
            raise InputError(f"grid {path} cannot be read: {error.strerror}") from None
        except InputError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"grid {path} is not YAML: {error}") from None

    @classmethod
    def from_dict(cls, data: Any, where: str = "grid") -> "Grid":
        """Check plain data and build the grid; ``where`` names its source in errors.

        Raises:
            InputError: when a key is unknown, a recipe that is no product of other axes makes no sense, or no
                combination of an axis does.
        """
        given = _checked_keys(data, _KEYS, where)
        models = given.get("models") or []
        listed = models if isinstance(models, dict) else {one: one for one in _words(models, f"{where}: models")}
        named = {
            label: _words([model], f"{where}: models")[0]
            for label, model in _checked_mapping(listed, f"{where}: models").items()
        }
        if not named:
            raise InputError(f"{where} names no models")
        axes = _axes(given, where)
        variants, skipped = _variants(axes, _options(given.get("base"), f"{where}: base"), where)
        return cls(
            models=named,
            axes=tuple(axes),
            variants=variants,
            skipped=skipped,
            seeds=_seeds(given.get("seeds"), where),
            protocol=_protocol(given.get("evaluate") or {}, f"{where}: evaluate"),
            baseline=_baseline(given.get("baseline") or {}, axes, f"{where}: baseline"),
        )

    @property
    def dense(self) -> Variant:
        """The model as it is."""
        return Variant((DENSE, *[""] * (len(self.axes) - 1)), None)

    def rows(self, model: str, variant: Variant) -> list[Row]:
        """One for each seed that makes a difference."""
        if variant.recipe is None:
            return [Row(model, variant, None)]
        seeds = self.seeds or (variant.recipe.seed,)
        recipes = dict.fromkeys(replace(variant.recipe, seed=seed).essence for seed in seeds)
        return [Row(model, variant, recipe) for recipe in recipes]

    def baseline_of(self, variant: Variant) -> tuple[str, ...] | None:
        """The labels of the variant that this one is compared with; None if there is none."""
        if not self.baseline or variant.recipe is None:
            return None
        return tuple(self.baseline.get(axis, label) for axis, label in zip(self.axes, variant.labels, strict=True))


class _Loader(yaml.SafeLoader):
    """YAML in which 2:4 is a text, not a number in base 60, and no key hides another of its name."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class does, with an error where a key is given twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise InputError(f"{key!r} is given twice in one mapping of the grid")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile("[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def _checked_keys(data: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """``data`` with its keys as Python has them; raises :class:`InputError` for one that is not ``known``."""
    if not isinstance(data, dict):
        raise InputError(f"{where} is not a mapping")
    named = _named(((str(key).replace("-", "_"), value) for key, value in data.items()), where)
    for key in named:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise InputError(f"{where} has an unknown key {key!r}{meant}")
    return named


def _words(values: Any, where: str) -> list[str]:
    """A list of plain values, each as the table shows it."""
    if not isinstance(values, list | tuple):
        raise InputError(f"{where} is not a list")
    return [_label(value, where) for value in values]


def _label(value: Any, where: str) -> str:
    if isinstance(value, list | tuple) and not any(isinstance(one, list | tuple) for one in value):
        return ", ".join(_words(value, where)) or "none"
    if not isinstance(value, str | int | float | None):
        raise InputError(f"{where}: {type(value).__name__} is no kind of value to choose from")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _options(value: Any, where: str) -> tuple[Options, Options]:
    """A preset's options and those that come with it, from a preset's name or a mapping that may name one."""
    if isinstance(value, str):
        value = {"preset": value}
    given = _checked_keys(value or {}, ("preset", *_OPTIONS), where)
    if (preset := given.pop("preset", None)) is None:
        return {}, given
    recipe = Recipe.load(_label(preset, where))
    unlike_default = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)}
    return {name: value for name, value in unlike_default.items() if value != getattr(Recipe(), name)}, given


def _axes(given: Mapping[str, Any], where: str) -> dict[str, dict[str, tuple[Options, Options]]]:
    """The options behind each label, by axis; one axis of one label where none is given."""
    axes: dict[str, dict[str, tuple[Options, Options]]] = {}
    recipes = given.get("recipes")
    if isinstance(recipes, list | tuple):
        recipes = {name: name for name in _words(recipes, f"{where}: recipes")}
    if recipes is not None:
        axes[RECIPE] = _labelled(recipes, f"{where}: recipes")
    set_by: dict[str, str] = {}
    for key, values in _checked_mapping(given.get("grid") or {}, f"{where}: grid").items():
        place = f"{where}: grid: {key}"
        if key in (*_TAKEN, *axes):
            raise InputError(f"{place} is no name for an axis: {key} is a column already")
        if isinstance(values, list | tuple):
            _checked_keys({key: None}, _OPTIONS, f"{where}: grid")
            labelled: dict[str, tuple[Options, Options]] = {
                _label(value, place): ({}, {key.replace("-", "_"): value}) for value in values
            }
            if len(labelled) != len(values):
                raise InputError(f"{place} lists a value twice")
            axes[key] = labelled
        else:
            axes[key] = _labelled(values, place)
        if not axes[key]:
            raise InputError(f"{place} has no values")
        for option in {name for _, options in axes[key].values() for name in options}:
            said = " or ".join(_TARGET) if option in _TARGET else option
            if set_by.setdefault(said, key) != key:
                raise InputError(f"{where}: grid: {set_by[said]} and {key} both set {said}")
    return axes or {RECIPE: {"": ({}, {})}}


def _checked_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a mapping")
    return _named(((str(key), item) for key, item in value.items()), where)


def _named(items: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Items by name; raises :class:`InputError` where two have one name, as 1 and "1" have."""
    named: dict[str, Any] = {}
    for name, item in items:
        if name in named:
            raise InputError(f"{where} has {name!r} twice")
        named[name] = item
    return named


def _labelled(value: Any, where: str) -> dict[str, tuple[Options, Options]]:
    labels = _checked_mapping(value, where)
    if DENSE in labels:
        raise InputError(f"{where}: {DENSE} is what the table calls the model as it is: give another name")
    return {label: _options(options, f"{where}: {label}") for label, options in labels.items()}


def _variants(
    axes: Mapping[str, Mapping[str, tuple[Options, Options]]], base: tuple[Options, Options], where: str
) -> tuple[tuple[Variant, ...], tuple[Skipped, ...]]:
    """All combinations: those that make sense, and those that do not, unless that is no accident of the product."""
    variants: list[Variant] = []
    senseless: list[Skipped] = []
    same: list[Skipped] = []
    if (number := math.prod(map(len, axes.values()))) > MOST_VARIANTS:
        raise InputError(f"{where} makes {number:,} combinations, and nobody waits for more than {MOST_VARIANTS:,}")
    for chosen in product(*(labels.items() for labels in axes.values())):
        labels = tuple(label for label, _ in chosen)
        preset = next((preset for _, (preset, _) in chosen if preset), base[0])
        try:
            recipe = Recipe.from_dict(_merged([preset, base[1], *(options for _, (_, options) in chosen)]), "recipe")
        except InputError as error:
            senseless.append(Skipped(None, labels, str(error)))
            continue
        if twin := next((one for one in variants if one.recipe and one.recipe.essence == recipe.essence), None):
            same.append(Skipped(None, labels, f"it is the same as {twin}"))
        else:
            variants.append(Variant(labels if any(labels) else (recipe.summary(),), recipe))
    check_possible(axes.keys(), [*variants, *same], senseless, f"{where}: ")
    return tuple(variants), (*senseless, *same)


def check_possible(
    axes: Iterable[str], possible: Sequence[Variant | Skipped], senseless: Iterable[Skipped], where: str = ""
) -> None:
    """Raise :class:`InputError` if a label is only in combinations that make no sense: that is no accident."""
    for one in senseless:
        for place, axis in enumerate(axes):
            if not any(other.labels[place] == one.labels[place] for other in possible):
                raise InputError(f"{where}no row can have {axis} {one.labels[place]}: {one.reason}")


def _merged(layers: Iterable[Options]) -> dict[str, Any]:
    """The options of all layers, of which the later win; sparsity and pattern are two ways to say one thing."""
    options: dict[str, Any] = {}
    for layer in layers:
        for option, other in (("sparsity", "pattern"), ("pattern", "sparsity")):
            if layer.get(option) is not None and layer.get(other) is None:
                options.pop(other, None)
        options.update(layer)
    return options


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    try:
        seeds = msgspec.convert([] if value is None else value, tuple[int, ...])
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: seeds: {error}") from None
    for seed in seeds:
        Recipe(seed=seed)  # refuses what is none
    return tuple(dict.fromkeys(seeds))


def _protocol(value: Any, where: str) -> Protocol:
    given = _checked_keys(value, [field.name for field in dataclasses.fields(Protocol)], where)
    for several in ("data", "tasks"):
        if isinstance(given.get(several), str):
            given[several] = [given[several]]
    try:
        protocol = msgspec.convert(given, Protocol)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from None
    return (
        replace(protocol, data=("wikitext2",))
        if not (protocol.data or protocol.tasks or protocol.task_files)
        else protocol
    )


def _baseline(value: Any, axes: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, str]:
    labels = {axis: _label(label, where) for axis, label in _checked_mapping(value, where).items()}
    for axis, label in labels.items():
        known = axes.get(axis)
        if known is None or label not in known:
            raise InputError(f"{where}: there is no {axis} {label}; {_listed(axes)}")
    return labels


def _listed(axes: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{axis}: {', '.join(labels)}" for axis, labels in axes.items())
