"""The command line: a thin skin over the Python API.

Exit codes: 0 success, 1 a failed check, 2 bad input, 130 interrupted. Results go to standard output,
progress and errors to standard error.
"""

import dataclasses
import json as jsonlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter
from rich.table import Table
from transformers.utils import logging as transformers_logging

import secateur
from secateur import console, demo
from secateur.benchmark.plan import Plan
from secateur.benchmark.plot import check_plot, draw
from secateur.benchmark.running import Benchmark
from secateur.errors import InputError
from secateur.evaluate.comparison import document
from secateur.progress import Progress
from secateur.recipe import Recipe

FAILED_CHECK, BAD_INPUT, INTERRUPTED = 1, 2, 130

app = App(
    name="secateur",
    help="Prune large language models after training.",
    version=secateur.__version__,
    default_parameter=Parameter(negative_iterable=()),
)

Json = Annotated[bool, Parameter(help="Print the result as one JSON document instead of a table.", negative=())]
Quiet = Annotated[bool, Parameter(help="Draw no progress bars.", negative=())]
Force = Annotated[bool, Parameter(help="Replace a model folder that is already there.", negative=())]


def _progress(quiet: bool) -> Progress:
    return Progress() if quiet else console.TerminalProgress()


def _print_json(result: Any) -> None:
    sys.stdout.write(jsonlib.dumps(result, indent=2) + "\n")


@app.command
def prune(
    model: str,
    *,
    out: Path,
    options: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008 (frozen)
    recipe: str | None = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prune MODEL and write a plain Hugging Face folder that loads without Secateur.

    Parameters
    ----------
    model
        A hub name, a folder, or a .gguf file.
    out
        The folder to write.
    recipe
        paper, best, fast, or a YAML file with any of the options below; those given here win.
    """
    manifest = secateur.prune(model, out, options, force=force, progress=_progress(quiet))
    if json:
        _print_json(manifest)
    else:
        console.out.print(console.pruning_table(manifest))
        for note in console.pruning_notes(manifest):
            console.out.print(note, highlight=False)
        console.out.print(f"written to {out}", highlight=False)


@app.command(name="eval")
def evaluate(
    models: Annotated[tuple[str, ...], Parameter(consume_multiple=True)],
    /,
    *,
    data: list[str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    tasks: list[str] | None = None,
    task_files: Path | None = None,
    task_limit: int | None = None,
    shots: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure one or more models on the same texts and tasks, side by side: the dense one first.

    Every perplexity comes with its 95 % interval and its rise against the first model. The second model is the
    baseline A: of every later model B the table says which share of the baseline's rise it prevents,
    (P(A) - P(B)) / (P(A) - P(dense)), which is 0 for a model as bad as A and 1 for one as good as the dense.

    Parameters
    ----------
    models
        Hub names, folders or .gguf files.
    data
        wikitext2, ptb, c4 (or wikitext2:FILE, …), a .txt, .jsonl or .parquet file, a hub dataset, or demo; once for
        each text. By default wikitext2, or none if there are tasks.
    window
        Tokens per window; by default the model's context, at most 2048.
    stride
        Tokens from one window to the next; by default the window, so that none overlap.
    limit
        Use only so many windows of each text.
    tasks
        Names with commas between: tasks of lm-eval, tasks in --task-files, or ria for the five of the RIA paper.
    task_files
        A folder of task files for machines without a hub; by default all its tasks are run.
    task_limit
        Use only so many items of each task.
    shots
        Examples before each question; by default what the task says.
    device
        auto, cpu, cuda, …
    dtype
        auto, float32, bfloat16 or float16.
    """
    results = secateur.evaluate(
        models,
        data,
        window=window,
        stride=stride,
        limit=limit,
        tasks=[name.strip() for names in tasks or [] for name in names.split(",") if name.strip()],
        task_files=task_files,
        task_limit=task_limit,
        shots=shots,
        device=device,
        dtype=dtype,
        progress=_progress(quiet),
    )
    if json:
        _print_json(document(results))
    else:
        console.out.print(console.evaluation_table(results))


@app.command
def inspect(model: str, /, *, json: Json = False) -> None:
    """List the linears of MODEL: shape, sparsity, the N:M pattern that they obey, the spaces they join.

    Parameters
    ----------
    model
        A hub name, a folder, or a .gguf file.
    """
    found = secateur.inspect(model)
    if json:
        _print_json(dataclasses.asdict(found))
    else:
        console.out.print(console.layers_table(found))


@app.command
def verify(model: str, /, *, dense: str | None = None, json: Json = False) -> None:
    """Prove from the files that MODEL obeys its pattern as stored; exit with 1 if it does not.

    Parameters
    ----------
    model
        A folder that was written by prune.
    dense
        The model that was pruned: prove also that the weights and logits are its own, masked and reordered.
    """
    verdict = secateur.verify(model, dense)
    if json:
        _print_json(dataclasses.asdict(verdict) | {"passed": verdict.passed})
    else:
        console.out.print(console.verdict_text(verdict))
    if not verdict.passed:
        sys.exit(FAILED_CHECK)


@app.command
def pack(
    model: str, /, *, out: Path, int8: bool = False, force: bool = False, json: Json = False, quiet: Quiet = False
) -> None:
    """Write pruned MODEL with its pruned linears packed: smaller, and faster to generate with on a CPU.

    Parameters
    ----------
    model
        A pruned model: a folder, a hub name, or a .gguf file.
    out
        The folder to write. Only Secateur loads it; unpack gives the plain one back, bit for bit.
    int8
        Round the kept weights to int8, with a scale for each row and 128 columns.
    force
        Replace a model folder that is already there.
    """
    packing = secateur.pack(model, out, int8=int8, force=force, progress=_progress(quiet))
    if json:
        _print_json(dataclasses.asdict(packing))
    else:
        console.out.print(console.packing_text(packing))
        console.out.print(f"written to {out}", highlight=False)


@app.command
def unpack(model: str, /, *, out: Path, force: bool = False, quiet: Quiet = False) -> None:
    """Write packed MODEL as a plain Hugging Face folder again.

    Parameters
    ----------
    model
        A folder that pack wrote.
    out
        The folder to write.
    force
        Replace a model folder that is already there.
    """
    secateur.unpack(model, out, force=force, progress=_progress(quiet))
    console.out.print(f"written to {out}", highlight=False)


@app.command
def generate(
    model: str, prompt: str, /, *, tokens: int = 64, dtype: str = "auto", device: str = "auto", json: Json = False
) -> None:
    """Continue PROMPT with MODEL, and say how many tokens a second that takes.

    Parameters
    ----------
    model
        A hub name, a folder, packed or not, or a .gguf file.
    prompt
        The text to continue.
    tokens
        Generate at most so many.
    dtype
        auto (as stored), float32, bfloat16 or float16.
    device
        auto (a GPU if there is one), cpu, cuda, …
    """
    result = secateur.generate(model, prompt, tokens=tokens, dtype=dtype, device=device)
    if json:
        _print_json(dataclasses.asdict(result))
    else:
        console.out.print(prompt + result.text, markup=False, highlight=False, soft_wrap=True)
        if result.choices:
            console.err.print(console.choices_table(result.choices))
        console.err.print(console.speed_text(result))


@app.command
def bench(
    model: str,
    /,
    *,
    batch: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True)] = None,
    length: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True)] = None,
    tokens: int | None = None,
    rounds: int | None = None,
    int8: bool | None = None,
    device: str | None = None,
    plot: Path | None = None,
    plan: Annotated[bool, Parameter(negative=())] = False,
    pattern: str | None = None,
    sparsity: float | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time pruned MODEL, sparse against the same weights dense, by kind of linear and end to end.

    On a CPU sparse is packed; on a GPU it is 2:4 in the forms that generate runs (not yet measured on a GPU).
    Dense and sparse take turns, and both compute in bfloat16. The tables give medians over rounds, and quartiles.

    Parameters
    ----------
    model
        A pruned model, packed or not: a folder, a hub name, or a .gguf file; with --plan any model.
    batch
        Numbers of sequences at a time; by default 1 and 8.
    length
        Tokens of a sequence before the first that is generated; by default 128 and 512.
    tokens
        Decode so many in each round, end to end; by default 32.
    rounds
        Take every time so often; by default 7.
    int8
        Round the kept weights to int8, on a CPU.
    device
        auto (a GPU if there is one, the default), cpu, cuda, …
    plot
        Draw the result into this .svg, .png or .pdf file.
    plan
        Measure no model: say from the shapes alone what MODEL would take, pruned and packed, and how fast this
        machine's CPU could read it.
    pattern
        With --plan: N:M.
    sparsity
        With --plan: the share of weights to remove; 0.5 if no pattern is given either.
    """
    options = {"batch": batch, "length": length, "tokens": tokens, "rounds": rounds, "int8": int8, "device": device}
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    if plan:
        if given or plot:
            refused = ", ".join(f"--{option}" for option in [*given, *(["plot"] if plot else [])])
            raise InputError(f"--plan has no {refused}: it measures nothing of the model")
        planned = secateur.plan(model, pattern=pattern, sparsity=sparsity)
        _show(planned, console.plan_tables(planned), console.plan_notes(planned), json)
        return
    if pattern is not None or sparsity is not None:
        raise InputError("--pattern and --sparsity are for --plan: a model is measured as it was pruned")
    if plot:
        check_plot(plot)
    result = secateur.bench(model, **given, progress=_progress(quiet))
    tables = [console.modules_table(result), console.model_table(result)]
    if result.choices:
        tables.append(console.choices_table(result.choices))
    _show(result, tables, console.benchmark_notes(result), json)
    if plot:
        draw(result, plot)


def _show(result: Benchmark | Plan, tables: Sequence[Table], notes: Sequence[str], json: bool) -> None:
    if json:
        slower = {"slower": [dataclasses.asdict(x) for x in result.slower]} if isinstance(result, Benchmark) else {}
        _print_json(dataclasses.asdict(result) | slower)
        return
    for table in tables:
        console.out.print(table)
    for note in notes:
        console.out.print(note, markup=False, highlight=False)


@app.command(name="demo")
def run_demo(*, out: Path | None = None, json: Json = False, quiet: Quiet = False) -> None:
    """Prune SmolLM2-135M with magnitude, Wanda and RIA, to 50 % and to 2:4, and compare perplexities.

    Parameters
    ----------
    out
        Keep the models in this new folder.
    """
    results = demo.run(out, _progress(quiet))
    if json:
        _print_json([dataclasses.asdict(result) for result in results])
    else:
        dense, *pruned = results
        for start in range(0, len(pruned), demo.PER_SPARSITY):  # each sparsity has its own baseline
            console.out.print(console.evaluation_table([dense, *pruned[start : start + demo.PER_SPARSITY]]))


def _value_of(option: str, tokens: Sequence[str]) -> str | None:
    """The value of ``option`` among the words of the command line, or None if it is not there."""
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        name, equals, value = token.partition("=")
        if name == option:
            return value if equals else following
    return None


def _defaults(tokens: Sequence[str]) -> list[cyclopts.config.Dict]:
    """What ``--recipe FILE`` says, as the defaults of prune's options: those given on the line win."""
    file = _value_of("--recipe", tokens)
    if not file:
        return []
    given = {key: value for key, value in Recipe.load(file).to_dict().items() if value is not None}
    for option, other in (("--sparsity", "pattern"), ("--pattern", "sparsity")):
        if _value_of(option, tokens) is not None:
            given.pop(other, None)  # they are two ways to say one thing
    return [cyclopts.config.Dict({"prune": given}, source=file)]


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    tokens = sys.argv[1:] if tokens is None else tokens
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        app.config = _defaults(tokens)
        app(tokens, error_console=console.err)
    except InputError as error:
        console.err.print("[bold red]error:[/]", end=" ")
        console.err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        console.err.print("interrupted")
        sys.exit(INTERRUPTED)
