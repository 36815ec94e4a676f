"""A linear whose 2:4 weight is multiplied by sparse tensor cores, through cuSPARSELt.

The weight is compressed once, to 9/16 of its bytes (16-bit types). A product takes one plan for each number of
tokens and algorithm, which all linears of a shape share; a bias is part of the plan.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from secateur.masks import obeys
from secateur.patterns import NM
from secateur.runtime import cusparselt
from secateur.runtime.choosing import nearest
from secateur.runtime.cusparselt import ALIGNMENT, Algorithm, Plan, Problem, token_multiple

# Prompts of many lengths each need plans of their own; those not used for longest go.
MOST_PLANS = 1024
# Columns of the weight that are shown at a time, by a product with rows of the identity.
_COLUMNS_SHOWN = 1024


def is_2of4(weight: Tensor) -> bool:
    """Whether ``weight`` (O, I) can have the compressed form at all: 2:4 as stored, of 16 bits, and finite.

    The compressed form shows its weight by a product, in which one NaN would spoil a whole column. In float32
    the hardware has 1:2 only.
    """
    sixteen = weight.dtype in (torch.float16, torch.bfloat16)
    return sixteen and obeys(weight, NM(2, 4)) and bool(weight.isfinite().all())


@lru_cache(maxsize=MOST_PLANS)
def plan_for(problem: Problem, algorithm: Algorithm, device: int) -> Plan:
    """The plan, made when it is first asked for. RuntimeError where the library has none."""
    lib = cusparselt.library()
    if lib is None:
        raise RuntimeError("cuSPARSELt was not found")
    return Plan(problem, algorithm, device, lib)


class SemiStructuredLinear(nn.Module):
    """``nn.Linear`` with a 2:4 weight, compressed for cuSPARSELt.

    Args:
        weight: ``(O, I)``, 2:4, bfloat16 or float16, on a CUDA device.
        bias: ``(O,)``, or None.
        algorithms: by number of tokens, how to multiply; the nearest number decides.

    Raises:
        RuntimeError: when the library is not there, has no kernels for this shape, type or GPU, or does not give the
            same weight back; −0.0 may come back as 0.0.
    """

    packed: Tensor

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None = None, algorithms: Mapping[int, Algorithm] | None = None
    ) -> None:
        super().__init__()
        lib = cusparselt.library()
        if lib is None:
            raise RuntimeError("cuSPARSELt was not found")
        self.out_features, self.in_features = weight.shape
        self.dtype, self.bias, self._multiple = weight.dtype, bias, token_multiple(weight.dtype)
        self.set_algorithms(algorithms or {1: Algorithm()})
        packed = cusparselt.compress(weight.detach().contiguous(), lib)
        self.register_buffer("packed", packed, persistent=False)
        if not torch.equal(self.weight, weight):
            raise RuntimeError("it does not give back the weight that was compressed")

    def set_algorithms(self, algorithms: Mapping[int, Algorithm]) -> None:
        """Multiply in these ways from now on."""
        self.algorithms, self._buckets = dict(algorithms), tuple(algorithms)
        self._last: tuple[object, Plan] | None = None  # what was multiplied last, and its plan

    def configs(self, tokens: int) -> int:
        """How many algorithms the library has for so many tokens."""
        return self._plan(tokens + -tokens % token_multiple(self.dtype), self.bias, Algorithm()).configs

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(O, I)``, made anew."""
        weight = torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.packed.device)
        for first in range(0, self.in_features, _COLUMNS_SHOWN):
            last = min(first + _COLUMNS_SHOWN, self.in_features)
            rows = torch.zeros(last - first, self.in_features, dtype=self.dtype, device=self.packed.device)
            rows[:, first:last].fill_diagonal_(1)
            weight[:, first:last] = self._multiply(rows, None, None).T
        return weight

    def forward(self, inputs: Tensor, algorithm: Algorithm | None = None) -> Tensor:
        """``(..., I)`` → ``(..., O)``, by the algorithm for so many tokens, or by another."""
        if not inputs.numel() or (torch.is_grad_enabled() and inputs.requires_grad):
            return nn.functional.linear(inputs, self.weight, self.bias)
        if inputs.dim() == 2:
            return self._multiply(inputs.contiguous(), self.bias, algorithm)
        rows = inputs.reshape(-1, self.in_features).contiguous()
        return self._multiply(rows, self.bias, algorithm).view(*inputs.shape[:-1], self.out_features)

    def _multiply(self, rows: Tensor, bias: Tensor | None, algorithm: Algorithm | None) -> Tensor:
        """``(T, I)`` → ``(T, O)``, both row-major, T > 0."""
        tokens = rows.shape[0]
        if missing := -tokens % self._multiple:
            rows = nn.functional.pad(rows, (0, 0, 0, missing))
        elif rows.data_ptr() % ALIGNMENT:
            rows = rows.clone()
        # Most products follow one of as many tokens; looking a plan up takes a sixth of a product's time on the CPU.
        key = (tokens, 0 if bias is None else bias.data_ptr(), algorithm)
        last = self._last  # one object, so that threads find a key with its plan
        if last is None or last[0] != key:
            way = algorithm or self.algorithms[nearest(self._buckets, tokens)]
            last = self._last = key, self._plan(tokens + missing, bias, way)
        out = rows.new_empty((tokens + missing, self.out_features))
        last[1].launch(self.packed, rows, out)
        return out[:tokens] if missing else out

    def _plan(self, tokens: int, bias: Tensor | None, algorithm: Algorithm) -> Plan:
        address = 0 if bias is None else bias.data_ptr()
        problem = Problem(self.out_features, self.in_features, tokens, self.dtype, self.dtype, bias=address)
        return plan_for(problem, algorithm, self.packed.device.index)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SemiStructuredLinear":
        self._last = None  # plans are for one device
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Without the plan, which is the library's and cannot be copied."""
        return {**self.__dict__, "_last": None}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def extra_repr(self) -> str:
        """Like that of ``nn.Linear``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, 2:4"
