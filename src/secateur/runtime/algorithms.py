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
from torch import Tensor

from secateur.files import cache_folder
from secateur.runtime import cusparselt
from secateur.runtime.cusparselt import Algorithm
from secateur.runtime.semi_structured import SemiStructuredLinear

# Sums in another order differ by less, as a share of the largest output, even if parts of them are rounded to 16 bits.
LARGEST_DIFFERENCE = 0.02
# Of algorithms that take at most so many times as long as the fastest, a second, better look decides.
CLOSE = 1.15
# Milliseconds that one product takes of each of some groups of products; the groups take turns.
Clock = Callable[[Sequence[Sequence[Callable[[], object]]]], list[float]]


def check(linear: Callable[[Tensor], Tensor], rows: Tensor, expected: Tensor) -> None:
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
        """The fastest algorithm whose product is the dense one, from the file or by a search.

        Args:
            linears: of one shape.
            rows: ``(T, I)``.
            expected: the dense product of the first of ``linears``, ``(T, O)``.
            milliseconds: how long products take.

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
                check(partial(first, algorithm=found), rows, expected)
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
    """Time every algorithm whose product is the dense one, and give the fastest; arguments as those of ``find``.

    All are timed with the first of ``linears``, and those that come close to the fastest with all.
    """
    reason = "it has no algorithm"
    right = []
    for config in range(linears[0].configs(len(rows))):
        candidate = Algorithm(config)
        try:
            check(partial(linears[0], algorithm=candidate), rows, expected)
        except RuntimeError as error:
            reason = str(error)
            continue
        right.append(candidate)
    if not right:
        raise RuntimeError(reason)
    alone = milliseconds([[partial(linears[0], rows, algorithm=candidate)] for candidate in right])
    close = [candidate for candidate, taken in zip(right, alone, strict=True) if taken <= CLOSE * min(alone)]
    together = milliseconds([[partial(linear, rows, algorithm=x) for linear in linears] for x in close])
    return close[together.index(min(together))]


def _read(file: Path) -> dict[str, dict[str, list[int]]]:
    """What the file says, or nothing where it is not there or not what was written."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    right = isinstance(known, dict) and all(isinstance(found, dict) for found in known.values())
    return known if right else {}
