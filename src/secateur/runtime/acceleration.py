"""Give the 2:4 linears of a model on a GPU the form in which they run fastest. Not yet measured on a GPU."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from secateur.runtime.choosing import BUCKETS, DENSE, Choice, Measured, choose
from secateur.runtime.semi_structured import BACKENDS, SemiStructuredLinear, compress, form_bytes, is_2of4, multiply

# So many linears of a kind are timed in turn. A large model's are more than a GPU's cache holds, as when it runs.
SAMPLE = 8
WARM_UPS, ROUNDS = 2, 7
# Of the memory that is free, forms that come on top of the dense weights may take this share; the rest is for the
# model's activations and cache.
SPARE_MEMORY = 0.5
# Sums in another order differ by less, as a share of the largest output, even if parts of them are rounded to 16 bits.
LARGEST_DIFFERENCE = 0.02

Product = Callable[[], object]


def cuda_milliseconds(products: Sequence[Product]) -> float:
    """The time of one of ``products`` when they run in turn on the current CUDA device, median of some rounds.

    Launching is part of it: where the processor is slower than the GPU, that is what the model waits for as well.
    """
    times = []
    for _ in range(WARM_UPS + ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for product in products:
            product()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(products))
    return median(times[WARM_UPS:])


def free_memory(linears: Mapping[str, nn.Linear]) -> int:
    """Bytes that are free where ``linears`` are."""
    return torch.cuda.mem_get_info(next(iter(linears.values())).weight.device)[0]


@torch.no_grad()
def measure(linears: Sequence[nn.Linear], milliseconds: Callable[[Sequence[Product]], float]) -> Measured:
    """Time the dense product of some linears of one kind, and those of every backend that works.

    A backend is refused when it raises, or when its product is not the dense one, whatever the number of tokens.

    Args:
        linears: at least one, on a CUDA device, 2:4.
        milliseconds: how long one of some products takes.
    """
    weight = linears[0].weight
    generator = torch.Generator(weight.device).manual_seed(0)
    inputs = {
        tokens: torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device, generator=generator)
        for tokens in BUCKETS
    }
    times: dict[int, dict[str, float]] = {tokens: {} for tokens in BUCKETS}
    nbytes: dict[str, int] = {}
    refused: dict[str, str] = {}

    def add(name: str, forms: list[Tensor]) -> None:
        taken = {}
        for tokens, rows in inputs.items():
            if name != DENSE:
                _check(rows, forms[0], linears[0])
            products = [partial(multiply, rows, form, linear.bias) for form, linear in zip(forms, linears, strict=True)]
            taken[tokens] = milliseconds(products)
        for tokens, each in taken.items():
            times[tokens][name] = each
        nbytes[name] = form_bytes(forms[0])

    with torch.cuda.device_of(weight):
        add(DENSE, [linear.weight for linear in linears])
        for backend in BACKENDS:
            try:
                add(backend, [compress(linear.weight, backend) for linear in linears])
            except RuntimeError as error:
                refused[backend] = _reason(error)
    return Measured(times, nbytes, refused)


@torch.no_grad()
def accelerate(
    model: nn.Module, milliseconds: Callable[[Sequence[Product]], float] = cuda_milliseconds
) -> tuple[Choice, ...]:
    """Replace linears of ``model`` by :class:`SemiStructuredLinear` where that is faster.

    Linears are of a kind that have shape, type and bias in common; each kind is measured once. Only linears that are
    modules and 2:4 as stored take part: not experts in a stack, not transposed weights.

    Args:
        model: on a CUDA device, in the type in which it will run.
        milliseconds: how long one of some products takes.

    Returns:
        What was chosen for each kind.
    """
    kinds: dict[tuple[torch.Size, torch.dtype, bool], dict[str, nn.Linear]] = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and is_2of4(module.weight):
            kind = (module.weight.shape, module.weight.dtype, module.bias is not None)
            kinds.setdefault(kind, {})[name] = module
    choices = []
    for (shape, dtype, bias), linears in kinds.items():
        number, measured = len(linears), measure(list(linears.values())[:SAMPLE], milliseconds)
        plan = choose(measured.times, measured.nbytes)
        sparse = set(plan.values()) - {DENSE}
        beside = number * sum(measured.nbytes[form] for form in sparse) if DENSE in plan.values() else 0
        if beside and beside > SPARE_MEMORY * free_memory(linears):
            plan = dict.fromkeys(plan, DENSE)
            refusal = dict.fromkeys(sparse, "too little memory is free to keep it beside the dense weight")
            measured = replace(measured, refused=measured.refused | refusal)
        if set(plan.values()) != {DENSE}:
            _replace(model, linears, plan)
        precision = str(dtype).removeprefix("torch.")
        choices.append(Choice((shape[0], shape[1]), precision, bias, number, plan, measured))
    return tuple(choices)


def _replace(model: nn.Module, linears: dict[str, nn.Linear], plan: dict[int, str]) -> None:
    """Exchange ``linears``, by their names in ``model``, one by one, so that each frees what it no longer needs."""
    while linears:
        name, linear = linears.popitem()
        try:
            forms = {
                form: linear.weight.detach() if form == DENSE else compress(linear.weight, form)
                for form in dict.fromkeys(plan.values())
            }
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # though the first ones of its kind could be compressed
            warnings.warn(f"{name} stays dense: {_reason(error)}", stacklevel=3)
            continue
        model.set_submodule(name, SemiStructuredLinear(forms, plan, linear.bias))


def _check(rows: Tensor, form: Tensor, linear: nn.Linear) -> None:
    """Raise RuntimeError unless ``form`` multiplies like the weight of ``linear``."""
    expected = linear(rows)
    difference = (multiply(rows, form, linear.bias) - expected).abs().max()
    if not difference <= LARGEST_DIFFERENCE * expected.abs().max():  # a NaN is no agreement
        raise RuntimeError(f"its product for {len(rows)} tokens is not the dense one")


def _reason(error: RuntimeError) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
