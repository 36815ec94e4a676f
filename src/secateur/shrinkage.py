"""What structured pruning is to do, as data: for the command line and Python. Nothing here needs torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secateur.errors import InputError
from secateur.importance import METHODS
from secateur.options import COMPUTATION, REMOVAL, DtypeName, Options

if TYPE_CHECKING:  # a type checker cannot look into tables
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]

_METHODS = Parameter(
    help=f"What goes first: {', '.join(f'{name} ({method.about})' for name, method in METHODS.items())}."
)
_FLAG = Parameter(negative=())


@dataclass(frozen=True, kw_only=True)
class Shrinkage(Options):
    """How to make a model smaller.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    sparsity: Annotated[float, REMOVAL] = 0.5
    """Share of the weights of the blocks' linears to remove, in [0, 1)."""

    experts: Annotated[float | None, REMOVAL] = None
    """Share of each block's experts to remove instead, in (0, 1): those that add least where they are routed to."""

    method: Annotated[MethodName, REMOVAL, _METHODS] = "activation"
    """What goes first, one of :data:`~secateur.importance.METHODS`."""

    keep_first: Annotated[int, REMOVAL] = 0
    """Leave so many of the first blocks whole; unless whole blocks go, only with --in-place."""

    keep_last: Annotated[int, REMOVAL] = 0
    """The same of the last blocks."""

    in_place: Annotated[bool, REMOVAL, _FLAG] = False
    """Write zeros instead of removing: the model computes the same, and keeps its shape."""

    dtype: Annotated[DtypeName, COMPUTATION] = "auto"
    """Precision to compute in. auto is float32 for gradients, else as prune has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if not 0 <= self.sparsity < 1:  # NaN is in no interval
            raise InputError(f"sparsity must be at least 0 and below 1, not {self.sparsity}")
        if self.experts is not None:
            self._check_experts(self.experts)
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

    def _check_experts(self, share: float) -> None:
        if not 0 < share < 1:
            raise InputError(f"experts must be a share above 0 and below 1, not {share}")
        others = ("sparsity", "method", "keep_first", "keep_last", "in_place")
        if given := [name for name in others if getattr(self, name) != getattr(Shrinkage, name)]:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"--experts removes experts and nothing else: leave out {names}, or shrink once more")

    @property
    def needs_inputs(self) -> bool:
        """See :class:`~secateur.options.Options`."""
        return True

    @property
    def precision(self) -> DtypeName:
        """See :class:`~secateur.options.Options`."""
        return "float32" if self.dtype == "auto" and METHODS[self.method].needs == "gradients" else self.dtype

    def summary(self) -> str:
        """The method in a few words, for tables and progress bars."""
        if self.experts is not None:
            return f"reap {self.experts:.0%}"
        return f"{self.method} {self.sparsity:.0%}" + (" in place" if self.in_place else "")
