"""Which variants a grid makes of a model: the product of its axes, less what makes no sense and no difference."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from secateur.errors import InputError
from secateur.recipe import Recipe
from secateur.sweeps.chains import BESIDE, NAMES, Chain, by_name, chain_of
from secateur.sweeps.plain import known_keys, label, mapping, words

MOST_VARIANTS = 10_000
RECIPE, DENSE = "recipe", "dense"
# Columns of the table that are no axes, and ways to say one thing.
_TAKEN = ("model", "seed", "rows", "failed", "zeros", "retained", "relative_error", "bits", "gone", "seconds")
_TARGET = ("sparsity", "pattern")

Options = Mapping[str, Any]
# A preset's options and those that come with it.
Layer = tuple[Options, Options]
Axes = Mapping[str, Mapping[str, Layer]]


@dataclass(frozen=True)
class Variant:
    """One way to treat a model.

    Attributes:
        labels: its place on each axis.
        rows: a seed and the steps with it, for each seed that makes a difference. The dense model has a row of none.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[int | None, Chain], ...]

    def __str__(self) -> str:
        return " ".join(label for label in self.labels if label)

    @classmethod
    def dense(cls, axes: int) -> "Variant":
        """The model as it is, in a grid of so many axes."""
        return cls((DENSE, *[""] * (axes - 1)), ((None, ()),))

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The steps of each row."""
        return tuple(chain for _, chain in self.rows)


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


def layer(value: Any, where: str) -> Layer:
    """A preset's options and those that come with it, from a preset's name or a mapping that may name one."""
    if isinstance(value, str):
        value = {"preset": value}
    given = known_keys(value or {}, ("preset", *BESIDE, *NAMES), where)
    preset = given.pop("preset", None)
    options: dict[str, Any] = {}
    for option, one in given.items():
        for name, said in by_name(option, one, where).items():
            if name in options:
                raise InputError(f"{where} says {name} twice")
            options[name] = said
    if preset is None:
        return {}, options
    recipe = Recipe.load(label(preset, where))
    unlike_default = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)}
    return {name: value for name, value in unlike_default.items() if value != getattr(Recipe(), name)}, options


def read_axes(given: Mapping[str, Any], where: str) -> dict[str, dict[str, Layer]]:
    """The options behind each label, by axis; one axis of one label where none is given."""
    axes: dict[str, dict[str, Layer]] = {}
    recipes = given.get("recipes")
    if isinstance(recipes, list | tuple):
        recipes = {name: name for name in words(recipes, f"{where}: recipes")}
    if recipes is not None:
        axes[RECIPE] = _labelled(recipes, f"{where}: recipes")
    set_by: dict[str, str] = {}
    for key, values in mapping(given.get("grid") or {}, f"{where}: grid").items():
        place = f"{where}: grid: {key}"
        if key in (*_TAKEN, *axes):
            raise InputError(f"{place} is no name for an axis: {key} is a column already")
        if isinstance(values, list | tuple):
            (option,) = known_keys({key: None}, (*BESIDE, *NAMES), f"{where}: grid")
            labelled: dict[str, Layer] = {label(value, place): ({}, by_name(option, value, place)) for value in values}
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


def _labelled(value: Any, where: str) -> dict[str, Layer]:
    labels = mapping(value, where)
    if DENSE in labels:
        raise InputError(f"{where}: {DENSE} is what the table calls the model as it is: give another name")
    return {name: layer(options, f"{where}: {name}") for name, options in labels.items()}


def variants_of(
    axes: Axes, base: Layer, seeds: Sequence[int], where: str
) -> tuple[tuple[Variant, ...], tuple[Skipped, ...]]:
    """All combinations: those that make sense, and those that do not, unless that is no accident of the product."""
    if (number := math.prod(map(len, axes.values()))) > MOST_VARIANTS:
        raise InputError(f"{where} makes {number:,} combinations, and nobody waits for more than {MOST_VARIANTS:,}")
    dense = Variant.dense(len(axes))
    variants = {dense.chains: dense}
    senseless: list[Skipped] = []
    same: list[Skipped] = []
    for chosen in product(*(labels.items() for labels in axes.values())):
        labels = tuple(label for label, _ in chosen)
        preset = next((preset for _, (preset, _) in chosen if preset), base[0])
        options = _merged([preset, base[1], *(options for _, (_, options) in chosen)])
        try:
            rows = _rows(options, seeds)
        except InputError as error:
            senseless.append(Skipped(None, labels, str(error)))
            continue
        said = labels if any(labels) else (" + ".join(step.summary() for step in rows[0][1]) or "none",)
        variant = Variant(said, rows)
        if (twin := variants.setdefault(variant.chains, variant)) is not variant:
            same.append(Skipped(None, labels, f"it is the same as {twin}"))
    del variants[dense.chains]
    check_possible(axes.keys(), [*variants.values(), *same], senseless, f"{where}: ")
    return tuple(variants.values()), (*senseless, *same)


def _rows(options: Options, seeds: Sequence[int]) -> tuple[tuple[int, Chain], ...]:
    """A seed and the steps with it, for each seed that makes a difference; the one of the options if none are given."""
    rows: dict[Chain, int] = {}
    for said in [{**options, "seed": seed} for seed in seeds] or [{**options}]:
        rows.setdefault(chain_of(said), said.get("seed", 0))
    return tuple((seed, chain) for chain, seed in rows.items())


def check_possible(
    axes: Iterable[str], possible: Sequence[Variant | Skipped], senseless: Iterable[Skipped], where: str = ""
) -> None:
    """Raise :class:`InputError` if a label is only in combinations that make no sense: that is no accident."""
    for one in senseless:
        for place, axis in enumerate(axes):
            if not any(other.labels[place] == one.labels[place] for other in possible):
                raise InputError(f"{where}no row can have {axis} {one.labels[place]}: {one.reason}")


def _merged(layers: Iterable[Options]) -> dict[str, Any]:
    """The options of all layers, of which the later win; sparsity and pattern of all linears are two ways to say one
    thing.
    """
    options: dict[str, Any] = {}
    for one in layers:
        pattern = one.get("pattern") or options.get("pattern")
        by_layer = isinstance(pattern, dict) or "=" in str(pattern)  # a sparsity is then that of the others
        for option, other in (_TARGET, _TARGET[::-1]):
            if not by_layer and one.get(option) is not None and one.get(other) is None:
                options.pop(other, None)
        options.update(one)
    return options
