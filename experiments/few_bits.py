"""Beyond the paper: prune, quantize, or both? Quality, size and speed of what one model can be packed to.

The dense model and pruned ones (``--recipe good``), each packed with bfloat16 values, with int8 values (rounded) and
with int4 values (GPTQ). *Bits* are those of a weight of the blocks' linears, masks, scales and zero-points included.
Rows of about the same bits are to be compared.
"""

from dataclasses import asdict
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

import secateur
from experiments.common import LLAMA2, Report, Setting, absent, main
from experiments.timing import ROUNDS, machine, speeds, spread_text
from secateur.benchmark.timing import Spread
from secateur.checkpoint import Source
from secateur.data.tokens import tokens_kept_in
from secateur.models.blocks import blocks_of, family_of
from secateur.recipe import QuantizationRecipe, Recipe
from secateur.sweeps.tables import Table

MODELS = LLAMA2[:1]
TEXTS = ("wikitext2", "c4")
TARGETS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "good 2:4": {"pattern": "2:4", "sparsity": None},
    "good 16:32": {"pattern": "16:32", "sparsity": None},
    "good 50 %": {"sparsity": 0.5, "pattern": None},
}
VALUES = ("bfloat16", "int8", "int4")
GROUPS = (128, 64, 32)


def run(setting: Setting) -> Report:
    cells: list[list[Any]] = []
    for model in setting.models:
        with setting.folder(model) as folder:
            names = [(name, values) for name in TARGETS for values in VALUES]
            packed = [pack(setting, model, folder, *name) for name in names]
            key = {"speeds": names, "options": setting.options(), "machine": str(machine())}
            rates = setting.measured(model, key, partial(_speeds, packed))
            for name, place, rate in zip(names, packed, rates, strict=True):
                found = _perplexities(setting, model, name, place)
                cells.append([model, *name, f"{bits(place):.2f}", *found, spread_text(Spread(**rate), 1)])
    texts = [text.partition(":")[0] for text in setting.texts.evaluation(*TEXTS)]
    headings = ["model", "pruned", "values", "bits", *texts, "tokens/s"]
    caption = f"Tokens per second one by one: medians and quartiles of {ROUNDS} rounds in turn; {machine()}."
    notes = absent(setting, *TEXTS)
    return Report([(caption, Table.plain(headings, cells, words=3))], notes=notes, data=[headings, *cells])


def pack(setting: Setting, model: str, folder: Path, name: str, values: str) -> Path:
    """The folder of a model that is pruned as ``name`` says, packed with such values; the dense one as it is."""
    target, plain, options = TARGETS[name], folder, None
    if target:
        options = Recipe.load("good").to_dict() | setting.options(**target)
        plain = setting.prune(model, folder, **options)
    elif values == "bfloat16":
        return folder
    if values == "int4":
        recipe = QuantizationRecipe(**setting.options(method="gptq", bits=4, group_size=group_size(Source(folder))))
        quantize = partial(secateur.quantize, plain, recipe=recipe, resume=True)
        plain = setting.made(model, {"pruned": options, "quantized": recipe.to_dict()}, quantize)
    return setting.made(
        model, {"pruned": options, "packed": values}, partial(secateur.pack, plain, int8=values == "int8")
    )


def _speeds(folders: list[Path]) -> list[dict[str, float]]:
    return [asdict(rate) for rate in speeds(folders)]


def _perplexities(setting: Setting, model: str, name: tuple[str, str], folder: Path) -> list[float]:
    """Those of a folder that was made of ``model``, on each text."""
    protocol = {option: setting.protocol[option] for option in ("window", "limit", "dtype")}
    texts = setting.texts.evaluation(*TEXTS)

    def compute() -> list[float]:
        with tokens_kept_in(setting.out / "sweep" / "tokens"):
            (found,) = secateur.evaluate(folder, texts, **protocol)
        return [text.perplexity for text in found.texts]

    key = {"packed": name, "options": setting.options(), "data": texts, **protocol}
    found: list[float] = setting.measured(model, key, compute)
    return found


def group_size(source: Source) -> int:
    """The largest of :data:`GROUPS` that the widths of all linears are multiples of."""
    model = source.skeleton(torch.float32)
    widths = {
        linear.view(model.get_parameter(block.prefix + linear.tensor)).shape[1]
        for block in blocks_of(model, family_of(model))
        for linear in block.linears
    }
    return next(size for size in GROUPS if not any(width % size for width in widths))


def bits(folder: Path) -> float:
    """Bits of a weight of the linears in the blocks."""
    source = Source(folder)
    model = source.skeleton(torch.float32)
    names = [block.prefix + x.tensor for block in blocks_of(model, family_of(model)) for x in block.linears]
    stored = sum(source.held[part].nbytes for name in names for part in source.stacks.parts(name))
    return 8 * stored / sum(prod(source.shape(name)) for name in names)


if __name__ == "__main__":
    main(__doc__, MODELS, __file__)
