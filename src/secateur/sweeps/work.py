"""One row: prune, measure, delete. It goes in and comes out as a JSON document, so that any process can do it."""

import json
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from secateur.checkpoint import changed_files, manifest_of
from secateur.data.tokens import tokens_kept_in
from secateur.errors import InputError, reason
from secateur.evaluation.evaluate import Evaluation, evaluate
from secateur.pruning.folder import prune
from secateur.recipe import Recipe
from secateur.sweeps.grid import DENSE, Protocol


@dataclass(frozen=True)
class Job:
    """A row to be computed.

    Attributes:
        name: what a person calls it.
        model: the folder of the dense model.
        recipe: how it is pruned; None to measure it as it is.
        out: the folder for the pruned model. One that is there is this row's already.
        keep: leave it there.
        protocol: how it is measured.
        tokens: a folder for the token ids of texts, which rows have in common.
    """

    name: str
    model: str
    recipe: Recipe | None
    out: str
    keep: bool
    protocol: Protocol
    tokens: str


@dataclass(frozen=True)
class Pruning:
    """What pruning did to a model, in short.

    Attributes:
        method: the recipe in a few words.
        sparsity: share of the weights of its pruned linears that are zero.
        retained: share of the score that is kept, the mean over linears.
        relative_error: of a linear's outputs on its calibration inputs, the mean over linears; None if there were none.
        steps: by step, on how many reader groups the guard kept it, and of how many.
        seconds: by stage.
        computed_in: the precision.
        versions: of what computed it.
    """

    method: str
    sparsity: float
    retained: float
    relative_error: float | None
    steps: dict[str, tuple[int, int]]
    seconds: dict[str, float]
    computed_in: str
    versions: dict[str, str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Pruning":
        """From the manifest of a pruned model."""
        layers, trials = manifest["layers"], manifest["guard"]
        errors = [layer["relative_error"] for layer in layers]
        kept = {step: [trial["kept"] for trial in trials if trial["step"] == step] for step in _steps(trials)}
        return cls(
            method=manifest["method"],
            sparsity=manifest["sparsity"],
            retained=fmean(layer["retained"] for layer in layers),
            relative_error=fmean(errors) if None not in errors else None,
            steps={step: (sum(found), len(found)) for step, found in kept.items()},
            seconds=manifest["seconds"],
            computed_in=manifest["computed_in"],
            versions={"secateur": manifest["secateur"], **manifest["versions"]},
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        failure: why there is nothing, in a few words; None if there is.
        pruning: what pruning did; None for the dense model.
        evaluation: what the model is worth.
        seconds: what all of it took, in the process that finished it.
    """

    failure: str | None = None
    pruning: Pruning | None = None
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
    began, protocol, out = time.perf_counter(), job.protocol, Path(job.out)
    pruned = None
    with tokens_kept_in(Path(job.tokens)):
        if job.recipe:
            manifest = _kept(out) if out.exists() else prune(job.model, out, job.recipe, resume=True)
            pruned = Pruning.of(manifest)
        (evaluation,) = evaluate(
            out if job.recipe else job.model,
            protocol.data or None,
            window=protocol.window,
            stride=protocol.stride,
            limit=protocol.limit,
            tasks=protocol.tasks,
            task_files=protocol.task_files,
            task_limit=protocol.task_limit,
            shots=protocol.shots,
            device=protocol.device,
            dtype=protocol.dtype,
        )
    if job.recipe and not job.keep:
        shutil.rmtree(out)
    seconds = round(time.perf_counter() - began, 3)
    method = pruned.method if pruned else DENSE  # labels may change, and folders do
    return Outcome(pruning=pruned, evaluation=replace(evaluation, model=method), seconds=seconds)


def _kept(folder: Path) -> dict[str, Any]:
    """The manifest of a model that was kept; raises :class:`InputError` when it is not what was written there."""
    manifest = manifest_of(folder)
    if not manifest or changed_files(folder, manifest["files"], weights=True):
        raise InputError(f"{folder} is no longer the model that was kept there: delete it, and the row is done again")
    return manifest


def _steps(trials: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(trial["step"] for trial in trials))
