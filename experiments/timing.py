"""What the experiments on time share: works that take turns, and benchmarks filed with the machine that they ran on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

import secateur
from experiments.common import Setting
from secateur.benchmark.machine import Machine, this_machine
from secateur.benchmark.measuring import Benchmark
from secateur.benchmark.timing import Spread, stopwatch
from secateur.devices import choose_device
from secateur.runtime.decoding import Continuation
from secateur.shrinkage import Shrinkage

# Every work is timed in so many rounds; one that has taken so many seconds is left out of the rounds that remain.
ROUNDS, ENOUGH = 5, 10.0
# Generating, one by one after a short prompt.
PROMPT, TOKENS = 64, 16


def machine() -> Machine:
    """What experiments run on here."""
    return this_machine(choose_device("auto"))


def shared(setting: Setting) -> str:
    """What is to be said of seconds of rows that did not have the machine for themselves."""
    return f", of which {setting.jobs} rows at once had a share each" if (setting.jobs or 1) > 1 else ""


def no_gpu() -> list[str]:
    """A note on what a GPU would give; none where there is one."""
    note = "On a GPU the same command gives 2:4 as it runs there; [speed.md](../speed.md) has what an H100 gave."
    return [] if machine().gpu else [note]


def in_turns(works: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each of several works, which take turns, in all rounds or until it has taken enough of them."""
    seconds = stopwatch(choose_device("auto"))
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            if sum(times[name]) < ENOUGH:
                times[name].append(seconds(work))
    return times


def benched(
    setting: Setting,
    model: str,
    recipe: Mapping[str, Any],
    *,
    pruned: Path | None = None,
    shrinkage: Mapping[str, Any] | None = None,
    **work: Any,
) -> Benchmark:
    """What :func:`secateur.bench` finds, filed for the machine that it ran on.

    Args:
        setting: the setting.
        model: its label.
        recipe: options by which it is pruned.
        pruned: where the pruned model is; by default it is made.
        shrinkage: options by which the smaller model beside it is made, if there is to be one.
        work: what is timed, as ``bench`` takes it.
    """

    def compute() -> Any:
        with setting.folder(model) as folder:
            there = pruned or setting.prune(model, folder, **recipe)
            smaller = None
            if shrinkage:
                options = Shrinkage(**setting.options(**shrinkage))
                make = partial(secateur.shrink, folder, options=options)
                smaller = setting.made(model, {"shrinkage": asdict(options)}, make)
            found = secateur.bench(there, shrunk=smaller, rounds=ROUNDS, **work)
        return msgspec.to_builtins(found, str_keys=True)

    models = [setting.options(**recipe), shrinkage and setting.options(**shrinkage)]
    key = {"bench": work, "rounds": ROUNDS, "models": models, "machine": str(machine())}
    return msgspec.convert(setting.measured(model, key, compute), Benchmark, strict=False)


def speeds(folders: Sequence[Path | str]) -> list[Spread]:
    """Tokens per second that each model generates one by one after a short prompt, in rounds in which they take turns.

    One more round, the first, does not count.
    """
    device = choose_device("auto")
    loaded = [secateur.load(folder, torch.bfloat16, device) for folder in folders]
    words = torch.randint(200, (1, PROMPT), generator=torch.Generator().manual_seed(0)).to(device)
    found: list[list[float]] = [[] for _ in folders]
    seconds = stopwatch(device)
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for model, rates in zip(loaded, found, strict=True):
                run = Continuation(model, words, TOKENS + 1)
                run.prefill()
                run.prepare()
                rates.append(TOKENS / seconds(partial(run.steps, TOKENS)))
    return [Spread.of(rates[1:]) for rates in found]


def spread_text(spread: Spread, digits: int = 2) -> str:
    """The median, and quartiles in brackets."""
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}–{spread.high:,.{digits}f})"
