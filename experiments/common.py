"""What the experiments share: a setting from the command line, what is filed of it, and how it is shown.

An experiment is a module with ``MODELS``, the hub names that it has by default, and ``run(setting)``, which gives a
:class:`Report`. Whatever takes long is a row of a sweep or a measurement that is filed in ``--out``, so that an
experiment that was stopped goes on, and experiments that have rows in common compute them once.
"""

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import secateur
from secateur.checkpoint import check_there, local_folder
from secateur.checkpoint.durable import replacing
from secateur.console import terminal
from secateur.demo import find_model
from secateur.digests import digest, file_digest
from secateur.errors import InputError
from secateur.evaluation.task_files import read_tasks
from secateur.recipe import Recipe
from secateur.sweeps.results import Results
from secateur.sweeps.tables import Table, latex, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LLAMA = tuple(f"huggyllama/llama-{size}" for size in ("7b", "13b", "30b", "65b"))
LLAMA2 = tuple(f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b"))
OPT = ("facebook/opt-1.3b",)
LLAMA3 = ("meta-llama/Meta-Llama-3-8B",)
SMALL = "SmolLM2-135M-Instruct"
# The corpora of the literature, and what stands for all of them where neither a hub nor copies are there.
CORPORA, DEMO = ("wikitext2", "c4", "ptb"), "demo"
TASKS = "tasks"  # the folder of task files beside local texts


@dataclass(frozen=True)
class Texts:
    """Where the corpora of the literature are.

    Attributes:
        folder: copies of their rows, as ``c4-train.jsonl`` or ``wikitext2-test.txt``, and a folder ``tasks`` of task
            files; None for the hub.
        demo: without copies, use the demo's texts for all of them.
    """

    folder: Path | None
    demo: bool

    def calibration(self, corpus: str) -> str | None:
        """What a recipe is to calibrate on for ``corpus``; None if that is not here."""
        return self._source(corpus, "train")

    def evaluation(self, *corpora: str) -> list[str]:
        """What is to be evaluated on for those of ``corpora`` that are here."""
        return list(dict.fromkeys(source for name in corpora if (source := self._source(name, "test"))))

    def missing(self, *corpora: str) -> list[str]:
        """Those of ``corpora`` that cannot be evaluated on."""
        return [name for name in corpora if name not in {text.partition(":")[0] for text in self.evaluation(name)}]

    @property
    def tasks(self) -> Path | None:
        """A folder of task files."""
        folder = self.folder / TASKS if self.folder else None
        return folder if folder and folder.is_dir() else None

    def _source(self, corpus: str, split: str) -> str | None:
        if self.folder is None:
            return DEMO if self.demo else corpus
        found = sorted(self.folder.glob(f"{corpus}-{split}.*"))
        return f"{corpus}:{found[0]}" if found else None


@dataclass(frozen=True)
class Setting:
    """What an experiment is run on.

    Attributes:
        models: what a user calls them, by label.
        texts: where texts are.
        recipe: what all recipes have in common: on how many samples of how many tokens they are calibrated.
        protocol: how models are measured: window, limit, dtype, task_limit.
        seeds: of the draw of the samples.
        out: the folder where everything is filed.
        jobs: rows at once.
        small: whether it is to take minutes on two cores.
        command: what repeats it, without the name of the experiment.
    """

    models: Mapping[str, str]
    texts: Texts
    recipe: Mapping[str, Any]
    protocol: Mapping[str, Any]
    seeds: tuple[int, ...]
    out: Path
    jobs: int | None
    small: bool
    command: str = ""

    @property
    def calibration(self) -> str:
        """What recipes are calibrated on: C4, as in the paper, or else what is there."""
        found = [source for name in ("c4", "wikitext2", "ptb") if (source := self.texts.calibration(name))]
        if not found:
            raise InputError(f"{self.texts.folder} has no text to calibrate on, such as c4-train.jsonl (--local)")
        return found[0]

    def tasks(self, *groups: Sequence[str]) -> tuple[list[str], list[str]]:
        """Those of the tasks of ``groups`` whose questions are here, and those of the first group that are not.

        From the hub come the tasks of the first group; beside local texts, those whose questions lie there.
        """
        if self.texts.folder is None:
            return ([], list(groups[0])) if self.texts.demo else (list(groups[0]), [])
        there = set(read_tasks(self.texts.tasks)) if self.texts.tasks else set()
        return [name for group in groups for name in group if name in there], [x for x in groups[0] if x not in there]

    def options(self, **options: Any) -> dict[str, Any]:
        """A recipe's options, calibrated as the setting says unless they say otherwise."""
        return {"calibration": self.calibration, **self.recipe, **options}

    def sweep(
        self,
        recipes: Mapping[str, Any] | None = None,
        *,
        base: Mapping[str, Any] | None = None,
        axes: Mapping[str, Any] | None = None,
        data: Sequence[str] = ("wikitext2", "c4"),
        tasks: Sequence[str] = (),
        baseline: Mapping[str, str] | None = None,
        seeds: Sequence[int] | None = None,
        keep_models: bool = False,
    ) -> Results:
        """Prune and measure every combination, in the one folder that all experiments share.

        Args:
            recipes: options by label.
            base: options that all have in common.
            axes: further axes of the grid.
            data: corpora to measure on, as far as they are here.
            tasks: names of tasks.
            baseline: against which the prevented share of the loss is measured.
            seeds: instead of the setting's.
            keep_models: leave the pruned models where the entries say.

        Raises:
            InputError: when a row fails.
        """
        evaluate = {"data": self.texts.evaluation(*data), "tasks": list(tasks), **self.protocol}
        if tasks and self.texts.tasks:
            evaluate["task_files"] = str(self.texts.tasks)
        grid: dict[str, Any] = {
            "models": dict(self.models),
            "base": self.options(**(base or {})),
            "grid": dict(axes or {}),
            "seeds": list(self.seeds if seeds is None else seeds),
            "evaluate": evaluate,
            "baseline": dict(baseline or {}),
        }
        if recipes:
            grid["recipes"] = dict(recipes)
        results = secateur.sweep(
            grid, self.out / "sweep", jobs=self.jobs, keep_models=keep_models, progress=terminal.progress()
        )
        if results.failed:
            raise InputError(f"{results.failed[0].row}: {results.failed[0].outcome.failure}")
        return results

    def measured(self, model: str | None, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives, as plain data: once for each model and key, and from a file ever after.

        Args:
            model: the label of the model that it depends on; None if there is none.
            key: all else that it depends on, as plain data.
        """
        identity = {"model": model and _identity(self.models[model]), "key": key, "secateur": secateur.__version__}
        path = self.out / "measured" / f"{digest(json.dumps(identity, sort_keys=True))[:24]}.json"
        if path.exists():
            return json.loads(path.read_text("utf-8"))["found"]
        found = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as writing:
            writing.write_text(json.dumps({"identity": identity, "found": found}, indent=1), "utf-8")
        return found

    @contextmanager
    def folder(self, model: str) -> Iterator[Path]:
        """The folder of a model, by its label."""
        with local_folder(self.models[model]) as folder:
            yield folder

    def prune(self, model: str, folder: Path, **options: Any) -> Path:
        """A pruned model in a folder of ``out``, made unless it is there already; where it is."""
        recipe = Recipe.from_dict(self.options(**options))
        key = {"recipe": recipe.to_dict()}
        return self.made(model, key, lambda out: secateur.prune(folder, out, recipe, resume=True))

    def made(self, model: str, key: Mapping[str, Any], make: Callable[[Path], object]) -> Path:
        """The folder of ``out`` that ``make`` writes, all or nothing: once for each model, by its label, and key."""
        identity = {"model": _identity(self.models[model]), **key}
        out = self.out / "models" / digest(json.dumps(identity, sort_keys=True))[:24]
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            make(out)
        return out


def _identity(model: str) -> dict[str, str]:
    """Which model a user means: digests of its weights; its name if it is the hub's."""
    path = Path(model)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {file.name: file_digest(file) for file in files} or {"name": model}


@dataclass(frozen=True)
class Report:
    """What an experiment found.

    Attributes:
        tables: with what stands above each.
        notes: paragraphs of Markdown after the tables.
        plots: by name.
        data: all of it, as plain data.
    """

    tables: Sequence[tuple[str, Table]]
    notes: Sequence[str] = ()
    plots: Mapping[str, "Figure"] = field(default_factory=dict)
    data: Any = None

    def write(self, out: Path, name: str, command: str) -> str:
        """Write it as ``NAME.json``, ``.md``, ``.tex`` and its plots as SVG; the Markdown."""
        out.mkdir(parents=True, exist_ok=True)
        parts = [
            part for caption, table in self.tables for part in (f"{caption}\n" if caption else "", markdown(table))
        ]
        parts += [f"![{_alt(plot)}]({name}-{plot}.svg)\n" for plot in self.plots]
        parts += [f"{note}\n" for note in self.notes]
        text = "\n".join(part for part in parts if part)
        document = {"experiment": name, "command": command, "notes": list(self.notes), "data": self.data}
        files = {
            f"{name}.json": json.dumps(document, indent=1) + "\n",
            f"{name}.md": text,
            f"{name}.tex": "\n".join(latex(table) for _, table in self.tables),
        }
        for file, content in files.items():
            with replacing(out / file) as path:
                path.write_text(content, "utf-8")
        for plot, figure in self.plots.items():
            save(figure, out / f"{name}-{plot}.svg")
        return text


def _alt(plot: str) -> str:
    return plot.replace("-", " ")


def save(figure: "Figure", file: Path) -> None:
    """Write a plot as SVG, the same bytes from the same figures."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "secateur"}), replacing(file) as path:
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def absent(setting: Setting, *corpora: str) -> list[str]:
    """A note on texts that are not here, with what to do about it; none if all are."""
    if not (missing := setting.texts.missing(*corpora)):
        return []
    files = " and ".join(f"`{name}-test.txt`" for name in missing)
    return [f"Not here: {', '.join(missing)}. `--local FOLDER` with {files} in the folder fills the column."]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments of an experiment."""
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="*", help="hub names, folders or .gguf files; by default the paper's")
    arguments.add_argument("--small", action="store_true", help=f"{SMALL} from its wheel, minutes on two cores")
    arguments.add_argument(
        "--local", type=Path, help="a folder with copies of texts: c4-train.jsonl, wikitext2-test.txt"
    )
    arguments.add_argument("--out", type=Path, default=Path("results"), help="where everything is filed")
    arguments.add_argument("--seeds", type=int, help="so many draws of the samples")
    arguments.add_argument("--samples", type=int)
    arguments.add_argument("--length", type=int)
    arguments.add_argument("--window", type=int)
    arguments.add_argument("--limit", type=int, help="windows of each text")
    arguments.add_argument("--task-limit", type=int, help="items of each task")
    arguments.add_argument("--dtype", help="precision to measure in")
    arguments.add_argument("--jobs", type=int, help="rows at once")
    return arguments


def setting_of(args: argparse.Namespace, models: Sequence[str]) -> Setting:
    """The setting that the arguments say: what they leave open is the paper's, or small.

    Raises:
        InputError: when a model or the folder of texts is not there.
    """
    names = args.models or ([str(find_model())] if args.small else list(models))
    for name in names:
        check_there(name)
    if args.local and not args.local.is_dir():
        raise InputError(f"there is no folder {args.local} (--local)")
    small = {"samples": 8, "length": 256, "window": 512, "limit": 4, "task_limit": 16, "dtype": "auto"}
    paper = {"samples": 128, "length": 2048, "window": None, "limit": None, "task_limit": None, "dtype": "auto"}
    chosen = {
        name: given if (given := getattr(args, name)) is not None else value
        for name, value in (small if args.small else paper).items()
    }
    given = " ".join(
        word
        for name, value in vars(args).items()
        if name not in ("models", "small", "local", "out", "jobs", "page") and value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    )
    return Setting(
        models={_label(name): name for name in names},
        texts=Texts(args.local, demo=args.small),
        recipe={name: chosen.pop(name) for name in ("samples", "length")},
        protocol=chosen,
        seeds=tuple(range(args.seeds or 1)),
        out=args.out,
        jobs=args.jobs,
        small=args.small,
        command=" ".join(
            [*(Path(name).name for name in args.models)]
            + ["--small"] * args.small
            + ["--local FOLDER"] * bool(args.local)
            + [given] * bool(given)
        ),
    )


def _label(name: str) -> str:
    """What tables call a model."""
    path = Path(name)
    return path.name if path.suffix != ".gguf" else path.stem.split(".")[0]


def execute(name: str, setting: Setting) -> str:
    """Run the experiment ``name`` and write its report beside the others; the report as Markdown."""
    report: Report = importlib.import_module(f"experiments.{name}").run(setting)
    return report.write(setting.out, name, f"python -m experiments.{name} {setting.command}".strip())


def plain_warning(message: object, *_: object) -> None:
    """A warning as a line for people."""
    sys.stderr.write(f"note: {message}\n")


def main(doc: str | None, models: Sequence[str], experiment: str) -> None:
    """The command line of an experiment: ``main(__doc__, MODELS, __file__)``."""
    warnings.showwarning = plain_warning  # type: ignore[assignment]
    try:
        text = execute(Path(experiment).stem, setting_of(parser(doc).parse_args(), models))
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    sys.stdout.write(text)
