"""Rounds in which dense and sparse weights take turns: linears by themselves, and the whole model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.benchmark.pairs import VARIANTS, Pair, install
from secateur.benchmark.timing import END_TO_END, Measurement, Workload, measurement, stopwatch, with_overall
from secateur.progress import Progress
from secateur.runtime.decoding import Continuation
from secateur.runtime.graphs import capture


@dataclass(frozen=True)
class Timing:
    """How times are taken.

    Attributes:
        rounds: how often each, after one round that does not count: caches and memory are cold then.
        tokens: decode so many in each round.
        device: where the model is.
        progress: is told how far the work is.
    """

    rounds: int
    tokens: int
    device: torch.device
    progress: Progress


@dataclass(frozen=True)
class ModelTimes:
    """Times of the whole model: prefill, and one step of decoding.

    Attributes:
        sparse: sparse weights against dense ones; empty where there are none.
        structured: a smaller dense model against the dense one; empty without one.
        graph: whether decoding ran in a CUDA graph.
        prefill_graph: whether prefill did.
    """

    sparse: list[Measurement]
    structured: list[Measurement]
    graph: bool
    prefill_graph: bool


def time_modules(pairs: Sequence[Pair], workload: Workload, timing: Timing) -> list[Measurement]:
    """Linears by role, and overall, on random inputs; on a GPU those of a role are one CUDA graph."""
    roles: dict[str, list[Pair]] = {}
    for pair in pairs:
        roles.setdefault(pair.role, []).append(pair)
    generator, device = torch.Generator().manual_seed(0), pairs[0].dense.weight.device
    inputs = {
        width: torch.randn(workload.tokens, width, generator=generator).to(device, torch.bfloat16)
        for width in {pair.dense.in_features for pair in pairs}
    }
    works: dict[str, dict[str, Callable[[], None]]] = {variant: {} for variant in VARIANTS}
    for variant in VARIANTS:
        for role, members in roles.items():
            stack = [(getattr(pair, variant), inputs[pair.dense.in_features]) for pair in members]
            work: Callable[[], None] = partial(_run, stack)
            works[variant][role] = capture(work) if timing.device.type == "cuda" else work
    seconds = stopwatch(timing.device)
    spent: dict[str, dict[str, list[float]]] = {role: {variant: [] for variant in VARIANTS} for role in roles}
    timing.progress.at(f"modules, {workload}")
    for _ in range(timing.rounds + 1):
        for variant in VARIANTS:
            for role, work in works[variant].items():
                spent[role][variant].append(seconds(work))
        timing.progress.advance(workload.tokens)
    return with_overall(workload, {role: _rounds(times, "sparse") for role, times in spent.items()})


def time_model(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    narrow: PreTrainedModel | None,
    batch: int,
    length: int,
    timing: Timing,
) -> ModelTimes:
    """The whole model on random tokens, and ``narrow``, a smaller dense model."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (batch, length), generator=generator).to(model.device)
    models = dict.fromkeys(VARIANTS if pairs else VARIANTS[:1], model) | (
        {} if narrow is None else {"structured": narrow}
    )
    runs = {name: Continuation(each, ids, timing.tokens, repeated=True) for name, each in models.items()}
    seconds = stopwatch(timing.device)
    prefill: dict[str, list[float]] = {name: [] for name in runs}
    decode: dict[str, list[float]] = {name: [] for name in runs}
    timing.progress.at(f"model, {batch} × {length}")
    for _ in range(timing.rounds + 1):
        for name, run in runs.items():
            if name in VARIANTS:
                install(model, pairs, name)
            prefill[name].append(seconds(run.prefill))
            run.prepare()
            decode[name].append(seconds(partial(run.steps, timing.tokens)) / timing.tokens)
        timing.progress.advance(batch * (length + timing.tokens))

    def rows(against: str) -> list[Measurement]:
        return [
            measurement(END_TO_END, Workload("prefill", batch, length), _rounds(prefill, against)),
            measurement(END_TO_END, Workload("decode", batch, length), _rounds(decode, against)),
        ]

    in_graphs = [all(run.graph for run in runs.values()), all(run.prefill_graph for run in runs.values())]
    return ModelTimes(rows("sparse") if pairs else [], rows("structured") if narrow is not None else [], *in_graphs)


def _run(stack: Sequence[tuple[nn.Module, Tensor]]) -> None:
    for linear, inputs in stack:
        linear(inputs)


def _rounds(times: dict[str, list[float]], against: str) -> list[tuple[float, float]]:
    """Dense and another variant, without the first round."""
    return list(zip(times["dense"][1:], times[against][1:], strict=True))
