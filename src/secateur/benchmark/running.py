"""``bench()``: time a pruned model, dense and packed, module by module and end to end."""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.benchmark.machine import Machine, this_machine
from secateur.benchmark.sides import SIDES, Pair, Side, check_sparse, pairs_of, put
from secateur.benchmark.timing import Measurement, Workload, measurement, with_overall
from secateur.checkpoint import Source, local_folder
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.progress import Progress
from secateur.runtime.kernels import KERNELS
from secateur.runtime.loading import load

END_TO_END = "end to end"


@dataclass(frozen=True)
class Benchmark:
    """How fast a model's packed weights are, against the same weights dense in bfloat16.

    Attributes:
        model: the model, as it was named.
        values: the type of the packed values, ``bfloat16`` or ``int8``, or both.
        linears: how many linears were run both ways.
        left_dense: pruned linears that Secateur cannot run packed, and that were dense on both sides.
        dense_bytes: what the linears take in memory, dense.
        packed_bytes: what they take packed.
        kernels: what multiplied packed weights.
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
    machine: Machine
    rounds: int
    tokens: int
    modules: list[Measurement]
    end_to_end: list[Measurement]

    @property
    def slower(self) -> list[Measurement]:
        """Where packed weights took longer than dense ones."""
        return [found for found in (*self.modules, *self.end_to_end) if found.is_slower]


def bench(
    model: str | Path,
    *,
    batch: Sequence[int] = (1, 8),
    length: Sequence[int] = (128, 512),
    tokens: int = 32,
    rounds: int = 7,
    int8: bool = False,
    progress: Progress | None = None,
) -> Benchmark:
    """Time the packed weights of a pruned model on this CPU, against the same weights dense.

    Both sides compute in bfloat16, and in each round they take turns, so that what disturbs the machine disturbs
    them alike. One round runs all linears of the model, kind by kind: weights come from where they come from when
    text is generated. In memory there are the model, and its pruned linears twice.

    Args:
        model: a pruned model, packed or not: a folder, a hub name, or a ``.gguf`` file.
        batch: numbers of sequences at a time.
        length: tokens of a sequence before the first that is generated.
        tokens: decode so many in each round, end to end.
        rounds: take every time so often, after one round that does not count.
        int8: round the kept values to int8.
        progress: hears how the work goes.

    Raises:
        InputError: when something given cannot be used, or the model has no sparse linears that run packed.
    """
    if not batch or not length or min(*batch, *length, tokens) < 1:
        raise InputError("batch, length and tokens are numbers from 1 on")
    if rounds < 2:
        raise InputError(f"{rounds} rounds show no spread: take at least 2")
    if not KERNELS:
        raise InputError("Secateur was installed without a C++ compiler: it has no kernels to measure")
    progress = progress or Progress()
    with progress, local_folder(str(model)) as folder:
        source = Source(folder)
        longest, limit = max(length) + tokens, getattr(source.config, "max_position_embeddings", None)
        if limit and longest > limit:
            raise InputError(f"{model} takes {limit} tokens, and {max(length)} + {tokens} are more")
        loaded = load(folder, torch.bfloat16)
        skeleton = source.skeleton(torch.bfloat16)
        pairs, left = pairs_of(loaded, blocks_of(skeleton, family_of(skeleton)), int8)
        check_sparse(pairs, left, str(model))
        sequences = [(b, n) for b in batch for n in length]
        workloads = [Workload("decode", b) for b in batch] + [Workload("prefill", b, n) for b, n in sequences]
        work = sum(workload.tokens for workload in workloads) + sum(b * (n + tokens) for b, n in sequences)
        progress.start("bench", work * (rounds + 1))
        with torch.inference_mode():
            modules = [row for workload in workloads for row in _time_modules(pairs, workload, rounds, progress)]
            whole = [row for b, n in sequences for row in _time_model(loaded, pairs, b, n, tokens, rounds, progress)]
    return Benchmark(
        model=str(model),
        values=" and ".join(sorted({"int8" if pair.sparse.group else "bfloat16" for pair in pairs})),
        linears=len(pairs),
        left_dense=left,
        dense_bytes=sum(pair.dense.weight.nbytes for pair in pairs),
        packed_bytes=sum(pair.sparse.packed().nbytes for pair in pairs),
        kernels=KERNELS[0].name,
        machine=this_machine(),
        rounds=rounds,
        tokens=tokens,
        modules=modules,
        end_to_end=sorted(whole, key=lambda row: row.workload.phase),
    )


def _time_modules(pairs: Sequence[Pair], workload: Workload, rounds: int, progress: Progress) -> list[Measurement]:
    """Linears by kind, and overall, on random inputs."""
    kinds: dict[str, list[Pair]] = {}
    for pair in pairs:
        kinds.setdefault(pair.kind, []).append(pair)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        width: torch.randn(workload.tokens, width, generator=generator).bfloat16()
        for width in {pair.dense.in_features for pair in pairs}
    }
    spent: dict[str, dict[Side, list[float]]] = {kind: {side: [] for side in SIDES} for kind in kinds}
    progress.at(f"modules, {workload}")
    for _ in range(rounds + 1):
        for side in SIDES:
            for kind, members in kinds.items():
                stack = [(getattr(pair, side), inputs[pair.dense.in_features]) for pair in members]
                spent[kind][side].append(_seconds(partial(_run, stack)))
        progress.advance(workload.tokens)
    return with_overall(workload, {kind: _rounds(times) for kind, times in spent.items()})


def _time_model(
    model: PreTrainedModel, pairs: Sequence[Pair], batch: int, length: int, tokens: int, rounds: int, progress: Progress
) -> list[Measurement]:
    """The whole model on random tokens: prefill, and one step of decoding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator)
    prefill: dict[Side, list[float]] = {side: [] for side in SIDES}
    decode: dict[Side, list[float]] = {side: [] for side in SIDES}
    progress.at(f"model, {batch} × {length}")
    for _ in range(rounds + 1):
        for side in SIDES:
            put(model, pairs, side)
            run = Continuation(model, ids)
            prefill[side].append(_seconds(run.step))
            decode[side].append(_seconds(partial(run.steps, tokens)) / tokens)
        progress.advance(batch * (length + tokens))
    return [
        measurement(END_TO_END, Workload("prefill", batch, length), _rounds(prefill)),
        measurement(END_TO_END, Workload("decode", batch, length), _rounds(decode)),
    ]


class Continuation:
    """Sequences of token ids ``(B, S)`` that a model continues with the likeliest token, a step at a time."""

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        self.cache = None
        # As when text is generated: only the last token's logits are of use.
        last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.options = {"use_cache": True} | ({"logits_to_keep": 1} if last else {})

    def step(self) -> None:
        """Process ``ids``, and put the next token ``(B, 1)`` in their place."""
        out = self.model(input_ids=self.ids, past_key_values=self.cache, **self.options)
        self.cache = out.past_key_values
        self.ids = out.logits[:, -1:].argmax(-1)

    def steps(self, number: int) -> None:
        """So many steps."""
        for _ in range(number):
            self.step()


def _run(stack: Sequence[tuple[nn.Module, Tensor]]) -> None:
    for linear, inputs in stack:
        linear(inputs)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rounds(times: dict[Side, list[float]]) -> list[tuple[float, float]]:
    """Dense and sparse, without the first round: caches and memory were cold."""
    return list(zip(times["dense"][1:], times["sparse"][1:], strict=True))
