"""One row: do its steps and measure what comes out. It goes in and comes out as a JSON document, so that any process
can do it.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from secateur.checkpoint import changed_files, manifest_of
from secateur.checkpoint.durable import lock, replacing
from secateur.data.tokens import tokens_kept_in
from secateur.errors import InputError, reason
from secateur.evaluation.evaluate import Evaluation, evaluate
from secateur.files import read_object
from secateur.pruning.folder import prune
from secateur.quantizing import quantize
from secateur.shrinking.folder import shrink
from secateur.sweeps.chains import STEPS
from secateur.sweeps.facts import FACTS, Facts, Pruning, Quantization, Shrinking
from secateur.sweeps.grid import Protocol
from secateur.sweeps.variants import DENSE

# Seconds between two looks at whether another process is through with a step that both need.
PATIENCE = 1.0


@dataclass(frozen=True)
class Stage:
    """A step of a row, and where what it comes to lies: rows that have their first steps in common share them.

    Attributes:
        step: the name of its command.
        options: its options as plain data.
        out: the folder for the model. One that is there is finished.
        facts: the file for what the step did, which stays when the model goes.
    """

    step: str
    options: dict[str, Any]
    out: str
    facts: str


@dataclass(frozen=True)
class Job:
    """A row to be computed.

    Attributes:
        name: what a person calls it.
        model: the folder of the dense model.
        stages: what is done to it, one after the other; none to measure it as it is.
        protocol: how what comes out is measured.
        tokens: a folder for the token ids of texts, which rows have in common.
    """

    name: str
    model: str
    stages: tuple[Stage, ...]
    protocol: Protocol
    tokens: str


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        failure: why there is nothing, in a few words; None if there is.
        shrinking: what structured pruning did; None if it is not among the steps, as with the others.
        pruning: what pruning did.
        quantization: what quantizing did.
        evaluation: what the model is worth.
        seconds: what all of it took, in the process that finished it; without steps that were finished before.
    """

    failure: str | None = None
    shrinking: Shrinking | None = None
    pruning: Pruning | None = None
    quantization: Quantization | None = None
    evaluation: Evaluation | None = None
    seconds: float = 0


def encode(value: Job | Outcome) -> str:
    """As one line of JSON, infinities included, for which msgspec has no sign."""
    return json.dumps(asdict(value))


def decode_outcome(document: str) -> Outcome:
    """What :func:`encode` wrote."""
    return msgspec.convert(json.loads(document), Outcome)


def work(document: str) -> str:
    """Do the :class:`Job` that ``document`` describes; the :class:`Outcome`, which may be that it failed."""
    job = msgspec.convert(json.loads(document), Job)
    try:
        return encode(_do(job))
    except InputError as error:
        return encode(Outcome(str(error)))
    except Exception as error:  # whatever it is, the other rows go on
        sys.stderr.write(f"{job.name} failed:\n{''.join(traceback.format_exception(error))}")
        return encode(Outcome(f"{type(error).__name__}: {reason(error)}"))


def _do(job: Job) -> Outcome:
    began, protocol, stages = time.perf_counter(), job.protocol, job.stages
    with tokens_kept_in(Path(job.tokens)):
        finished = max((place for place, stage in enumerate(stages, 1) if Path(stage.out).exists()), default=0)
        if finished:
            _check_kept(Path(stages[finished - 1].out))
        facts = {stage.step: _facts(stage) for stage in stages[:finished]}
        for place in range(finished, len(stages)):
            facts[stages[place].step] = _done(stages[place], stages[place - 1].out if place else job.model)
        (evaluation,) = evaluate(
            stages[-1].out if stages else job.model,
            protocol.data or None,
            column=protocol.column,
            split=protocol.split,
            window=protocol.window,
            stride=protocol.stride,
            limit=protocol.limit,
            bos=protocol.bos,
            tasks=protocol.tasks,
            task_files=protocol.task_files,
            task_limit=protocol.task_limit,
            shots=protocol.shots,
            device=protocol.device,
            dtype=protocol.dtype,
            dense=job.model if stages else None,
        )
    seconds = round(time.perf_counter() - began, 3)
    method = " + ".join(fact.method for fact in facts.values()) or DENSE  # labels may change, and folders do
    return Outcome(
        shrinking=_of(Shrinking, facts),
        pruning=_of(Pruning, facts),
        quantization=_of(Quantization, facts),
        evaluation=replace(evaluation, model=method),
        seconds=seconds,
    )


def _done(stage: Stage, model: str) -> Facts:
    """Do a step to the folder ``model``, unless another row has done it meanwhile; what it did."""
    out = Path(stage.out)
    with _alone(Path(stage.facts).with_suffix(".lock")):
        if not out.exists():
            _do_step(stage, model)
        return _facts(stage)


def _do_step(stage: Stage, model: str) -> None:
    options: Any = STEPS[stage.step].from_dict(stage.options, stage.step)
    if stage.step == "shrink":
        shrink(model, stage.out, options)  # which cannot be resumed, and is done again
    else:
        resumed: dict[str, Callable[..., Any]] = {"prune": prune, "quantize": quantize}
        resumed[stage.step](model, stage.out, options, resume=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process has the lock ``path``, and have it while the context is open."""
    while (held := lock(path)) is None:
        time.sleep(PATIENCE)
    with held:
        try:
            yield
        finally:
            path.unlink()


def _facts(stage: Stage) -> Facts:
    """What a finished step did, as it was filed, or else as the manifest of its model says, which is filed then."""
    path, kind, model = Path(stage.facts), FACTS[stage.step], Path(stage.out)
    if not path.exists():
        if not model.exists():
            raise InputError(f"{path} is gone, and with it what was done: delete {model.parent}, and it is done again")
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            file.write_text(json.dumps(asdict(kind.of(manifest_of(model)))), "utf-8")
    try:
        return msgspec.convert(read_object(path), kind)
    except (InputError, msgspec.ValidationError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it and {model}, and the step is done again") from None


def _of(kind: type[Any], facts: dict[str, Facts]) -> Any:
    return next((fact for fact in facts.values() if isinstance(fact, kind)), None)


def _check_kept(folder: Path) -> None:
    """Raise :class:`InputError` when a model that was kept is not what was written there."""
    manifest = manifest_of(folder)
    if not manifest or changed_files(folder, manifest["files"], weights=True):
        raise InputError(f"{folder} is no longer the model that was kept there: delete it, and the row is done again")
