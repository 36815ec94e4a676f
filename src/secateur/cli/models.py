"""Commands that make models: prune, shrink, quantize, mask, apply, pack, unpack, demo."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import secateur
from secateur.cli.common import Force, Json, Quiet, app, print_json, progress_for
from secateur.progress import speaks
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.shrinkage import Shrinkage


def _costs(out: Path, began: float) -> dict[str, float]:
    """The seconds since ``began``, and the bytes of the files in ``out``, for people and for ``--json``."""
    files = out.rglob("*") if speaks() else ()  # another process may still be putting them in place
    size = sum(path.stat().st_size for path in files if path.is_file())
    return {"elapsed_seconds": round(time.perf_counter() - began, 3), "bytes_on_disk": size}


@app.command
def prune(
    model: str,
    /,
    *,
    out: Path,
    options: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008 (frozen)
    recipe: str | None = None,
    force: Force = False,
    resume: Annotated[bool, Parameter(negative=())] = False,
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
        fast, paper, good, best, or a YAML file with any of the options below; those given here win.
    resume
        Go on after the last block that this command had finished when it was stopped, if it was.
    """
    from secateur.console.models import folder_notes, pruning_notes, pruning_table
    from secateur.console.terminal import show

    began = time.perf_counter()
    manifest = secateur.prune(model, out, options, force=force, resume=resume, progress=progress_for(quiet))
    costs = _costs(out, began)
    if json:
        print_json(manifest | costs)
    else:
        following = [["eval", model, out], ["pack", out, "--out", f"{out}-packed"]]
        show(pruning_table(manifest), *pruning_notes(manifest), *folder_notes(out, costs, following))


@app.command
def compress(
    model: str,
    /,
    *,
    out: Path,
    target_size: str | None = None,
    max_loss: str | None = None,
    options: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008 (frozen)
    recipe: str | None = None,
    data: str = "wikitext2",
    window: int | None = None,
    limit: int | None = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write MODEL packed within a budget: so many bytes, or as small as a loss allows. Finds bits and sparsity.

    Parameters
    ----------
    model
        A hub name, a folder, or a .gguf file.
    out
        The folder to write. Only Secateur loads it; unpack makes a plain one of it.
    target_size
        Bytes that all tensors may take, such as 4GB.
    max_loss
        How much the perplexity may rise, such as 5%. Every try is a run.
    recipe
        fast, paper, good, best, or a YAML file with any of the options below, of which sparsity and pattern are not
        read.
    data
        The text that a loss is measured on, as eval reads it.
    window
        Tokens per window of it; by default the model's context, at most 2048.
    limit
        Use only so many windows of it.
    """
    from secateur.console.models import compression_table, folder_notes
    from secateur.console.terminal import show

    began = time.perf_counter()
    result = secateur.compress(
        model,
        out,
        target_size=target_size,
        max_loss=max_loss,
        recipe=options,
        data=data,
        window=window,
        limit=limit,
        force=force,
        progress=progress_for(quiet),
    )
    costs = _costs(out, began)
    if json:
        print_json(dataclasses.asdict(result) | costs)
    else:
        show(compression_table(result), result.reason, *folder_notes(out, costs, [["eval", model, out]]))


@app.command
def shrink(
    model: str,
    /,
    *,
    out: Path,
    options: Annotated[Shrinkage, Parameter(name="*")] = Shrinkage(),  # noqa: B008 (frozen)
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove heads and channels of MODEL, whole blocks, or experts, and write the smaller model: a plain folder.

    Parameters
    ----------
    model
        A hub name, a folder, or a .gguf file.
    out
        The folder to write.
    """
    from secateur.console.models import folder_notes, shrinking_text
    from secateur.console.terminal import show

    began = time.perf_counter()
    manifest = secateur.shrink(model, out, options, force=force, progress=progress_for(quiet))
    costs = _costs(out, began)
    if json:
        print_json(manifest | costs)
    else:
        show(shrinking_text(manifest), *folder_notes(out, costs, [["eval", model, out]]))


@app.command
def quantize(
    model: str,
    /,
    *,
    out: Path,
    options: Annotated[QuantizationRecipe, Parameter(name="*")] = QuantizationRecipe(),  # noqa: B008 (frozen)
    force: Force = False,
    resume: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write MODEL, pruned or not, with weights of few bits; those that are zero stay zero.

    What is written is in the format pack-quantized: transformers loads it where compressed-tensors is installed.

    Parameters
    ----------
    model
        A hub name, a folder, or a .gguf file.
    out
        The folder to write.
    resume
        Go on after the last block that this command had finished when it was stopped, if it was.
    """
    from secateur.console.models import folder_notes, quantization_notes, quantization_table
    from secateur.console.terminal import show

    began = time.perf_counter()
    manifest = secateur.quantize(model, out, options, force=force, resume=resume, progress=progress_for(quiet))
    costs = _costs(out, began)
    if json:
        print_json(manifest | costs)
    else:
        following = [["eval", model, out], ["pack", out, "--out", f"{out}-packed"]]
        show(quantization_table(manifest), *quantization_notes(manifest), *folder_notes(out, costs, following))


@app.command
def mask(model: str, /, *, out: Path, quiet: Quiet = False) -> None:
    """Write the mask of pruned MODEL to a file: which weights are kept, one bit for each.

    Parameters
    ----------
    model
        A folder that prune wrote.
    out
        The file to write, such as mask.safetensors.
    """
    from secateur.console.models import mask_text
    from secateur.console.terminal import show

    show(mask_text(secateur.mask(model, out, progress=progress_for(quiet)), out))


@app.command
def apply(
    model: str,
    mask: Path,
    /,
    *,
    out: Path,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write MODEL with the weights zero that MASK does not keep: after fine-tuning, or merging an adapter.

    Parameters
    ----------
    model
        A model that descends from the one that the mask was taken of: a folder, a hub name, or a .gguf file.
    mask
        A file that the command mask wrote.
    out
        The folder to write.
    """
    from secateur.console.models import applied_text, folder_notes
    from secateur.console.terminal import show

    began = time.perf_counter()
    manifest = secateur.apply(model, mask, out, force=force, progress=progress_for(quiet))
    costs = _costs(out, began)
    if json:
        print_json(manifest | costs)
    else:
        show(applied_text(manifest), *folder_notes(out, costs, [["verify", out, "--dense", model]]))


@app.command
def pack(
    model: str,
    /,
    *,
    out: Path,
    int8: bool = False,
    int4: bool = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write pruned or quantized MODEL with its linears packed: smaller, and faster to generate with on a CPU.

    Parameters
    ----------
    model
        A model: a folder, a hub name, or a .gguf file. It has to be pruned, unless it is quantized or rounded here.
    out
        The folder to write. Only Secateur loads it; unpack gives the plain one back, bit for bit.
    int8
        Round the weights to int8, with a scale for each row and 128 columns.
    int4
        Round the weights to 4 bits, with a scale and a code of zero for each row and 128 columns.
    """
    from secateur.console.models import folder_notes, packing_text
    from secateur.console.terminal import show

    began = time.perf_counter()
    packing = secateur.pack(model, out, int8=int8, int4=int4, force=force, progress=progress_for(quiet))
    costs = _costs(out, began)
    if json:
        print_json(dataclasses.asdict(packing) | costs)
    else:
        show(packing_text(packing), *folder_notes(out, costs, [["generate", out, "The capital of France is"]]))


@app.command
def unpack(model: str, /, *, out: Path, force: Force = False, quiet: Quiet = False) -> None:
    """Write packed MODEL as a plain Hugging Face folder again.

    Parameters
    ----------
    model
        A folder that pack wrote.
    out
        The folder to write.
    """
    from secateur.console.models import folder_notes
    from secateur.console.terminal import show

    began = time.perf_counter()
    secateur.unpack(model, out, force=force, progress=progress_for(quiet))
    show(*folder_notes(out, _costs(out, began), [["verify", out]]))


@app.command(name="demo")
def run_demo(*, out: Path | None = None, json: Json = False, quiet: Quiet = False) -> None:
    """Prune SmolLM2-135M with magnitude, Wanda and RIA, to 50 % and to 2:4, and compare perplexities.

    Parameters
    ----------
    out
        Keep the models in this new folder.
    """
    from secateur import demo
    from secateur.console.evaluation import evaluation_table
    from secateur.console.terminal import show

    results = demo.run(out, progress_for(quiet))
    if json:
        print_json([dataclasses.asdict(result) for result in results])
    else:
        dense, *pruned = results
        for start in range(0, len(pruned), demo.PER_SPARSITY):  # each sparsity has its own baseline
            show(evaluation_table([dense, *pruned[start : start + demo.PER_SPARSITY]]))
