"""``bench()``: time a pruned model, dense and sparse, module by module and end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.benchmark.machine import Machine, this_machine
from secateur.benchmark.pairs import check_device, check_sparse, pairs_of
from secateur.benchmark.rounds import Timing, time_model, time_modules
from secateur.benchmark.structured import half_width_model, shrunk_model
from secateur.benchmark.timing import Measurement, Workload
from secateur.checkpoint import Source, context_of, local_folder
from secateur.devices import choose_device
from secateur.errors import InputError
from secateur.models.blocks import blocks_of, family_of
from secateur.packing import bits_of
from secateur.progress import Progress
from secateur.runtime.choosing import DENSE, Choice
from secateur.runtime.kernels import KERNELS
from secateur.runtime.loading import load


@dataclass(frozen=True)
class Benchmark:
    """How fast a model's sparse weights are, against the same weights dense in bfloat16.

    On a CPU sparse means packed. On a GPU it is what :func:`secateur.load` gives pruned linears: for some
    numbers of tokens that may be the dense form again, as ``choices`` says.

    Attributes:
        model: the model, as it was named.
        values: the types of the kept values: ``bfloat16``, ``int8`` or ``int4``.
        linears: how many linears were run both ways.
        left_dense: pruned linears that Secateur cannot run sparse there, and that were dense in both variants.
        dense_bytes: what the linears take in memory, dense.
        packed_bytes: what they take sparse; on a GPU in all forms that are kept.
        kernels: what multiplied sparse weights.
        choices: on a GPU, how pruned linears were multiplied with, and why; empty on a CPU.
        graph: whether decoding ran in a CUDA graph.
        prefill_graph: whether prefill did.
        machine: where it was measured.
        rounds: how often each time was taken, dense and sparse in turn.
        tokens: tokens that were decoded in each round.
        modules: times of linears by role, all blocks together.
        end_to_end: times of the whole model.
        structured: times of a smaller dense model, where that was asked for; its ``sparse`` seconds are those of the
            smaller model.
        shrunk: the smaller model, as it was named; None for a random one of half the width.
    """

    model: str
    values: str
    linears: int
    left_dense: int
    dense_bytes: int
    packed_bytes: int
    kernels: str
    choices: list[Choice]
    graph: bool
    prefill_graph: bool
    machine: Machine
    rounds: int
    tokens: int
    modules: list[Measurement]
    end_to_end: list[Measurement]
    structured: list[Measurement]
    shrunk: str | None = None

    @property
    def slower(self) -> list[Measurement]:
        """Where sparse weights took longer than dense ones."""
        return [row for row in (*self.modules, *self.end_to_end) if row.is_slower]

    @property
    def form(self) -> str:
        """What sparse weights are called in tables: ``packed`` on a CPU; on a GPU the forms that were chosen."""
        chosen = {form for choice in self.choices for form in choice.forms.values()} - {DENSE}
        return " and ".join(sorted(chosen)) or "packed"


def bench(
    model: str | Path,
    *,
    batch: Sequence[int] = (1, 8),
    length: Sequence[int] = (128, 512),
    tokens: int = 32,
    rounds: int = 7,
    int8: bool = False,
    int4: bool = False,
    structured: bool = False,
    shrunk: str | Path | None = None,
    device: str = "auto",
    form: str = "auto",
    progress: Progress | None = None,
) -> Benchmark:
    """Time the sparse weights of a pruned model, against the same weights dense.

    Both variants compute in bfloat16, and in each round they take turns, so that what disturbs the machine disturbs
    them alike. One round runs all linears of the model, role by role: weights come from where they come from when
    text is generated. In memory there are the model, and its pruned linears twice. On a GPU, linears by themselves,
    prefill and decoding run in CUDA graphs, dense and sparse alike, so that weights are compared and not Python.

    Args:
        model: a pruned model, packed or not: a folder, a hub name, or a ``.gguf`` file; with ``int8`` or ``int4`` any.
        batch: numbers of sequences at a time.
        length: tokens of a sequence before the first that is generated.
        tokens: decode so many in each round, end to end.
        rounds: take every time so often, after one round that does not count.
        int8: round the weights to int8, on a CPU.
        int4: round them to 4 bits, on a CPU.
        structured: time a dense model of half the width as well, end to end.
        shrunk: the same of a model that :func:`secateur.shrink` made of this one; ``model`` may be dense then.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` …
        form: on a GPU, the form of pruned linears: ``auto`` (the fastest), ``dense``, ``2:4`` or ``packed``.
        progress: is told how far it is.

    Raises:
        InputError: when something given cannot be used, or the model has no linears that run sparse on the device.
    """
    if not batch or not length or min(*batch, *length, tokens) < 1:
        raise InputError("batch, length and tokens are numbers from 1 on")
    if rounds < 2:
        raise InputError(f"{rounds} rounds show no spread: take at least 2")
    if structured and shrunk is not None:
        raise InputError("--structured times a random model of half the width, and --shrunk a model of yours: give one")
    chosen = choose_device(device)
    bits = bits_of(int8, int4)
    check_device(chosen, bits)
    progress = progress or Progress()
    with progress, local_folder(str(model)) as folder:
        source = Source(folder)
        longest, limit = max(length) + tokens, context_of(source.config)
        if limit and longest > limit:
            raise InputError(f"{model} takes {limit} tokens, and {max(length)} + {tokens} are more")
        loaded = load(folder, torch.bfloat16, chosen, form)
        skeleton = source.skeleton(torch.bfloat16)
        pairs, left = pairs_of(loaded, blocks_of(skeleton, family_of(skeleton)), chosen, bits)
        if pairs or shrunk is None:
            check_sparse(pairs, left, loaded.choices, chosen, str(model))
        narrow = half_width_model(source.config, torch.bfloat16, chosen) if structured else None
        if shrunk is not None:
            narrow = shrunk_model(shrunk, source.config, chosen)
        sequences = [(b, n) for b in batch for n in length]
        workloads = [Workload("decode", b) for b in batch] + [Workload("prefill", b, n) for b, n in sequences]
        work = sum(workload.tokens for workload in workloads) + sum(b * (n + tokens) for b, n in sequences)
        progress.start("bench", work * (rounds + 1))
        timing = Timing(rounds, tokens, chosen, progress)
        with torch.inference_mode():
            modules = [row for workload in workloads if pairs for row in time_modules(pairs, workload, timing)]
            whole = [time_model(loaded, pairs, narrow, b, n, timing) for b, n in sequences]
    return Benchmark(
        model=str(model),
        values=" and ".join(sorted({pair.values for pair in pairs})),
        linears=len(pairs),
        left_dense=left,
        dense_bytes=sum(pair.dense.weight.nbytes for pair in pairs),
        packed_bytes=sum(pair.sparse_bytes for pair in pairs),
        kernels="CUDA" if loaded.choices else KERNELS[0].name,
        choices=list(loaded.choices),
        graph=all(times.graph for times in whole),
        prefill_graph=all(times.prefill_graph for times in whole),
        machine=this_machine(chosen),
        rounds=rounds,
        tokens=tokens,
        modules=modules,
        end_to_end=sorted((row for x in whole for row in x.sparse), key=lambda row: row.workload.phase),
        structured=sorted((row for x in whole for row in x.structured), key=lambda row: row.workload.phase),
        shrunk=None if shrunk is None else str(shrunk),
    )
