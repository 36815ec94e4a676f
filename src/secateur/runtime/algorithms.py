"""Which of cuSPARSELt's kernels is fastest for a shape and a number of tokens: searched once, and kept in a file.

The library's default is far from the fastest on the GPUs that have been measured, and the fastest differs from shape
to shape. Some kernels gave wrong products on an A100 (https://github.com/pytorch/pytorch/issues/155333), so every
candidate's product is compared with the dense one before it is timed, and what comes from the file is compared again.

The file is safe to delete. Its entries name the GPU and the versions of the library and torch for which they hold.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.runtime import cusparselt
from secateur.runtime.cusparselt import Algorithm
from secateur.runtime.semi_structured import SemiStructuredLinear

# Sums in another order differ by less, as a share of the largest output, even if parts of them are rounded to 16 bits.
LARGEST_DIFFERENCE = 0.02
# Of algorithms that take at most so many times as long as the fastest, a second, better look decides.
CLOSE = 1.15
# Milliseconds that one of some products takes.
Clock = Callable[[Sequence[Callable[[], object]]], float]


def check(linear: nn.Module, rows: Tensor, expected: Tensor) -> None:
    """Raise RuntimeError unless ``linear`` makes ``expected`` (T, O) of ``rows`` (T, I)."""
    difference = (linear(rows) - expected).abs().max()
    if not difference <= LARGEST_DIFFERENCE * expected.abs().max():  # a NaN is no agreement
        raise RuntimeError(f"its product for {len(rows)} tokens is not the dense one")


class Algorithms:
    """Algorithms that were found on this GPU with this library, in a file."""

    def __init__(self, device: torch.device, file: Path | None = None) -> None:
        self.file = file or cache_folder() / "cusparselt.json"
        lib = cusparselt.library()
        version = lib.version if lib else 0
        self._here = f"{torch.cuda.get_device_name(device)}, cuSPARSELt {version}, torch {torch.__version__}"

    def find(
        self, linears: Sequence[SemiStructuredLinear], rows: Tensor, expected: Tensor, milliseconds: Clock
    ) -> Algorithm:
        """The fastest algorithm whose product is the dense one, from the file or by a search; it is set in ``linears``.

        Args:
            linears: of one shape.
            rows: ``(T, I)``.
            expected: the dense product of the first of ``linears``, ``(T, O)``.
            milliseconds: how long one of some products takes.

        Raises:
            RuntimeError: when there is none.
        """
        first = linears[0]
        bias = "" if first.bias is None else " with bias"
        key = f"{first.out_features}x{first.in_features} {str(first.dtype)[6:]}{bias}, {len(rows)} tokens"
        known = _read(self.file).get(self._here, {}).get(key)
        if known is not None:
            try:
                found = Algorithm(*known)
                _set(linears, found)
                check(first, rows, expected)
                return found
            except (RuntimeError, TypeError):  # another library under the same number, or a damaged file
                pass
        found = search(linears, rows, expected, milliseconds)
        self._keep(key, found)
        return found

    def _keep(self, key: str, found: Algorithm) -> None:
        """Write the file anew, whole or not at all; without a place for it, every load searches."""
        known = _read(self.file)
        known[self._here] = {**known.get(self._here, {}), key: list(found)}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.file.parent, delete=False, encoding="utf-8") as draft:
                json.dump(known, draft, indent=1, sort_keys=True)
            os.replace(draft.name, self.file)
        except OSError:
            pass


def search(linears: Sequence[SemiStructuredLinear], rows: Tensor, expected: Tensor, milliseconds: Clock) -> Algorithm:
    """Time every algorithm whose product is the dense one, and set the fastest; arguments as those of ``find``.

    All are timed with the first of ``linears``, and those that come close to the fastest with all.
    """
    reason = "it has no algorithm"
    first: dict[Algorithm, float] = {}
    for config in range(linears[0].configs(len(rows))):
        candidate = Algorithm(config)
        _set(linears, candidate)
        try:
            check(linears[0], rows, expected)
        except RuntimeError as error:
            reason = str(error)
            continue
        first[candidate] = milliseconds([partial(linears[0], rows)])
    if not first:
        raise RuntimeError(reason)
    limit = CLOSE * min(first.values())
    times = {}
    for candidate in (candidate for candidate, taken in first.items() if taken <= limit):
        _set(linears, candidate)
        times[candidate] = milliseconds([partial(linear, rows) for linear in linears])
    found = min(times, key=times.__getitem__)
    _set(linears, found)
    return found


def _set(linears: Sequence[SemiStructuredLinear], algorithm: Algorithm) -> None:
    for linear in linears:
        linear.set_algorithms({1: algorithm})


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again: ``$XDG_CACHE_HOME/secateur`` or ``~/.cache/secateur``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def _read(file: Path) -> dict[str, dict[str, list[int]]]:
    """What the file says, or nothing where it is not there or not what was written."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    right = isinstance(known, dict) and all(isinstance(found, dict) for found in known.values())
    return known if right else {}
