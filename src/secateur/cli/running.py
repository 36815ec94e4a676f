"""Commands that run models: generate, bench."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import secateur
from secateur.cli.common import Json, Quiet, app, print_json, progress_for
from secateur.errors import InputError


@app.command
def generate(
    model: str,
    prompt: str,
    /,
    *,
    tokens: int = 64,
    dtype: str = "auto",
    device: str = "auto",
    form: str = "auto",
    memory: str | None = None,
    json: Json = False,
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
    form
        On a GPU, what pruned linears multiply with: auto (the fastest for each number of tokens), dense, 2:4 or packed.
    memory
        How much of the device's memory may be used, such as 8GB; by default what is free. A model that needs more is
        read from disk once for each token.
    """
    from secateur.console.speed import choices_notes, choices_table, speed_text
    from secateur.console.terminal import err, out, show

    result = secateur.generate(model, prompt, tokens=tokens, dtype=dtype, device=device, form=form, memory=memory)
    if json:
        print_json(dataclasses.asdict(result))
    else:
        out.print(prompt + result.text, markup=False, highlight=False, soft_wrap=True)
        if result.choices:
            show(choices_table(result.choices), *choices_notes(result.choices), console=err)
        show(speed_text(result), console=err)


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
    int4: bool | None = None,
    structured: bool | None = None,
    shrunk: str | None = None,
    device: str | None = None,
    form: str | None = None,
    plot: Path | None = None,
    plan: Annotated[bool, Parameter(negative=(), show=False)] = False,
    pattern: Annotated[str | None, Parameter(show=False)] = None,
    sparsity: Annotated[float | None, Parameter(show=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time pruned MODEL, sparse against the same weights dense, by role of the linears and end to end.

    On a CPU sparse is packed; on a GPU it is the forms that generate runs. Dense and sparse take turns, and both
    compute in bfloat16. The tables give medians over rounds, and quartiles.

    Parameters
    ----------
    model
        A pruned model, packed or not: a folder, a hub name, or a .gguf file.
    batch
        Numbers of sequences at a time; by default 1 and 8.
    length
        Tokens of a sequence before the first that is generated; by default 128 and 512.
    tokens
        Decode so many in each round, end to end; by default 32.
    rounds
        Take every time so often; by default 7.
    int8
        Round the weights to int8, on a CPU.
    int4
        Round the weights to 4 bits, on a CPU.
    structured
        Time a dense model of half the width as well, end to end.
    shrunk
        Time a model that shrink made of this one as well, end to end. MODEL may be dense then.
    device
        auto (a GPU if there is one, the default), cpu, cuda, …
    form
        On a GPU, what pruned linears multiply with: auto (the default), dense, 2:4 or packed.
    plot
        Draw the result into this .svg, .png or .pdf file.
    """
    from secateur.benchmark.plot import check_plot, draw
    from secateur.console import speed
    from secateur.console.terminal import show

    options = {
        "batch": batch,
        "length": length,
        "tokens": tokens,
        "rounds": rounds,
        "int8": int8,
        "int4": int4,
        "structured": structured,
        "shrunk": shrunk,
        "device": device,
        "form": form,
    }
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    if plan or pattern is not None or sparsity is not None:  # as it was called until 0.4
        raise InputError(f"secateur plan {model} says this now; bench measures a model as it was pruned")
    if plot:
        check_plot(plot)
    result = secateur.bench(model, **given, progress=progress_for(quiet))
    tables = [speed.modules_table(result), speed.model_table(result)] if result.linears else []
    if result.structured:
        tables.append(speed.structured_table(result))
    if result.choices:
        tables.append(speed.choices_table(result.choices))
    if json:
        print_json(dataclasses.asdict(result) | {"slower": [dataclasses.asdict(x) for x in result.slower]})
    else:
        show(*tables, *speed.benchmark_notes(result))
    if plot and result.linears:
        draw(result, plot)
