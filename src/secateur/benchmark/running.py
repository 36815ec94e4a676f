"""``bench()``: time a pruned model, dense and sparse, module by module and end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.benchmark.continuation import Continuation
from secateur.benchmark.machine import Machine, this_machine
from secateur.benchmark.sides import SIDES, Pair, Side, check_device, check_sparse, pairs_of, put
from secateur.benchmark.timing import Measurement, Stopwatch, Workload, measurement, stopwatch, with_overall
from secateur.checkpoint import Source, context_of, local_folder
from secateur.devices import choose_device
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.progress import Progress
from secateur.runtime.choosing import DENSE, Choice
from secateur.runtime.kernels import KERNELS
from secateur.runtime.loading import load

END_TO_END = "end to end"


@dataclass(frozen=True)
class Benchmark:
    """How fast a model's sparse weights are, against the same weights dense in bfloat16.

    On a CPU the sparse side is packed. On a GPU it is what :func:`secateur.load` gives the 2:4 linears: for some
    numbers of tokens that may be the dense form again, as ``choices`` says.

    Attributes:
        model: the model, as it was named.
        values: the type of the kept values, ``bfloat16`` or ``int8``, or both.
        linears: how many linears were run both ways.
        left_dense: pruned linears that Secateur cannot run sparse there, and that were dense on both sides.
        dense_bytes: what the linears take in memory, dense.
        packed_bytes: what they take sparse; on a GPU with the dense weight where that is kept too.
        kernels: what multiplied sparse weights.
        choices: on a GPU, how the 2:4 linears of each kind were multiplied with, and why; empty on a CPU.
        machine: where it was measured.
        rounds: how often each time was taken, dense and sparse in turn.
        tokens: tokens that were decoded in each round.
        modules: times of linears by kind, all blocks together.
        end_to_end: times of the whole model.
    """

    model: str
    values: str
    linears: int
    left_dense: int
    dense_bytes: int
    packed_bytes: int
    kernels: str
    choices: list[Choice]
    machine: Machine
    rounds: int
    tokens: int
    modules: list[Measurement]
    end_to_end: list[Measurement]

    @property
    def slower(self) -> list[Measurement]:
        """Where sparse weights took longer than dense ones."""
        return [found for found in (*self.modules, *self.end_to_end) if found.is_slower]

    @property
    def form(self) -> str:
        """What the sparse side is called in tables: ``packed`` on a CPU, ``2:4`` on a GPU."""
        return "2:4" if self.choices else "packed"


def bench(
    model: str | Path,
    *,
    batch: Sequence[int] = (1, 8),
    length: Sequence[int] = (128, 512),
    tokens: int = 32,
    rounds: int = 7,
    int8: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Benchmark:
    """Time the sparse weights of a pruned model, against the same weights dense: packed on a CPU, 2:4 on a GPU.

    Both sides compute in bfloat16, and in each round they take turns, so that what disturbs the machine disturbs
    them alike. One round runs all linears of the model, kind by kind: weights come from where they come from when
    text is generated. In memory there are the model, and its pruned linears twice. Not yet measured on a GPU.

    Args:
        model: a pruned model, packed or not: a folder, a hub name, or a ``.gguf`` file.
        batch: numbers of sequences at a time.
        length: tokens of a sequence before the first that is generated.
        tokens: decode so many in each round, end to end.
        rounds: take every time so often, after one round that does not count.
        int8: round the kept values to int8, on a CPU.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` …
        progress: is told how far it is.

    Raises:
        InputError: when something given cannot be used, or the model has no linears that run sparse on the device.
    """
    if not batch or not length or min(*batch, *length, tokens) < 1:
        raise InputError("batch, length and tokens are numbers from 1 on")
    if rounds < 2:
        raise InputError(f"{rounds} rounds show no spread: take at least 2")
    chosen = choose_device(device)
    check_device(chosen, int8)
    progress = progress or Progress()
    with progress, local_folder(str(model)) as folder:
        source = Source(folder)
        longest, limit = max(length) + tokens, context_of(source.config)
        if limit and longest > limit:
            raise InputError(f"{model} takes {limit} tokens, and {max(length)} + {tokens} are more")
        loaded = load(folder, torch.bfloat16, chosen)
        skeleton = source.skeleton(torch.bfloat16)
        pairs, left = pairs_of(loaded, blocks_of(skeleton, family_of(skeleton)), chosen, int8)
        check_sparse(pairs, left, loaded.choices, chosen, str(model))
        sequences = [(b, n) for b in batch for n in length]
        workloads = [Workload("decode", b) for b in batch] + [Workload("prefill", b, n) for b, n in sequences]
        work = sum(workload.tokens for workload in workloads) + sum(b * (n + tokens) for b, n in sequences)
        progress.start("bench", work * (rounds + 1))
        timing = rounds, stopwatch(chosen), progress
        with torch.inference_mode():
            modules = [row for workload in workloads for row in _time_modules(pairs, workload, *timing)]
            whole = [row for b, n in sequences for row in _time_model(loaded, pairs, b, n, tokens, *timing)]
    backends = {form for choice in loaded.choices for form in choice.forms.values()} - {DENSE}
    return Benchmark(
        model=str(model),
        values=" and ".join(sorted({pair.values for pair in pairs})),
        linears=len(pairs),
        left_dense=left,
        dense_bytes=sum(pair.dense.weight.nbytes for pair in pairs),
        packed_bytes=sum(pair.sparse_bytes for pair in pairs),
        kernels=" and ".join(sorted(backends)) or KERNELS[0].name,
        choices=list(loaded.choices),
        machine=this_machine(chosen),
        rounds=rounds,
        tokens=tokens,
        modules=modules,
        end_to_end=sorted(whole, key=lambda row: row.workload.phase),
    )


def _time_modules(
    pairs: Sequence[Pair], workload: Workload, rounds: int, seconds: Stopwatch, progress: Progress
) -> list[Measurement]:
    """Linears by kind, and overall, on random inputs."""
    kinds: dict[str, list[Pair]] = {}
    for pair in pairs:
        kinds.setdefault(pair.kind, []).append(pair)
    generator, device = torch.Generator().manual_seed(0), pairs[0].dense.weight.device
    inputs = {
        width: torch.randn(workload.tokens, width, generator=generator).to(device, torch.bfloat16)
        for width in {pair.dense.in_features for pair in pairs}
    }
    spent: dict[str, dict[Side, list[float]]] = {kind: {side: [] for side in SIDES} for kind in kinds}
    progress.at(f"modules, {workload}")
    for _ in range(rounds + 1):
        for side in SIDES:
            for kind, members in kinds.items():
                stack = [(getattr(pair, side), inputs[pair.dense.in_features]) for pair in members]
                spent[kind][side].append(seconds(partial(_run, stack)))
        progress.advance(workload.tokens)
    return with_overall(workload, {kind: _rounds(times) for kind, times in spent.items()})


def _time_model(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    batch: int,
    length: int,
    tokens: int,
    rounds: int,
    seconds: Stopwatch,
    progress: Progress,
) -> list[Measurement]:
    """The whole model on random tokens: prefill, and one step of decoding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator).to(model.device)
    prefill: dict[Side, list[float]] = {side: [] for side in SIDES}
    decode: dict[Side, list[float]] = {side: [] for side in SIDES}
    progress.at(f"model, {batch} × {length}")
    for _ in range(rounds + 1):
        for side in SIDES:
            put(model, pairs, side)
            run = Continuation(model, ids)
            prefill[side].append(seconds(run.step))
            decode[side].append(seconds(partial(run.steps, tokens)) / tokens)
        progress.advance(batch * (length + tokens))
    return [
        measurement(END_TO_END, Workload("prefill", batch, length), _rounds(prefill)),
        measurement(END_TO_END, Workload("decode", batch, length), _rounds(decode)),
    ]


def _run(stack: Sequence[tuple[nn.Module, Tensor]]) -> None:
    for linear, inputs in stack:
        linear(inputs)


def _rounds(times: dict[Side, list[float]]) -> list[tuple[float, float]]:
    """Dense and sparse, without the first round: caches and memory were cold."""
    return list(zip(times["dense"][1:], times["sparse"][1:], strict=True))
