"""Options that several methods have in common, and how plain data becomes options.

They come in groups, which ``--help`` shows in this order. :class:`Options` is what all are told that calibrate:

- Calibration: ``calibration``, ``column``, ``split``, ``samples``, ``length``, ``bos``, ``seed``
- Computation: ``device``, ``dtype``

:class:`WalkOptions` is what those are told besides that walk over the blocks of a model and change its linears:
``skip``, ``one_shot`` and ``memory``. Nothing here needs torch.
"""

import dataclasses
import difflib
import fnmatch
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

import msgspec
from cyclopts import Group, Parameter

from secateur.errors import InputError
from secateur.sizes import parse_size

Step = Literal["reconstruct", "refine"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = get_args(DtypeName)
Bos = Literal["auto", "each", "once", "never"]

SCORE, SPARSITY, PERMUTATION, RECONSTRUCTION, TUNING, QUANTIZATION, REMOVAL, CALIBRATION, COMPUTATION = (
    Parameter(group=Group.create_ordered(name))
    for name in (
        "Score",
        "Sparsity",
        "Permutation",
        "Reconstruction",
        "Tuning",
        "Quantization",
        "Removal",
        "Calibration",
        "Computation",
    )
)
# What says which samples there are, and how they are cut.
_OF_SAMPLES = ("calibration", "column", "split", "samples", "length", "bos")


def check_bos(bos: str) -> None:
    """Raise :class:`InputError` if there is no such protocol for the token that begins a text."""
    if bos not in get_args(Bos):
        raise InputError(f"bos {bos!r} is none of {', '.join(get_args(Bos))}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all are told that calibrate.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    # ---------------------------------------------------------------- Calibration

    calibration: Annotated[str, CALIBRATION] = "c4"
    """c4, wikitext2, ptb (or c4:FILE, …), a .txt, .json, .jsonl or .parquet file, a hub dataset, demo; self for text
    that the model itself writes first; or several, each with its share: 'c4:0.5 self:0.5'."""

    column: Annotated[str | None, CALIBRATION] = None
    """The column of text, or of chats; by default text, messages, conversations, or the only one of strings."""

    split: Annotated[str | None, CALIBRATION] = None
    """The split of hub datasets; by default train."""

    samples: Annotated[int, CALIBRATION] = 128
    """Number of calibration samples."""

    length: Annotated[int, CALIBRATION] = 2048
    """Tokens per calibration sample."""

    bos: Annotated[Bos, CALIBRATION] = "auto"
    """Where the token that begins a text stands: in each sample, once before the whole text where the tokenizer puts
    one, or never; auto is each for Gemma, else once."""

    seed: Annotated[int, CALIBRATION] = 0
    """Seed of the draw of the samples."""

    # ---------------------------------------------------------------- Computation

    device: Annotated[str, COMPUTATION] = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …"""

    dtype: Annotated[DtypeName, COMPUTATION] = "auto"
    """Precision to compute in; auto is the checkpoint's own on a GPU, and on a CPU float32, but bfloat16 where it has
    AMX and the checkpoint is not float16."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.length < 2:
            raise InputError(f"{self.samples} samples of {self.length} tokens are too few to calibrate on")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"seed {self.seed} is not in [0, 2^63)")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        check_bos(self.bos)

    @property
    def needs_inputs(self) -> bool:
        """Whether there is anything to calibrate for."""
        raise NotImplementedError

    @property
    def draws(self) -> bool:
        """Whether the seed makes a difference."""
        return self.needs_inputs

    @property
    def held_out(self) -> int:
        """The number of samples that the guard judges by and no statistic sees."""
        return 0

    @property
    def tuning_epochs(self) -> int:
        """How often all samples are learnt from, batch by batch."""
        return 0

    @property
    def corrects(self) -> float | None:
        """Where blocks learn, the share of what the blocks before have done that they make up for."""
        return None

    @property
    def precision(self) -> DtypeName:
        """What ``dtype`` comes to for this method."""
        return self.dtype

    @property
    def idle(self) -> dict[str, Any]:
        """The options that do nothing here, each with the one value that stands for all."""
        unread = {name: getattr(Options, name) for name in _OF_SAMPLES}
        return (unread if not self.needs_inputs else {}) | ({} if self.draws else {"seed": 0})

    @property
    def essence(self) -> Self:
        """The same with options that do nothing here at one value, so that those that do the same are equal."""
        return dataclasses.replace(self, **self.idle)

    def summary(self) -> str:
        """The method in a few words, for tables and progress bars."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a YAML file."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Self:
        """Check plain data and build the options; ``where`` names its source in errors."""
        if not isinstance(data, dict):
            raise InputError(f"{where} is not a mapping of options to values")
        known = [field.name for field in dataclasses.fields(cls)]
        data = {str(key).replace("-", "_"): value for key, value in data.items()}
        for key in data.keys() - set(known):
            near = difflib.get_close_matches(key, known, 1)
            raise InputError(
                f"{where} has an unknown option {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if isinstance(data.get("memory"), int):
            data["memory"] = str(data["memory"])
        try:
            return dataclasses.replace(msgspec.convert(data, cls))  # which leaves out of __dict__ what is not given
        except (msgspec.ValidationError, UnicodeEncodeError) as error:  # half a character is in no text
            raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class WalkOptions(Options):
    """What all are told that walk over the blocks of a model and change its linears.

    Raises:
        InputError: when it is built with values that make no sense.
    """

    skip: tuple[str, ...] = ()
    """Layers to leave as they are, by full name; * stands for anything. May be repeated."""

    one_shot: Annotated[bool, CALIBRATION] = False
    """Gather all statistics from the model as it is, in one pass, rather than block after finished block."""

    memory: Annotated[str | None, COMPUTATION] = None
    """Memory of this machine that the run may take, such as 8GB; by default nine tenths of what is free. What does not
    fit waits in a file beside --out. Changes no result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory is not None:
            parse_size(self.memory)

    @property
    def needs_gram(self) -> bool:
        """Whether the Gram matrices of the inputs are needed."""
        raise NotImplementedError

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is tried of a reader group, and judged."""
        return ()

    @property
    def idle(self) -> dict[str, Any]:
        """See :class:`Options`."""
        return super().idle | ({} if self.needs_inputs else {"one_shot": False})

    def skips(self, layer: str) -> bool:
        """Whether the linear of this full name is to be left as it is."""
        return any(fnmatch.fnmatchcase(layer, pattern) for pattern in self.skip)
