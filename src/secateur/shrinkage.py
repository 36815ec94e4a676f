"""What structured pruning is to do, as data: for the command line and Python. Nothing here needs torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from cyclopts import Group, Parameter

from secateur.errors import InputError
from secateur.importance import METHODS
from secateur.recipe import DtypeName, Recipe

if TYPE_CHECKING:  # a type checker cannot look into tables
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]

_REMOVAL, _CALIBRATION, _COMPUTATION = (
    Parameter(group=Group.create_ordered(name)) for name in ("Removal", "Calibration", "Computation")
)
_METHODS = Parameter(
    help=f"What goes first: {', '.join(f'{name} ({method.about})' for name, method in METHODS.items())}."
)
_FLAG = Parameter(negative=())


@dataclass(frozen=True, kw_only=True)
class Shrinkage:
    """How to make a model smaller.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    sparsity: Annotated[float, _REMOVAL] = 0.5
    """Share of the weights of the blocks' linears to remove, in [0, 1)."""

    method: Annotated[MethodName, _REMOVAL, _METHODS] = "activation"
    """What goes first, one of :data:`~secateur.importance.METHODS`."""

    keep_first: Annotated[int, _REMOVAL] = 0
    """Leave so many of the first blocks whole; unless whole blocks go, only with --in-place."""

    keep_last: Annotated[int, _REMOVAL] = 0
    """The same of the last blocks."""

    in_place: Annotated[bool, _REMOVAL, _FLAG] = False
    """Write zeros instead of removing: the model computes the same, and keeps its shape."""

    calibration: Annotated[str, _CALIBRATION] = "c4"
    """c4, wikitext2, ptb, any hub dataset, or a .txt, .jsonl or .parquet file."""

    samples: Annotated[int, _CALIBRATION] = 128
    """Number of calibration samples."""

    length: Annotated[int, _CALIBRATION] = 2048
    """Tokens of each."""

    seed: Annotated[int, _CALIBRATION] = 0
    """Which samples are drawn."""

    device: Annotated[str, _COMPUTATION] = "auto"
    """auto (a GPU if there is one), cpu, cuda, …"""

    dtype: Annotated[DtypeName, _COMPUTATION] = "auto"
    """Precision to compute in. auto is float32 for gradients, else as prune has it."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if not 0 <= self.sparsity < 1:  # NaN is in no interval
            raise InputError(f"sparsity must be at least 0 and below 1, not {self.sparsity}")
        for name, value in (("keep-first", self.keep_first), ("keep-last", self.keep_last)):
            if value < 0:
                raise InputError(f"--{name} must be a number of blocks, not {value}")
        removes = METHODS[self.method].removes
        if removes == "blocks" and self.in_place:
            raise InputError(f"{self.method} removes whole blocks, and has no --in-place")
        if removes == "channels" and (self.keep_first or self.keep_last) and not self.in_place:
            raise InputError(
                "blocks that stay whole beside narrower ones (--keep-first, --keep-last) would have a width each, and "
                "no config can say that: give --in-place, which writes zeros, or --method depth"
            )
        _ = self.recipe  # whose checks of the samples hold here too

    @property
    def recipe(self) -> Recipe:
        """The calibration and the computation, in the words of prune."""
        exact = self.dtype == "auto" and METHODS[self.method].needs == "gradients"
        return Recipe(
            calibration=self.calibration,
            samples=self.samples,
            length=self.length,
            seed=self.seed,
            device=self.device,
            dtype="float32" if exact else self.dtype,
        )

    def summary(self) -> str:
        """The method in a few words, for tables and progress bars."""
        return f"{self.method} {self.sparsity:.0%}" + (" in place" if self.in_place else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> "Shrinkage":
        """Check plain data; ``where`` names its source in errors."""
        try:
            return msgspec.convert(data, cls, strict=True)
        except msgspec.ValidationError as error:
            raise InputError(f"{where}: {error}") from None
