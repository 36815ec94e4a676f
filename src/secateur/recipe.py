"""How to prune, and how to quantize, as data: one vocabulary for the command line, YAML files and Python.

Options come in groups, which ``--help`` shows as well:

- Score: ``score``, ``alpha``, ``scope``
- Sparsity: ``sparsity``, ``pattern``, ``allocate``, ``skip``
- Permutation: ``permute``, ``fold``, ``communities``, ``compare_folds``
- Reconstruction: ``reconstruct``, ``refine``, ``guard``
- Tuning: ``tune``, ``correct``, ``epochs``, ``learning_rate``
- Quantization: ``method``, ``bits``, ``group_size``, ``symmetric``, ``skip``
- Calibration and computation: see :mod:`secateur.options`

The names of methods are those of their tables
(:data:`~secateur.scores.SCORES`, :data:`~secateur.permute.searches.SEARCHES`,
:data:`~secateur.reconstruct.methods.RECONSTRUCTIONS`, :data:`~secateur.quantization.methods.QUANTIZATIONS`). Nothing
here needs torch.
"""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from cyclopts import Parameter

from secateur.errors import InputError
from secateur.files import read_text
from secateur.knapsack import LEVELS
from secateur.options import (
    PERMUTATION,
    QUANTIZATION,
    RECONSTRUCTION,
    SCORE,
    SPARSITY,
    TUNING,
    Step,
    WalkOptions,
)
from secateur.patterns import (
    NM,
    Pattern,
    Scope,
    Unstructured,
    parse_nm,
    read_spelled,
    show_patterns,
    spell,
)
from secateur.permute.searches import SEARCHES
from secateur.quantization.methods import QUANTIZATIONS
from secateur.reconstruct.methods import RECONSTRUCTIONS
from secateur.scores import SCORES

if TYPE_CHECKING:  # a type checker cannot look into tables
    ScoreName = str
    SearchName = str
    ReconstructionName = str
    MethodName = str
else:
    ScoreName = Literal[tuple(SCORES)]
    SearchName = Literal[("none", *SEARCHES)]
    ReconstructionName = Literal[("none", *RECONSTRUCTIONS)]
    MethodName = Literal[tuple(QUANTIZATIONS)]
Fold = Literal["exact", "gather", "none"]

PRESETS = ("fast", "paper", "good", "best")


def _listed(what: str, methods: Mapping[str, str]) -> str:
    return f"{what}: {', '.join(f'{name} ({about})' for name, about in methods.items())}."


def _first_sentences(functions: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    """By name, what the docstring of a method begins with, to stand inside a sentence."""
    about = {name: (inspect.getdoc(function) or "").split("\n")[0].rstrip(".") for name, function in functions.items()}
    return {
        name: text[:1].lower() + text[1:] if re.match("[A-Z][a-z]* ", text) else text for name, text in about.items()
    }


_SCORES = Parameter(help=_listed("Importance of a weight", {name: score.about for name, score in SCORES.items()}))
_SEARCHES = Parameter(
    help=_listed(
        "Search for an order of the channels under which an N:M pattern retains more of the score",
        {"none": "the channels as they are"} | _first_sentences(SEARCHES),
    )
)
_RECONSTRUCTIONS = Parameter(
    help=_listed(
        "Change the kept weights to make up for the others",
        {"none": "they stay"} | _first_sentences(RECONSTRUCTIONS),
    )
)
_BY_LAYER = Parameter(accepts_keys=False)  # a mapping is one text on the command line
_METHODS = Parameter(
    help=_listed("How weights come onto their levels", {name: one.about for name, one in QUANTIZATIONS.items()})
)


@dataclass(frozen=True, kw_only=True)
class Recipe(WalkOptions):
    """How to prune a model.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    # ---------------------------------------------------------------- Score

    score: Annotated[ScoreName, SCORE, _SCORES] = "ria"
    """Importance of a weight, one of :data:`~secateur.scores.SCORES`."""

    alpha: Annotated[float, SCORE] = 0.5
    """Exponent of ‖X‖ in the ria score."""

    scope: Annotated[Scope | None, SCORE] = None
    """Weights that compete when unstructured; by default row for wanda and matrix for the others."""

    # ---------------------------------------------------------------- Sparsity

    sparsity: Annotated[float | str | dict[str, float] | None, SPARSITY, _BY_LAYER] = None
    """Share of weights to remove, in [0, 1), anywhere; 0.5 if no pattern is given either. By layer, '*.down_proj=0.4
    *=0.6': the first that matches a full name counts. A mapping in YAML and Python."""

    pattern: Annotated[str | dict[str, str] | None, SPARSITY, _BY_LAYER] = None
    """N:M, such as 2:4: N weights are kept of every M consecutive input channels. Or by layer, as a sparsity; what is
    not matched has the sparsity then."""

    allocate: Annotated[bool, SPARSITY] = False
    """Find a sparsity for each layer, so that as many weights go in all and the model's predictions change least."""

    skip: Annotated[tuple[str, ...], SPARSITY] = ()
    """Layers to leave dense, by full name; * stands for anything. May be repeated."""

    # ---------------------------------------------------------------- Permutation

    permute: Annotated[SearchName, PERMUTATION, _SEARCHES] = "lsa"
    """Search for an order of the channels under which an N:M pattern retains more of the score: none, or one of
    :data:`~secateur.permute.searches.SEARCHES`."""

    fold: Annotated[Fold, PERMUTATION] = "exact"
    """Orders allowed: those that a plain checkpoint can have (exact), also one before every reader, which
    only loads through Secateur (gather), or any, with the masks mapped back and no longer N:M as stored (none)."""

    communities: Annotated[int, PERMUTATION] = 1
    """Split the channels into so many parts and search inside each, as the paper does: lsa needs it at no width."""

    compare_folds: Annotated[bool, PERMUTATION] = False
    """Also report what the other ways to fold, and unstructured sparsity, would retain."""

    # ---------------------------------------------------------------- Reconstruction

    reconstruct: Annotated[ReconstructionName, RECONSTRUCTION, _RECONSTRUCTIONS] = "none"
    """Change the kept weights to make up for the others: none, or one of
    :data:`~secateur.reconstruct.methods.RECONSTRUCTIONS`."""

    refine: Annotated[bool, RECONSTRUCTION] = False
    """Exchange kept for removed weights while that lessens the output error, after reconstruction if there is one."""

    guard: Annotated[bool, RECONSTRUCTION] = True
    """Judge reconstruction, refinement and tuning by the block's output on an eighth of the samples, which is held out,
    and keep them only where they help."""

    # ---------------------------------------------------------------- Tuning

    tune: Annotated[bool, TUNING] = False
    """Let the kept weights, biases and norms of each pruned block learn to give what the dense block gives. Zeros stay
    zero."""

    correct: Annotated[float, TUNING] = 0.5
    """The share of what the blocks before have done that a block learns to make up for: with 0 it learns to give what
    the dense block gives on the same hidden states, with 1 what the dense model has there."""

    epochs: Annotated[int, TUNING] = 5
    """How often each block sees all samples."""

    learning_rate: Annotated[float, TUNING] = 0.015
    """The rate of Adam at its highest, relative to the root mean square of each tensor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sparsity", "pattern"):
            if isinstance(value := getattr(self, name), dict):  # as text recipes can be compared, order included
                object.__setattr__(self, name, spell(value))
        if self.score not in SCORES:
            raise InputError(f"score {self.score!r} is none of {', '.join(SCORES)}")
        if self.alpha < 0:
            raise InputError(f"alpha {self.alpha} is negative: it would favour channels with small inputs")
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha {self.alpha} is not a number that a score can be raised to")
        if self.sparsity is not None and self.pattern is not None and "=" not in self.pattern:
            raise InputError(f"give a sparsity ({self.sparsity}) or a pattern ({self.pattern}), not both")
        patterns = [pattern for _, pattern in self.targets]  # which refuse what makes no sense
        if self.scope is not None and not any(isinstance(pattern, Unstructured) for pattern in patterns):
            raise InputError(f"--scope {self.scope} has no meaning for a pattern: weights of a group compete")
        if self.fold == "gather" and not self.orders_channels:
            raise InputError(
                "--fold gather is about orders of channels, and this recipe has none (--pattern, --permute)"
            )
        if self.compare_folds and (self.fold == "none" or not self.orders_channels):
            raise InputError("--compare-folds needs a --pattern, a --permute, and --fold exact or gather")
        if self.held_out == self.samples:
            raise InputError("the guard holds out samples: take at least 2 (--samples), or go without (--no-guard)")
        if self.tune and self.one_shot:
            raise InputError("--tune learns on what the pruned blocks before make, and --one-shot never runs them")
        if not 0 <= self.correct <= 1:
            raise InputError(f"{self.correct} is no share of an error to make up for: give 0 to 1 (--correct)")
        if self.epochs < 1:
            raise InputError(f"{self.epochs} epochs are too few (--epochs)")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"a learning rate of {self.learning_rate} makes no sense (--learning-rate)")
        if self.communities < 1:
            raise InputError(f"{self.communities} communities are too few")
        if self.allocate and (self.pattern is not None or isinstance(self.sparsity, str)):
            raise InputError("--allocate finds a sparsity for each layer: give it one for all, and no --pattern")
        if self.allocate and patterns[0].sparsity > LEVELS[-1]:
            raise InputError(f"--allocate removes at most {LEVELS[-1]:g} of a layer: sparsity {self.sparsity} is more")
        for pattern in patterns:
            if isinstance(pattern, NM) and pattern.kept == pattern.group:
                raise InputError(
                    f"pattern {pattern.kept}:{pattern.group} keeps all weights: give one that removes some"
                )

    @property
    def targets(self) -> tuple[tuple[str, Pattern], ...]:
        """What pruned linears will obey, by globs of their full names, of which the first that matches counts."""
        sparsity = 0.5 if self.sparsity is None and self.pattern is None else self.sparsity
        scope = self.scope or SCORES[self.score].scope
        return (
            *((glob, parse_nm(text)) for glob, text in _by_layer(self.pattern).items()),
            *((glob, Unstructured(_share(value), scope)) for glob, value in _by_layer(sparsity).items()),
        )

    @property
    def orders_channels(self) -> bool:
        """Whether channels are put in another order at all: unstructured sparsity has no use for it."""
        return self.permute != "none" and any(isinstance(pattern, NM) for _, pattern in self.targets)

    @property
    def needs_gram(self) -> bool:
        """Whether the Gram matrices of the inputs are needed."""
        return bool(self.steps) or self.sweeps or SCORES[self.score].needs_gram

    @property
    def needs_inputs(self) -> bool:
        """Whether there is anything to calibrate for."""
        return self.needs_gram or SCORES[self.score].needs_inputs or self.tune or self.allocate

    @property
    def tuning_epochs(self) -> int:
        """See :class:`~secateur.options.Options`."""
        return self.epochs if self.tune else 0

    @property
    def corrects(self) -> float | None:
        """See :class:`~secateur.options.Options`."""
        return self.correct if self.tune else None

    @property
    def changes_weights(self) -> bool:
        """Whether kept weights get new values."""
        return self.reconstruct != "none" or self.tune

    @property
    def sweeps(self) -> bool:
        """Whether mask and weights are SparseGPT's own, as published: one sweep that makes both."""
        return self.score == self.reconstruct == "sparsegpt"

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is done to mask and weights after the mask has been chosen, in this order."""
        reconstructs: tuple[Step, ...] = ("reconstruct",) if self.reconstruct != "none" and not self.sweeps else ()
        return (*reconstructs, "refine") if self.refine else reconstructs

    @property
    def held_out(self) -> int:
        """The number of samples that the guard judges by and no statistic sees."""
        return max(1, self.samples // 8) if self.guard and (self.steps or self.tune) else 0

    @property
    def draws(self) -> bool:
        """Whether the seed makes a difference: searches for an order draw by it too."""
        return self.needs_inputs or self.orders_channels

    @property
    def idle(self) -> dict[str, Any]:
        """See :class:`~secateur.options.Options`."""
        idle = super().idle
        for _, pattern in self.targets:
            if isinstance(pattern, Unstructured):
                idle |= {"scope": pattern.scope}
        if self.sparsity is None and self.pattern is None:
            idle |= {"sparsity": 0.5}
        if not self.orders_channels:
            idle |= {"permute": "none", "fold": "exact", "communities": 1}
        if self.tune:
            return idle
        return idle | {name: getattr(Recipe, name) for name in ("correct", "epochs", "learning_rate")}

    def summary(self) -> str:
        """The method in a few words, for tables and progress bars."""
        target = show_patterns(pattern for _, pattern in self.targets) + " allocated" * self.allocate
        scoped = self.scope not in (None, SCORES[self.score].scope)
        ordered = f" {self.permute} {self.fold}" if self.orders_channels else ""
        repaired = f" +{self.reconstruct}" if self.reconstruct != "none" else ""
        refined = " +refine" if self.refine else ""
        tuned = " +tune" if self.tune else ""
        return (
            f"{self.score} {target}" + (f" per {self.scope}" if scoped else "") + ordered + repaired + refined + tuned
        )

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Read a YAML file of fields, or the preset of that name, one of :data:`PRESETS`.

        Raises:
            InputError: when there is no such file, or a field is unknown or of the wrong type.
        """
        if not str(path):
            raise InputError(f"the recipe has no name: give a YAML file, or one of {', '.join(PRESETS)}")
        file = Path(__file__).parent / "recipes" / f"{path}.yaml" if path in PRESETS else Path(path)
        try:
            data = yaml.safe_load(read_text(file)) or {}
        except OSError as error:
            near = difflib.get_close_matches(str(path), PRESETS, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"recipe {path} cannot be read ({error.strerror}), and the presets are {', '.join(PRESETS)}{meant}"
            ) from None
        except InputError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number may have too many digits
            raise InputError(f"recipe {path} is not YAML: {error}") from None
        return cls.from_dict(data, str(path))

    @classmethod
    def from_dict(cls, data: Any, where: str = "recipe") -> Self:
        """Check plain data and build the recipe; ``where`` names its source in errors."""
        if isinstance(data, dict) and isinstance(pattern := data.get("pattern"), dict):
            data = data | {"pattern": {layer: _from_base_60(value) for layer, value in pattern.items()}}
        elif isinstance(data, dict) and "pattern" in data:
            data = data | {"pattern": _from_base_60(pattern)}
        return super().from_dict(data, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a YAML file: what is said by layer is a mapping."""
        data = super().to_dict()
        if isinstance(self.sparsity, str):
            data["sparsity"] = {glob: _share(value) for glob, value in _by_layer(self.sparsity).items()}
        if isinstance(self.pattern, str) and "=" in self.pattern:
            data["pattern"] = _by_layer(self.pattern)
        return data


def _by_layer(value: float | str | dict[str, Any] | None) -> dict[str, Any]:
    """A sparsity or a pattern by globs of layer names; what is said of all layers stands under ``*``."""
    if isinstance(value, str) and "=" in value:
        return read_spelled(value)
    return {} if value is None else {"*": value}


def _share(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"sparsity {value!r} is no number") from None


def _from_base_60(value: Any) -> Any:
    """A pattern as it was written: YAML 1.1 reads 2:4 as a number in base 60."""
    return "{}:{}".format(*divmod(value, 60)) if isinstance(value, int) and value >= 60 else value


@dataclass(frozen=True, kw_only=True)
class QuantizationRecipe(WalkOptions):
    """How to quantize a model.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    method: Annotated[MethodName, QUANTIZATION, _METHODS] = "gptq"
    """How weights come onto their levels, one of :data:`~secateur.quantization.methods.QUANTIZATIONS`."""

    bits: Annotated[Literal[4, 8], QUANTIZATION] = 4
    """Bits of a weight."""

    group_size: Annotated[int, QUANTIZATION] = 128
    """Consecutive input channels that share a scale; must divide the width of every layer."""

    symmetric: Annotated[bool, QUANTIZATION] = False
    """Let all levels lie evenly about zero: no zero-points, and so fewer bits. Of 8 bits they always do."""

    skip: Annotated[tuple[str, ...], QUANTIZATION] = ()
    """Layers to leave as they are, by full name; * stands for anything. May be repeated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in QUANTIZATIONS:
            raise InputError(f"method {self.method!r} is none of {', '.join(QUANTIZATIONS)}")
        if self.bits not in (4, 8):
            raise InputError(f"weights of {self.bits} bits cannot be written: give 4 or 8 (--bits)")
        if self.group_size < 1:
            raise InputError(f"groups of {self.group_size} columns make no sense (--group-size)")

    @property
    def evenly(self) -> bool:
        """Whether every zero-point is the middle code."""
        return self.symmetric or self.bits == 8

    @property
    def needs_gram(self) -> bool:
        """See :class:`~secateur.options.Options`."""
        return QUANTIZATIONS[self.method].needs_gram

    @property
    def needs_inputs(self) -> bool:
        """See :class:`~secateur.options.Options`."""
        return QUANTIZATIONS[self.method].needs_inputs

    @property
    def idle(self) -> dict[str, Any]:
        """See :class:`~secateur.options.Options`."""
        return super().idle | {"symmetric": self.evenly}

    def summary(self) -> str:
        """The method in a few words, for tables and progress bars."""
        return f"{self.method} {self.bits} bits in groups of {self.group_size}" + (" symmetric" * self.evenly)
