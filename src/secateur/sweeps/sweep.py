"""A sweep: every row of a grid, made and measured, once."""

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from secateur import __version__
from secateur.data import SELF, check_choice, local_file, parts_of
from secateur.devices import free_memory
from secateur.digests import digest, file_digest
from secateur.errors import InputError, Notice, install
from secateur.options import Options
from secateur.progress import Progress
from secateur.sweeps.chains import as_data
from secateur.sweeps.executors import Executor, on_ray, processes
from secateur.sweeps.folder import Folder, claimed, identifier
from secateur.sweeps.grid import Grid, Protocol, Row
from secateur.sweeps.results import Entry, Results
from secateur.sweeps.subjects import Subject
from secateur.sweeps.variants import Skipped, Variant, check_possible
from secateur.sweeps.work import Job, Outcome, Stage, decode_outcome, encode

# What is measured, and how: a row of another number is another row.
PROTOCOL = 1


def sweep(
    grid: Grid | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    keep_models: bool = False,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Results:
    """Make and measure every row of ``grid``; those that are finished in ``out`` are taken from there.

    All dense models are measured first: the rows of one that cannot be are not begun. A row that fails ends nothing,
    and is tried again the next time.

    Args:
        grid: the file, its content as plain data, or what was made of it; see :mod:`secateur.sweeps.grid`.
        out: a folder for this sweep and others that may have rows in common with it.
        jobs: rows at once on this machine; by default one for each GPU, or one. Fewer where memory is short.
        ray: instead, the address of a Ray cluster, ``auto`` or ``local``, all of whose machines see ``out``.
        keep_models: leave the models of rows in ``out/models``; by default they go when no row needs them.
        progress: is told how far it is.
        executor: what computes rows instead of all that.

    Returns:
        all rows and their means over seeds, which are also in ``out`` as ``results.json``, ``.csv``, ``.md``, ``.tex``.

    Raises:
        InputError: when something in the grid cannot be used, before any long work.
    """
    if not isinstance(grid, Grid):
        grid = Grid.from_dict(grid) if isinstance(grid, Mapping) else Grid.load(grid)
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {jobs}")
    if jobs is not None and ray is not None:
        raise InputError("--jobs is for this machine: a Ray cluster runs as many rows as fit")
    cluster = _ray() if ray is not None else None
    texts = _texts(grid)
    subjects = {label: Subject.find(label, name) for label, name in grid.models.items()}
    rows, skipped = _rows(grid, subjects.values())
    identities = {row: _identity(subjects[row.model], row, grid, texts) for row in rows}
    progress = progress or Progress()
    with progress, claimed(Path(out).absolute()) as folder, ExitStack() as stack:
        ledger = _Ledger(grid, folder, identities, skipped, keep_models)
        waiting = ledger.waiting
        if waiting and executor is None:
            need = max(subjects[row.model].memory(row.steps) for row in waiting)
            if cluster is None:
                number = min(_at_once(grid, jobs, need), len(waiting))
                executor = processes(_environments(grid, number), [folder.lock])
            else:
                gpus = int(_computes_on_gpus(grid) and torch.cuda.is_available())
                executor = on_ray(cluster, ray or "", memory=need, gpus=gpus)
        models = {label: subjects[label].folder(stack, folder.path) for label in {row.model for row in waiting}}
        progress.start("sweep", max(1, len(waiting)), "rows")
        try:
            for dense in (True, False):
                todo = [row for row in ledger.waiting if (not row.steps) == dense]
                documents = [encode(ledger.job(row, models[row.model])) for row in todo]
                if executor and todo:
                    with closing(executor(documents)) as answers:
                        for place, outcome in answers:
                            ledger.keep(todo[place], outcome)
                            progress.at(str(todo[place]))
                            progress.advance(1)
                ledger.fail_what_is_not_worth_it()
        except BaseException as error:
            error.add_note(ledger.remains())
            raise
        return ledger.write()


class _Ledger:
    """Which rows there are, and which are finished."""

    def __init__(
        self,
        grid: Grid,
        folder: Folder,
        identities: Mapping[Row, Mapping[str, Any]],
        skipped: Sequence[Skipped],
        keep_models: bool,
    ) -> None:
        self._grid, self._folder, self._identities, self._skipped = grid, folder, identities, skipped
        self._keep_models = keep_models
        self._ids = {row: identifier(identity) for row, identity in identities.items()}
        # A model goes by what it is made of, so that it serves other rows as well, and one that was kept any protocol.
        self._made = {
            row: [identifier({**identity, "protocol": None, "steps": identity["steps"][:number]}) for number in places]
            for row, identity in identities.items()
            for places in [range(1, len(row.steps) + 1)]
        }
        self._outcomes = {
            id: found for row, id in self._ids.items() if self._has_model(row) and (found := folder.outcome(id))
        }

    def _has_model(self, row: Row) -> bool:
        """Whether what its steps make is there, if it is wanted."""
        return not self._keep_models or not row.steps or self._folder.model(self._made[row][-1]).exists()

    @property
    def waiting(self) -> list[Row]:
        """The rows of which nothing is known yet, once where several are one computation."""
        rows = {id: row for row, id in self._ids.items() if id not in self._outcomes}
        return list(rows.values())

    def job(self, row: Row, model: Path) -> Job:
        """What is to be done for a row of the model in the folder ``model``."""
        facts = self._folder.path / "steps"
        stages = [
            Stage(step, options, str(self._folder.model(id)), str(facts / f"{id}.json"))
            for id, one in zip(self._made[row], as_data(row.steps), strict=True)
            for step, options in one.items()
        ]
        return Job(
            name=str(row),
            model=str(model),
            stages=tuple(stages),
            protocol=self._grid.protocol,
            tokens=str(self._folder.path / "tokens"),
        )

    def keep(self, row: Row, outcome: str) -> None:
        """File what became of a row; first, when it ended well, the models go that no other row needs."""
        id = self._ids[row]
        if not decode_outcome(outcome).failure:
            if self._keep_models and row.steps:
                self._folder.keep_model(self._made[row][-1])
            for made in set(self._made[row]) - self._needed(id):
                shutil.rmtree(self._folder.model(made), ignore_errors=True)
        self._outcomes[id] = self._folder.keep(id, self._identities[row], outcome)
        self.write()

    def _needed(self, without: str) -> set[str]:
        """The models from which rows are still to be made, of the ID ``without`` apart, and those that are kept."""
        others = [made for row, made in self._made.items() if self._ids[row] not in {without, *self._outcomes}]
        return {id for made in others for id in made} | self._folder.kept_models()

    def fail_what_is_not_worth_it(self) -> None:
        """The rows of models that could not be measured as they are have failed, too."""
        failures = {row.model: self._outcomes[id].failure for row, id in self._ids.items() if not row.steps}
        for row in self.waiting:
            if failure := failures[row.model]:
                self._outcomes[self._ids[row]] = Outcome(f"not begun, since the dense model failed: {failure}")

    def write(self) -> Results:
        """Write what is known so far, in every form."""
        entries = [
            Entry(row, id, self._outcomes[id], self._model(row))
            for row, id in self._ids.items()
            if id in self._outcomes
        ]
        results = Results.of(self._grid, entries, self._skipped)
        self._folder.write(results)
        return results

    def _model(self, row: Row) -> Path | None:
        return self._folder.model(self._made[row][-1]) if self._keep_models and row.steps else None

    def remains(self) -> str:
        """What a user should know when the work is stopped."""
        ids = set(self._ids.values())
        done = sum(not self._outcomes[id].failure for id in ids & self._outcomes.keys())
        where = self._folder.path
        return f"{done} of {len(ids)} rows are finished in {where}; the same command goes on with the others"


def _rows(grid: Grid, subjects: Iterable[Subject]) -> tuple[list[Row], list[Skipped]]:
    """The rows of all models, and the combinations that make no sense, for all models or for one.

    Raises:
        InputError: when a model cannot be measured, or a label of the grid makes sense for none of them.
    """
    rows: list[Row] = []
    possible: list[Variant] = []
    skipped: list[Skipped] = []
    for subject in subjects:
        subject.check(grid.protocol)
        rows += grid.rows(subject.label, grid.dense)
        for variant in grid.variants:
            try:
                for chain in variant.chains:
                    subject.check_steps(chain)
            except InputError as error:
                skipped.append(Skipped(subject.label, variant.labels, str(error)))
            else:
                possible.append(variant)
                rows += grid.rows(subject.label, variant)
    check_possible(grid.axes, possible, skipped)
    return rows, [*grid.skipped, *skipped]


def _identity(subject: Subject, row: Row, grid: Grid, texts: Mapping[str, str | None]) -> dict[str, Any]:
    """All that what a row comes to depends on, as plain data."""
    protocol, steps = grid.protocol, as_data(row.steps)
    for plain in (options for step in steps for options in step.values()):
        plain.pop("memory", None)  # under any bound the bytes are the same
    read = [texts[step.calibration] if step.needs_inputs else None for step in row.steps]
    return {
        "model": subject.files,
        "steps": [step | {"calibration": text} for step, text in zip(steps, read, strict=True)],
        "protocol": asdict(protocol) | {"version": PROTOCOL, "files": [texts[source] for source in _read(protocol)]},
        "secateur": __version__,
    }


def _texts(grid: Grid) -> dict[str, str | None]:
    """SHA-256 of each text and file of tasks, by name; None of what comes from the hub, or of the model itself.

    Raises:
        InputError: when one is not there, as far as that can be told without the hub, or a column or split is named
            that none has.
    """
    check_choice(grid.protocol.data, grid.protocol.column, grid.protocol.split)
    for step in _steps(grid):
        if step.needs_inputs:
            check_choice([part.source for part in parts_of(step.calibration)], step.column, step.split)
    calibrations = {step.calibration for step in _steps(grid) if step.needs_inputs}
    files = {source: local_file(source) for source in grid.protocol.data}
    if grid.protocol.task_files:
        if not Path(grid.protocol.task_files).is_dir():
            raise InputError(f"there is no folder {grid.protocol.task_files} (task_files)")
        files |= {name: Path(name) for name in _read(grid.protocol) if name not in files}
    found = {name: file_digest(path) if path else None for name, path in files.items()}
    return found | {calibration: _calibration_digest(calibration) for calibration in calibrations}


def _calibration_digest(calibration: str) -> str | None:
    """SHA-256 of the local file that it names, or of those digests if it is a mixture; None where it names none."""
    sources = [part.source for part in parts_of(calibration)]
    paths = [None if source == SELF else local_file(source) for source in sources]
    digests = [file_digest(path) if path else "" for path in paths]
    return digest(" ".join(digests)) if len(digests) > 1 else digests[0] or None


def _read(protocol: Protocol) -> list[str]:
    """The texts and the files of tasks."""
    tasks = Path(protocol.task_files).iterdir() if protocol.task_files else ()
    return [*protocol.data, *sorted(str(path) for path in tasks if path.is_file())]


def _at_once(grid: Grid, jobs: int | None, need: int) -> int:
    """How many rows this machine computes at once, of which each takes about ``need`` bytes."""
    on_gpus = _computes_on_gpus(grid) and torch.cuda.is_available()
    number = jobs or (torch.cuda.device_count() if on_gpus else 1)
    free = free_memory(torch.device("cpu"))
    fit = max(1, free // need)
    if not on_gpus and number > fit:
        warnings.warn(
            f"{fit} rows at once instead of {number}: each may take {need / 1e9:.1f} GB, and {free / 1e9:.1f} are free",
            Notice,
            stacklevel=3,
        )
        number = fit
    return number


def _environments(grid: Grid, number: int) -> list[dict[str, str]]:
    """The environments of so many processes, among which threads and GPUs are shared out."""
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // number))}
    gpus = torch.cuda.device_count() if _computes_on_gpus(grid) else 0
    if gpus < 2:
        return [threads] * number
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    return [threads | {"CUDA_VISIBLE_DEVICES": visible.split(",")[place % gpus]} for place in range(number)]


def _computes_on_gpus(grid: Grid) -> bool:
    """Whether all rows take whichever GPU they are given."""
    devices = {grid.protocol.device, *(step.device for step in _steps(grid))}
    return devices <= {"auto", "cuda"}


def _steps(grid: Grid) -> Iterator[Options]:
    """All steps of all rows."""
    return (step for variant in grid.variants for chain in variant.chains for step in chain)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(f"--ray needs the package ray: {install('ray')}") from None
    return ray
