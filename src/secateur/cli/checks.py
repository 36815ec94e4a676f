"""Commands that say what a model is worth: eval, inspect, verify."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import secateur
from secateur.cli.common import Json, Quiet, app, print_json, progress_for
from secateur.options import Bos

FAILED_CHECK = 1  # the exit code


@app.command(name="eval")
def evaluate(
    models: Annotated[tuple[str, ...], Parameter(consume_multiple=True)],
    /,
    *,
    data: list[str] | None = None,
    column: str | None = None,
    split: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    bos: Bos = "auto",
    tasks: list[str] | None = None,
    task_files: Path | None = None,
    task_limit: int | None = None,
    shots: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    memory: str | None = None,
    card: Annotated[bool, Parameter(negative=())] = False,
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
        wikitext2, ptb, c4 (or wikitext2:FILE, …), a .txt, .json, .jsonl or .parquet file, a hub dataset, or demo; once
        for each text. By default wikitext2, or none if there are tasks.
    column
        The column of text, or of chats; by default text, messages, conversations, or the only one of strings.
    split
        The split of hub datasets; by default test, validation or train, the first that is there.
    window
        Tokens per window; by default the model's context, at most 2048.
    stride
        Tokens from one window to the next; by default the window, so that none overlap.
    limit
        Use only so many windows of each text.
    bos
        Where the token that begins a text stands: in each window, once before the whole text where the tokenizer puts
        one, or never; auto is each for Gemma, else once.
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
    memory
        How much of the device's memory may be used, such as 8GB; by default what is free. Of a model that needs more,
        one block is in memory at a time.
    card
        Write the results into the model cards (README.md) of those of the models that Secateur wrote.
    """
    from secateur.console.evaluation import evaluation_table
    from secateur.console.terminal import show
    from secateur.evaluation.comparison import document

    results = secateur.evaluate(
        models,
        data,
        column=column,
        split=split,
        window=window,
        stride=stride,
        limit=limit,
        bos=bos,
        tasks=[name.strip() for names in tasks or [] for name in names.split(",") if name.strip()],
        task_files=task_files,
        task_limit=task_limit,
        shots=shots,
        device=device,
        dtype=dtype,
        memory=memory,
        card=card,
        progress=progress_for(quiet),
    )
    if json:
        print_json(document(results))
    else:
        show(evaluation_table(results))


@app.command
def inspect(model: str, /, *, layers: Annotated[bool, Parameter(negative=())] = False, json: Json = False) -> None:
    """List the linears of MODEL by kind: how many there are, shape, sparsity, the N:M pattern that they obey.

    Parameters
    ----------
    model
        A hub name, a folder, or a .gguf file.
    layers
        List every layer instead, with the spaces that it joins.
    """
    from secateur.console.models import kinds_table, layers_table
    from secateur.console.terminal import show

    found = secateur.inspect(model)
    if json:
        print_json(dataclasses.asdict(found))
    else:
        show(layers_table(found) if layers else kinds_table(found))


@app.command
def verify(model: str, /, *, dense: str | None = None, json: Json = False) -> None:
    """Prove from the files that MODEL is as it was pruned or shrunk; exit with 1 if it is not.

    Parameters
    ----------
    model
        A folder that was written by prune, quantize, shrink or apply.
    dense
        The model that it was made of: prove also that the weights are its own, masked, reordered or selected, and the
        logits of a pruned model; and of a quantized one that what is zero there is zero here.
    """
    from secateur.console.models import verdict_text
    from secateur.console.terminal import show

    verdict = secateur.verify(model, dense)
    if json:
        print_json(dataclasses.asdict(verdict) | {"passed": verdict.passed})
    else:
        show(verdict_text(verdict))
    if not verdict.passed:
        sys.exit(FAILED_CHECK)
