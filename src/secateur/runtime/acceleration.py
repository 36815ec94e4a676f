"""Give the pruned linears of a model on a GPU the forms in which they run fastest."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from secateur.checkpoint.sparse import pack
from secateur.errors import InputError, Notice
from secateur.masks import sparsity_of
from secateur.runtime.algorithms import Algorithms, Clock, check
from secateur.runtime.choosing import BUCKETS, DENSE, FORMS, PACKED, SEMI_STRUCTURED, Choice, Measured, choose
from secateur.runtime.cusparselt import Algorithm
from secateur.runtime.dispatch import DispatchedLinear, Form, dense_linear, form_bytes
from secateur.runtime.semi_structured import SemiStructuredLinear, is_2of4
from secateur.runtime.sparse_linear import SparseLinear

# So many linears of a shape are timed in turn. A large model's are more than a GPU's cache holds, as when it runs.
SAMPLE = 8
ROUNDS = 5
# Milliseconds of a turn, about: short enough for a search in seconds, long enough for the clocks of a GPU to settle.
TURN = 0.5
# What takes so many times as long as the fastest after two rounds is not timed further.
LAGGING = 1.25
# The GPU is kept busy before a turn until all of it is launched: in cycles, at more of them a second than GPUs make.
CYCLES_PER_SECOND = 3e9
# So often a turn is begun anew because the processor was held up, and the GPU waited for launches after all.
ATTEMPTS = 4
# Of the memory that is free, forms that come on top of those that were loaded may take this share; the rest is for the
# model's activations and cache.
SPARE_MEMORY = 0.5
# Below it packing saves nothing: a mask takes one bit of each weight's 16.
LEAST_SPARSITY = 1 / 16


def cuda_milliseconds(groups: Sequence[Sequence[Callable[[], object]]]) -> list[float]:
    """The time of one product of each group on the current CUDA device; medians of some rounds.

    The products of a group run one after the other, and the groups take turns in each round: a GPU that is at its limit
    of power slows down, and whatever ran first would look faster than what was timed after it. Two rounds show which
    groups are far behind; the others take part in all.

    Launching is left out: decoding runs in a graph, and with many tokens the GPU is what is waited for. A graph of its
    own for every candidate of a search would take longer to capture than to time, so a turn waits in the stream
    behind idle work until all of it is launched.
    """
    turns = [_Turn(products) for products in groups]
    times: list[list[float]] = [[] for _ in turns]
    for number in range(ROUNDS):
        slowest = LAGGING * min(map(min, times)) if number >= 2 else math.inf
        for turn, taken in zip(turns, times, strict=True):
            if number < 2 or min(taken) <= slowest:
                taken.append(turn.milliseconds())
    return list(map(median, times))


class _Turn:
    """Some products, launched as often as a turn of at least ``TURN`` milliseconds takes."""

    def __init__(self, products: Sequence[Callable[[], object]]) -> None:
        self.products, self.repeats, self.launching = products, 1, 0.0
        self._run()  # which makes what a first call makes
        torch.cuda.synchronize()
        began = time.perf_counter()
        self._run()
        self.launching = time.perf_counter() - began
        self.repeats = max(1, round(TURN / (self.milliseconds() * len(products))))

    def milliseconds(self) -> float:
        """The time of one product, of one turn."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(ATTEMPTS):
            torch.cuda._sleep(int(CYCLES_PER_SECOND * self.launching * self.repeats))
            start.record()
            self._run()
            late = start.query()  # the GPU has begun, so the turn may hold waiting for launches
            end.record()
            end.synchronize()
            if not late:
                break
            self.launching *= 2
        return start.elapsed_time(end) / (self.repeats * len(self.products))

    def _run(self) -> None:
        for _ in range(self.repeats):
            for product in self.products:
                product()


def free_memory(device: torch.device) -> int:
    """Bytes that are free there."""
    return torch.cuda.mem_get_info(device)[0]


@torch.no_grad()
def measure(
    linears: Sequence[nn.Linear | SparseLinear],
    milliseconds: Clock,
    algorithms: Algorithms,
    forms: Sequence[str] = FORMS,
) -> Measured:
    """Time the dense product of some linears of one shape, and those of every form that they can have.

    A form is refused when it raises, or when its product is not the dense one, whatever the number of tokens.

    Args:
        linears: at least one, on a CUDA device, of one shape, dtype and pattern.
        milliseconds: how long products take.
        algorithms: those of cuSPARSELt that are known.
        forms: those to measure; dense always is.
    """
    made: dict[str, list[Form]] = {DENSE: [_make(DENSE, linear) for linear in linears]}
    dense = made[DENSE][0]
    inputs = _inputs(dense.weight)
    refused: dict[str, str] = {}
    with torch.cuda.device_of(dense.weight):
        expected = {tokens: dense(rows) for tokens, rows in inputs.items()}
        for name in (form for form in forms if form != DENSE):
            try:
                members = [_make(name, linear) for linear in linears]
                if sparse := [form for form in members if isinstance(form, SemiStructuredLinear)]:
                    found = {t: algorithms.find(sparse, rows, expected[t], milliseconds) for t, rows in inputs.items()}
                    for form in sparse:
                        form.set_algorithms(found)
                for tokens, rows in inputs.items():
                    check(members[0], rows, expected[tokens])
            except RuntimeError as error:
                refused[name] = _reason(error)
            else:
                made[name] = members
        del expected
        times = {}
        for tokens, rows in inputs.items():
            taken = milliseconds([[partial(form, rows) for form in members] for members in made.values()])
            times[tokens] = dict(zip(made, taken, strict=True))
    sizes = {name: form_bytes(members[0]) for name, members in made.items()}
    used = made.get(SEMI_STRUCTURED, [])[:1]
    found = next((form.algorithms for form in used if isinstance(form, SemiStructuredLinear)), {})
    return Measured(times, sizes, refused, found)


def _inputs(weight: Tensor) -> dict[int, Tensor]:
    """Random inputs ``(T, I)`` of each number of tokens."""
    generator = torch.Generator(weight.device).manual_seed(0)
    return {
        tokens: torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device, generator=generator)
        for tokens in BUCKETS
    }


@torch.no_grad()
def accelerate(
    model: nn.Module,
    form: str = "auto",
    milliseconds: Clock = cuda_milliseconds,
    algorithms: Algorithms | None = None,
) -> tuple[Choice, ...]:
    """Replace pruned linears of ``model`` by :class:`DispatchedLinear` where another form than dense is faster.

    Where dense is fastest for every number of tokens they are ``nn.Linear``, whether they came packed or not.

    Linears that have shape, type, bias and pattern in common are measured once. Only linears that are modules take
    part: not experts in a stack, not transposed weights.

    Args:
        model: on a CUDA device, in the type in which it will run.
        form: ``auto``, or the form that every linear that can have it takes for any number of tokens: ``dense``,
            ``2:4`` or ``packed``.
        milliseconds: how long products take.
        algorithms: those of cuSPARSELt that are known; by default from the user's cache.

    Returns:
        What was chosen for each kind of linear.

    Raises:
        InputError: when there is no such form.
    """
    check_form(form)
    alike: dict[tuple[object, ...], tuple[str, dict[str, nn.Linear | SparseLinear]]] = {}
    for name, module in model.named_modules():
        if (pattern := pattern_of(module)) is not None:
            shape = (module.out_features, module.in_features)
            group = (type(module), shape, _dtype(module), module.bias is not None, pattern)
            alike.setdefault(group, (pattern, {}))[1][name] = module
    choices = []
    for pattern, linears in alike.values():
        first = next(iter(linears.values()))
        algorithms = algorithms or Algorithms(_device(first))
        measured = measure(list(linears.values())[:SAMPLE], milliseconds, algorithms)
        spare = SPARE_MEMORY * free_memory(_device(first)) / len(linears)
        plan = choose(measured.times, measured.nbytes, form_bytes(first) + spare)
        if form != "auto":
            plan = dict.fromkeys(plan, form if form in measured.nbytes else DENSE)
        if set(plan.values()) != {_form_of(first)}:
            _replace(model, dict(linears), plan, measured.algorithms)
        precision = str(_dtype(first)).removeprefix("torch.")
        shape = (first.out_features, first.in_features)
        choices.append(Choice(shape, precision, first.bias is not None, pattern, len(linears), plan, measured))
    return tuple(choices)


def check_form(form: str) -> None:
    """Raise :class:`InputError` unless ``form`` is ``auto`` or one of :data:`~secateur.runtime.choosing.FORMS`."""
    if form not in ("auto", *FORMS):
        raise InputError(f"form {form!r} is not one of auto, {', '.join(FORMS)}")


def pattern_of(module: nn.Module) -> str | None:
    """Whether a pruned linear is ``2:4`` or ``unstructured``; None for what is not one, or not of 16 bits."""
    if type(module) is nn.Linear:
        weight = module.weight
        if weight.dtype not in (torch.bfloat16, torch.float16) or sparsity_of(weight) <= LEAST_SPARSITY:
            return None
    elif isinstance(module, SparseLinear):
        weight = module.weight
    else:
        return None
    return "2:4" if is_2of4(weight) else "unstructured"


def _make(form: str, linear: nn.Linear | SparseLinear, algorithms: Mapping[int, Algorithm] | None = None) -> Form:
    """``linear`` in another form, or itself; RuntimeError where it cannot have that form."""
    if form == _form_of(linear):
        return linear
    if form == DENSE:
        return dense_linear(linear.weight.contiguous(), linear.bias)
    weight = linear.weight.detach()
    if form == PACKED:
        if weight.dtype != torch.bfloat16:
            raise RuntimeError("packed values are of bfloat16, int8 or int4")
        return SparseLinear(pack(weight), linear.bias)
    if not is_2of4(weight):
        raise RuntimeError("the weight is not 2:4")
    return SemiStructuredLinear(weight, linear.bias, algorithms)


def _replace(
    model: nn.Module,
    linears: dict[str, nn.Linear | SparseLinear],
    plan: dict[int, str],
    algorithms: Mapping[int, Algorithm],
) -> None:
    """Exchange ``linears``, by their names in ``model``, one by one, so that each frees what it no longer needs."""
    while linears:
        name, linear = linears.popitem()
        try:
            forms = {form: _make(form, linear, algorithms) for form in dict.fromkeys(plan.values())}
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # though the first ones of its kind could have that form
            warnings.warn(f"{name} stays {_form_of(linear)}: {_reason(error)}", Notice, stacklevel=3)
            continue
        only_dense = forms.keys() == {DENSE}
        model.set_submodule(name, forms[DENSE] if only_dense else DispatchedLinear(forms, plan, _dtype(linear)))


def _form_of(linear: nn.Linear | SparseLinear) -> str:
    return PACKED if isinstance(linear, SparseLinear) else DENSE


def _dtype(linear: nn.Linear | SparseLinear) -> torch.dtype:
    return linear.dtype if isinstance(linear, SparseLinear) else linear.weight.dtype


def _device(linear: nn.Linear | SparseLinear) -> torch.device:
    return linear.values.device if isinstance(linear, SparseLinear) else linear.weight.device


def _reason(error: RuntimeError) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
