"""RIA, Table 12 and Appendix I: pruned, quantized, and both, in both orders.

    python experiments/table12.py MODEL --calibration c4 --data wikitext2 [--group-size 128] [--bits 4] [--keep DIR]
        [--pruned magnitude sparsegpt wanda ria 'ria 2:4' 'best 2:4'] [--quantized gptq awq]

Every model is dense or pruned, and then left as it is or quantized. Per row: the perplexity of what was written on
every text; the bits that a weight of the quantized linears takes; the share of its weights that are zero; and how many
were zero before they were quantized, and are not.

The other order, quantize and then prune, is there for methods that change no weight that they keep: what they write is
on the grids of the quantized model still. (A reconstruction leaves the grids, and would have to be quantized again.)

With ``--keep``, models and rows that are in that folder are not made again.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import parser, setting_of, show

import secateur
from secateur.checkpoint import Source
from secateur.models.blocks import blocks_of, family_of
from secateur.recipe import QuantizationRecipe, Recipe

Row = dict[str, Any]
RECIPES: dict[str, dict[str, Any]] = {
    "magnitude": {"score": "magnitude", "sparsity": 0.5},
    "sparsegpt": {"score": "sparsegpt", "reconstruct": "sparsegpt", "sparsity": 0.5},
    "wanda": {"score": "wanda", "sparsity": 0.5},
    "ria": {"score": "ria", "sparsity": 0.5},
    "ria 2:4": {"score": "ria", "pattern": "2:4"},
    "ria 16:32": {"score": "ria", "pattern": "16:32"},
    "best": {"preset": "best", "sparsity": 0.5},
    "best 2:4": {"preset": "best", "pattern": "2:4"},
    "best 16:32": {"preset": "best", "pattern": "16:32"},
}
TABLE = ["magnitude", "sparsegpt", "wanda", "ria", "ria 2:4", "best", "best 2:4"]


def recipe_of(name: str, args: argparse.Namespace) -> Recipe:
    """One of :data:`RECIPES`, calibrated as the arguments say."""
    options = dict(RECIPES[name])
    preset = options.pop("preset", None)
    base = Recipe.load(preset).to_dict() | {"pattern": None, "sparsity": None} if preset else {}
    return Recipe.from_dict(base | options | setting_of(args))


class Models:
    """Folders that are made once: one that is there is complete."""

    def __init__(self, home: Path, model: str, args: argparse.Namespace) -> None:
        self.home, self.model, self.args = home, model, args

    def pruned(self, recipe: str, of: str | Path | None = None) -> Path:
        """The dense model, or one that is quantized already, pruned."""
        out = self._out(recipe if of is None else f"{recipe} of {Path(of).name}")
        if not out.exists():
            secateur.prune(of or self.model, out, recipe_of(recipe, self.args), resume=True)
        return out

    def quantized(self, method: str, of: str | Path, name: str) -> Path:
        """The model ``of``, which is called ``name``, quantized."""
        args = self.args
        out = self._out(f"{name} {method}-{args.bits}")
        if not out.exists():
            recipe = QuantizationRecipe(
                method=method,
                bits=args.bits,
                group_size=args.group_size,
                calibration=args.calibration,
                samples=args.quantize_samples or args.samples,
                length=args.length,
            )
            secateur.quantize(of, out, recipe, resume=True)
        return out

    def _out(self, name: str) -> Path:
        return self.home / name.replace(" ", "_").replace(":", "")


def zeros(folder: str | Path, before: str | Path | None = None) -> tuple[float, int]:
    """The share of the linears' weights that are zero, and how many are not that were in the model ``before``."""
    source, earlier = Source(Path(folder)), Source(Path(before)) if before else None
    skeleton = source.skeleton(torch.float32)
    zero = lost = number = 0
    for block in blocks_of(skeleton, family_of(skeleton)):
        for linear in block.linears:
            name = block.prefix + linear.tensor
            weight = source.read([name])[name]
            zero, number = zero + int((weight == 0).sum()), number + weight.numel()
            if earlier:
                lost += int(((earlier.read([name])[name] == 0) & (weight != 0)).sum())
    return zero / number, lost


def measured(folder: str | Path, args: argparse.Namespace) -> Row:
    """Its perplexity on every text."""
    (found,) = secateur.evaluate(folder, args.data, window=args.window, limit=args.limit, dtype=args.dtype)
    return {f"perplexity {Path(text.data).name}": round(text.perplexity, 2) for text in found.texts}


def rows(models: Models, args: argparse.Namespace) -> Any:
    """What each row is called, and what makes its model: gives its folder, and the one that it was quantized from."""
    for name in ("dense", *args.pruned):

        def prune(name: str = name) -> str | Path:
            return models.model if name == "dense" else models.pruned(name)

        yield (name, "none", "-"), lambda prune=prune: (prune(), None)
        for method in args.quantized:
            yield (
                (name, method, "-" if name == "dense" else "prune, quantize"),
                lambda prune=prune, name=name, method=method: (models.quantized(method, prune(), name), prune()),
            )
            if name != "dense" and recipe_of(name, args).reconstruct == "none":

                def turned(name: str = name, method: str = method) -> tuple[Path, None]:
                    return models.pruned(name, models.quantized(method, models.model, "dense")), None

                yield (name, method, "quantize, prune"), turned


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--dtype", default="auto", help="precision to evaluate in; auto is float32 on a CPU")
    arguments.add_argument("--quantize-samples", type=int, help="calibration samples of the quantization, if others")
    arguments.add_argument("--bits", type=int, default=4, choices=(4, 8))
    arguments.add_argument("--group-size", type=int, default=128)
    arguments.add_argument("--pruned", nargs="*", default=TABLE, choices=list(RECIPES))
    arguments.add_argument("--quantized", nargs="+", default=["gptq", "awq"])
    args = arguments.parse_args()
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as home:
        Path(home).mkdir(parents=True, exist_ok=True)
        file = Path(home) / "rows.json"
        known: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
        for (pruned, quantized, order), make in rows(Models(Path(home), args.model, args), args):
            key = f"{pruned}, {quantized}, {order}"
            if key not in known:
                folder, before = make()
                row: Row = {"pruned": pruned, "quantized": quantized, "order": order} | measured(folder, args)
                row["zeros"], lost = zeros(folder, before)
                row["zeros lost"] = lost if before else None
                scheme = Source(Path(folder)).scheme
                if scheme:
                    sizes = json.loads((Path(folder) / "secateur.json").read_text())["quantization"]
                    row["bits"] = round(sizes["bits_per_weight"], 3)
                known[key] = row
                file.write_text(json.dumps(known, indent=1))
            show(known[key])


if __name__ == "__main__":
    main()
