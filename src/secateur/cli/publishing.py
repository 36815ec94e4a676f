"""Commands that take models to where others run them: export, push."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import secateur
from secateur.cli.common import Json, Quiet, app, print_json, progress_for


@app.command
def export(
    model: str,
    /,
    *,
    out: Path,
    to: str = "gguf",
    type: str | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write MODEL, pruned or not, as one file for other programs: GGUF, which llama.cpp runs.

    Parameters
    ----------
    model
        A LLaMA, Mistral, Qwen2 or Qwen3: a hub name, a folder, or a .gguf file. Packed and quantized weights are
        written as the dense ones that they stand for.
    out
        The file to write, which must not be there yet; its name ends in .gguf.
    to
        The format: gguf.
    type
        Of the matrices: f32, f16, bf16, or q8_0 (8 bits, with a scale for each 32 columns of a row). By default that in
        which they are stored.
    """
    from secateur.console.models import folder_notes
    from secateur.console.terminal import show

    began = time.perf_counter()
    exported = secateur.export(model, out, to=to, type=type, progress=progress_for(quiet))
    costs = {"elapsed_seconds": round(time.perf_counter() - began, 3), "bytes_on_disk": out.stat().st_size}
    if json:
        print_json(dataclasses.asdict(exported) | costs)
    else:
        show(
            f"{exported.tensors} tensors, matrices as {exported.type}",
            *folder_notes(out, costs, [["eval", model, out]]),
        )


@app.command
def push(
    folder: Path,
    name: str,
    /,
    *,
    public: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Put the model in FOLDER on the hub as NAME, with its card: for you alone, unless it is to be public.

    Parameters
    ----------
    folder
        A folder that Secateur wrote. What it wrote there goes along, and .gguf files; nothing else does.
    name
        What it will be called, such as ORG/NAME. If it is there already, files of the same names are replaced.
    public
        Let everybody see it.
    """
    from secateur.console.terminal import show

    show(secateur.push(folder, name, public=public))
