"""What a sweep is to do, as data: a grid of models, recipes and seeds, and how each is measured.

A grid is a product of axes. An axis is a list of values of one option, or labels, each with the options that it stands
for; ``recipes`` is the first of them. Options come in layers, of which the later win: a preset, ``base``, the recipe,
the other axes. So ``base`` says what all rows have in common, and a recipe only what is its own. What options there
are, those of other steps than pruning included, says :mod:`secateur.sweeps.chains`.

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
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import yaml

from secateur.errors import InputError
from secateur.files import read_text
from secateur.options import Bos
from secateur.recipe import Recipe
from secateur.sweeps.chains import Chain
from secateur.sweeps.plain import known_keys, label, mapping, words
from secateur.sweeps.variants import Skipped, Variant, layer, read_axes, variants_of

_KEYS = ("models", "base", "recipes", "grid", "seeds", "evaluate", "baseline")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How every model is measured: the arguments of :func:`secateur.evaluate`, by the same names.

    Attributes:
        data: the texts; wikitext2 if there are no tasks either.
        column: of text or of chats.
        split: of hub datasets.
        window: tokens per window.
        stride: tokens from one window to the next.
        limit: use only so many windows of each text.
        bos: where the token that begins a text stands.
        tasks: names of tasks.
        task_files: a folder of task files.
        task_limit: use only so many items of each task.
        shots: examples before each question.
        device: where to compute.
        dtype: in which precision.
    """

    data: tuple[str, ...] = ()
    column: str | None = None
    split: str | None = None
    window: int | None = None
    stride: int | None = None
    limit: int | None = None
    bos: Bos = "auto"
    tasks: tuple[str, ...] = ()
    task_files: str | None = None
    task_limit: int | None = None
    shots: int | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Row:
    """One model, treated in one way with one seed: what is computed at a time.

    Attributes:
        model: the model's label.
        variant: in which way.
        seed: of the draw of the samples; None of the dense model.
        steps: what is done to the model with that seed; none to the dense one.
    """

    model: str
    variant: Variant
    seed: int | None
    steps: Chain

    @property
    def recipe(self) -> Recipe | None:
        """How it is pruned; None if it is not."""
        return next((step for step in self.steps if isinstance(step, Recipe)), None)

    def __str__(self) -> str:
        return f"{self.model} {self.variant}" + (f" seed {self.seed}" if self.steps else "")


@dataclass(frozen=True)
class Grid:
    """A sweep to be.

    Attributes:
        models: what a user calls them, by label.
        axes: the names of the axes.
        variants: the combinations that make sense.
        skipped: those that do not, and those that are the same as another.
        protocol: how every model is measured.
        baseline: labels, by axis, of the variant against which the share of the loss that others prevent is measured;
            on the other axes it is where the row is.
    """

    models: Mapping[str, str]
    axes: tuple[str, ...]
    variants: tuple[Variant, ...]
    skipped: tuple[Skipped, ...] = ()
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
        given = known_keys(data, _KEYS, where)
        models = given.get("models") or []
        listed = models if isinstance(models, dict) else {one: one for one in words(models, f"{where}: models")}
        named = {name: label(model, f"{where}: models") for name, model in mapping(listed, f"{where}: models").items()}
        if not named:
            raise InputError(f"{where} names no models")
        axes, seeds = read_axes(given, where), _seeds(given.get("seeds"), where)
        variants, skipped = variants_of(axes, layer(given.get("base"), f"{where}: base"), seeds, where)
        return cls(
            models=named,
            axes=tuple(axes),
            variants=variants,
            skipped=skipped,
            protocol=_protocol(given.get("evaluate") or {}, f"{where}: evaluate"),
            baseline=_baseline(given.get("baseline") or {}, axes, f"{where}: baseline"),
        )

    @property
    def dense(self) -> Variant:
        """The model as it is."""
        return Variant.dense(len(self.axes))

    def rows(self, model: str, variant: Variant) -> list[Row]:
        """One for each seed that makes a difference."""
        return [Row(model, variant, seed, steps) for seed, steps in variant.rows]

    def baseline_of(self, variant: Variant) -> tuple[str, ...] | None:
        """The labels of the variant that this one is compared with; None if there is none."""
        if not self.baseline or variant == self.dense:
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


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    try:
        seeds = msgspec.convert([] if value is None else value, tuple[int, ...])
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: seeds: {error}") from None
    for seed in seeds:
        Recipe(seed=seed)  # refuses what is none
    return tuple(dict.fromkeys(seeds))


def _protocol(value: Any, where: str) -> Protocol:
    given = known_keys(value, [field.name for field in dataclasses.fields(Protocol)], where)
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
    labels = {axis: label(value, where) for axis, value in mapping(value, where).items()}
    for axis, name in labels.items():
        known = axes.get(axis)
        if known is None or name not in known:
            raise InputError(f"{where}: there is no {axis} {name}; {_listed(axes)}")
    return labels


def _listed(axes: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{axis}: {', '.join(labels)}" for axis, labels in axes.items())
