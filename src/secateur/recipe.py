"""What is to be done, as data: one vocabulary for the command line, YAML files and Python.

Options come in groups, which ``--help`` shows as well:

- Score: ``score``, ``alpha``, ``scope``
- Sparsity: ``sparsity``, ``pattern``, ``skip``
- Permutation: ``permute``, ``fold``, ``communities``, ``compare_folds``
- Reconstruction: ``reconstruct``, ``refine``, ``guard``
- Quantization: ``method``, ``bits``, ``group_size``, ``symmetric``, ``skip``
- Calibration: ``calibration``, ``samples``, ``length``, ``seed``, ``one_shot``
- Computation: ``device``, ``dtype``, ``memory``

The last two are those of every method that walks over the blocks of a model (:class:`Options`); :class:`Recipe` prunes,
:class:`QuantizationRecipe` quantizes. The names of methods are those of their tables
(:data:`~secateur.scores.SCORES`, :data:`~secateur.permute.searches.SEARCHES`,
:data:`~secateur.reconstruct.methods.RECONSTRUCTIONS`, :data:`~secateur.quantization.methods.QUANTIZATIONS`). Nothing
here needs torch.
"""

import dataclasses
import difflib
import fnmatch
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
import yaml
from cyclopts import Group, Parameter

from secateur.errors import InputError
from secateur.files import read_text
from secateur.patterns import NM, Pattern, Scope, Unstructured, parse_nm
from secateur.permute.searches import SEARCHES
from secateur.quantization.methods import QUANTIZATIONS
from secateur.reconstruct.methods import RECONSTRUCTIONS
from secateur.scores import SCORES
from secateur.sizes import parse_size

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
Step = Literal["reconstruct", "refine"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = get_args(DtypeName)

PRESETS = ("paper", "best", "fast")


def _listed(what: str, methods: Mapping[str, str]) -> str:
    return f"{what}: {', '.join(f'{name} ({about})' for name, about in methods.items())}."


def _first_sentences(functions: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    """By name, what the docstring of a method begins with, to stand inside a sentence."""
    about = {name: (inspect.getdoc(function) or "").split("\n")[0].rstrip(".") for name, function in functions.items()}
    return {
        name: text[:1].lower() + text[1:] if re.match("[A-Z][a-z]* ", text) else text for name, text in about.items()
    }


_SCORE, _SPARSITY, _PERMUTATION, _RECONSTRUCTION, _QUANTIZATION, _CALIBRATION, _COMPUTATION = (
    Parameter(group=Group.create_ordered(name))
    for name in ("Score", "Sparsity", "Permutation", "Reconstruction", "Quantization", "Calibration", "Computation")
)
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
_METHODS = Parameter(
    help=_listed("How weights come onto their levels", {name: one.about for name, one in QUANTIZATIONS.items()})
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all are told that walk over the blocks of a model.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    skip: tuple[str, ...] = ()
    """Layers to leave as they are, by full name; * stands for anything. May be repeated."""

    # ---------------------------------------------------------------- Calibration

    calibration: Annotated[str, _CALIBRATION] = "c4"
    """c4, wikitext2, ptb (or c4:FILE, …), a .txt, .jsonl or .parquet file, a hub dataset, or demo."""

    samples: Annotated[int, _CALIBRATION] = 128
    """Number of calibration samples."""

    length: Annotated[int, _CALIBRATION] = 2048
    """Tokens per calibration sample."""

    seed: Annotated[int, _CALIBRATION] = 0
    """Seed of the draw of the samples."""

    one_shot: Annotated[bool, _CALIBRATION] = False
    """Gather all statistics from the model as it is, in one pass, rather than block after finished block."""

    # ---------------------------------------------------------------- Computation

    device: Annotated[str, _COMPUTATION] = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …"""

    dtype: Annotated[DtypeName, _COMPUTATION] = "auto"
    """Precision to compute in; auto is the checkpoint's own on a GPU, and on a CPU float32, but bfloat16 where it has
    AMX and the checkpoint is not float16."""

    memory: Annotated[str | None, _COMPUTATION] = None
    """Memory of this machine that the run may take, such as 8GB; by default nine tenths of what is free. What does not
    fit waits in a file beside --out. Changes no result."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.length < 2:
            raise InputError(f"{self.samples} samples of {self.length} tokens are too few to calibrate on")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"seed {self.seed} is not in [0, 2^63)")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.memory is not None:
            parse_size(self.memory)

    @property
    def needs_inputs(self) -> bool:
        """Whether there is anything to calibrate for."""
        raise NotImplementedError

    @property
    def needs_gram(self) -> bool:
        """Whether the Gram matrices of the inputs are needed."""
        raise NotImplementedError

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is tried of a reader group, and judged."""
        return ()

    @property
    def held_out(self) -> int:
        """The number of samples that the guard judges by and no statistic sees."""
        return 0

    def skips(self, layer: str) -> bool:
        """Whether the linear of this full name is to be left as it is."""
        return any(fnmatch.fnmatchcase(layer, pattern) for pattern in self.skip)

    def summary(self) -> str:
        """The method in a few words, for tables and progress bars."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a YAML file."""
        return msgspec.to_builtins(self)


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """How to prune a model.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    # ---------------------------------------------------------------- Score

    score: Annotated[ScoreName, _SCORE, _SCORES] = "ria"
    """Importance of a weight, one of :data:`~secateur.scores.SCORES`."""

    alpha: Annotated[float, _SCORE] = 0.5
    """Exponent of ‖X‖ in the ria score."""

    scope: Annotated[Scope | None, _SCORE] = None
    """Weights that compete when unstructured; by default row for wanda and matrix for the others."""

    # ---------------------------------------------------------------- Sparsity

    sparsity: Annotated[float | None, _SPARSITY] = None
    """Share of weights to remove, in [0, 1), anywhere; 0.5 if no pattern is given either."""

    pattern: Annotated[str | None, _SPARSITY] = None
    """N:M, such as 2:4: N weights are kept of every M consecutive input channels."""

    skip: Annotated[tuple[str, ...], _SPARSITY] = ()
    """Layers to leave dense, by full name; * stands for anything. May be repeated."""

    # ---------------------------------------------------------------- Permutation

    permute: Annotated[SearchName, _PERMUTATION, _SEARCHES] = "lsa"
    """Search for an order of the channels under which an N:M pattern retains more of the score: none, or one of
    :data:`~secateur.permute.searches.SEARCHES`."""

    fold: Annotated[Fold, _PERMUTATION] = "exact"
    """Orders allowed: those that a plain checkpoint can have (exact), also one before every reader, which
    only loads through Secateur (gather), or any, with the masks mapped back and no longer N:M as stored (none)."""

    communities: Annotated[int, _PERMUTATION] = 1
    """Split the channels into so many parts and search inside each, as the paper does: lsa needs it at no width."""

    compare_folds: Annotated[bool, _PERMUTATION] = False
    """Also report what the other ways to fold, and unstructured sparsity, would retain."""

    # ---------------------------------------------------------------- Reconstruction

    reconstruct: Annotated[ReconstructionName, _RECONSTRUCTION, _RECONSTRUCTIONS] = "none"
    """Change the kept weights to make up for the others: none, or one of
    :data:`~secateur.reconstruct.methods.RECONSTRUCTIONS`."""

    refine: Annotated[bool, _RECONSTRUCTION] = False
    """Exchange kept for removed weights while that lessens the output error, after reconstruction if there is one."""

    guard: Annotated[bool, _RECONSTRUCTION] = True
    """Judge reconstruction and refinement by the block's output on an eighth of the samples, which is held out,
    and keep them only where they help."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in SCORES:
            raise InputError(f"score {self.score!r} is none of {', '.join(SCORES)}")
        if self.alpha < 0:
            raise InputError(f"alpha {self.alpha} is negative: it would favour channels with small inputs")
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha {self.alpha} is not a number that a score can be raised to")
        if self.sparsity is not None and self.pattern is not None:
            raise InputError(f"give a sparsity ({self.sparsity}) or a pattern ({self.pattern}), not both")
        if self.scope is not None and self.pattern is not None:
            raise InputError(f"--scope {self.scope} has no meaning for a pattern: weights of a group compete")
        if self.fold == "gather" and not self.orders_channels:
            raise InputError(
                "--fold gather is about orders of channels, and this recipe has none (--pattern, --permute)"
            )
        if self.compare_folds and (self.fold == "none" or not self.orders_channels):
            raise InputError("--compare-folds needs a --pattern, a --permute, and --fold exact or gather")
        if self.held_out == self.samples:
            raise InputError("the guard holds out samples: take at least 2 (--samples), or go without (--no-guard)")
        if self.communities < 1:
            raise InputError(f"{self.communities} communities are too few")
        if isinstance(target := self.target, NM) and target.kept == target.group:  # target refuses what makes no sense
            raise InputError(f"pattern {target.kept}:{target.group} keeps all weights: give one that removes some")

    @property
    def target(self) -> Pattern:
        """The pattern that every pruned linear will obey."""
        if self.pattern is not None:
            return parse_nm(self.pattern)
        sparsity = 0.5 if self.sparsity is None else self.sparsity
        return Unstructured(sparsity, self.scope or SCORES[self.score].scope)

    @property
    def orders_channels(self) -> bool:
        """Whether channels are put in another order at all: unstructured sparsity has no use for it."""
        return isinstance(self.target, NM) and self.permute != "none"

    @property
    def needs_gram(self) -> bool:
        """Whether the Gram matrices of the inputs are needed."""
        return bool(self.steps) or self.sweeps or SCORES[self.score].needs_gram

    @property
    def needs_inputs(self) -> bool:
        """Whether there is anything to calibrate for."""
        return self.needs_gram or SCORES[self.score].needs_inputs

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
        return max(1, self.samples // 8) if self.guard and self.steps else 0

    @property
    def essence(self) -> "Recipe":
        """The same with options that do nothing here at one value, so that recipes that do the same are equal."""
        idle: dict[str, Any] = {}
        if isinstance(target := self.target, Unstructured):
            idle |= {"sparsity": target.sparsity, "scope": target.scope}
        if not self.orders_channels:
            idle |= {"permute": "none", "fold": "exact", "communities": 1}
        if not self.needs_inputs:
            idle |= {"calibration": "c4", "samples": 128, "length": 2048, "one_shot": False}
            idle |= {} if self.orders_channels else {"seed": 0}  # searches draw by it too
        return dataclasses.replace(self, **idle)

    def summary(self) -> str:
        """The method in a few words, for tables and progress bars."""
        target = self.target
        scoped = isinstance(target, Unstructured) and target.scope != SCORES[self.score].scope
        ordered = f" {self.permute} {self.fold}" if self.orders_channels else ""
        repaired = f" +{self.reconstruct}" if self.reconstruct != "none" else ""
        refined = " +refine" if self.refine else ""
        return f"{self.score} {target}" + (f" per {self.scope}" if scoped else "") + ordered + repaired + refined

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
    def from_dict(cls, data: Any, where: str = "recipe") -> "Recipe":
        """Check plain data and build the recipe; ``where`` names its source in errors."""
        if not isinstance(data, dict):
            raise InputError(f"{where} is not a mapping of options to values")
        known = [field.name for field in dataclasses.fields(cls)]
        data = {str(key).replace("-", "_"): value for key, value in data.items()}
        for key in data.keys() - set(known):
            near = difflib.get_close_matches(key, known, 1)
            raise InputError(
                f"{where} has an unknown option {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if (
            isinstance(data.get("pattern"), int) and data["pattern"] >= 60
        ):  # YAML 1.1 takes a bare 2:4 for a number in base 60
            data["pattern"] = "{}:{}".format(*divmod(data["pattern"], 60))
        if isinstance(data.get("memory"), int):
            data["memory"] = str(data["memory"])
        try:
            return dataclasses.replace(msgspec.convert(data, cls))  # which leaves out of __dict__ what is not given
        except (msgspec.ValidationError, UnicodeEncodeError) as error:  # half a character is in no text
            raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class QuantizationRecipe(Options):
    """How to quantize a model.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    method: Annotated[MethodName, _QUANTIZATION, _METHODS] = "gptq"
    """How weights come onto their levels, one of :data:`~secateur.quantization.methods.QUANTIZATIONS`."""

    bits: Annotated[Literal[4, 8], _QUANTIZATION] = 4
    """Bits of a weight."""

    group_size: Annotated[int, _QUANTIZATION] = 128
    """Consecutive input channels that share a scale; must divide the width of every layer."""

    symmetric: Annotated[bool, _QUANTIZATION] = False
    """Let all levels lie evenly about zero: no zero-points, and so fewer bits. Of 8 bits they always do."""

    skip: Annotated[tuple[str, ...], _QUANTIZATION] = ()
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
        """See :class:`Options`."""
        return QUANTIZATIONS[self.method].needs_gram

    @property
    def needs_inputs(self) -> bool:
        """See :class:`Options`."""
        return QUANTIZATIONS[self.method].needs_inputs

    def summary(self) -> str:
        """The method in a few words, for tables and progress bars."""
        return f"{self.method} {self.bits} bits in groups of {self.group_size}" + (" symmetric" * self.evenly)
