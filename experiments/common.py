"""What the experiments share: their arguments, and one row of a table."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import secateur
from secateur.recipe import Recipe


def parser(doc: str | None, data: bool = True) -> argparse.ArgumentParser:
    """The arguments of an experiment: the model, what it is calibrated on and, if ``data``, evaluated on."""
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--calibration", default="c4")
    arguments.add_argument("--samples", type=int, default=128)
    arguments.add_argument("--length", type=int, default=2048)
    if data:
        arguments.add_argument("--data", nargs="+", default=["wikitext2"], help="texts to evaluate on")
        arguments.add_argument("--window", type=int)
        arguments.add_argument("--limit", type=int)
    return arguments


def recipe_of(args: argparse.Namespace, **setting: Any) -> Recipe:
    """The recipe of ``setting``, calibrated as the arguments say."""
    return Recipe.from_dict(setting | {"calibration": args.calibration, "samples": args.samples, "length": args.length})


def target_of(pattern: str) -> dict[str, str | float]:
    """What a recipe says for ``2:4``, or for ``50%``: a share to remove anywhere."""
    return {"sparsity": float(pattern.strip("%")) / 100} if pattern.endswith("%") else {"pattern": pattern}


def perplexities(args: argparse.Namespace, model: str | Path) -> dict[str, float]:
    """The perplexity of ``model`` on each text, by the text's name."""
    (result,) = secateur.evaluate(model, args.data, window=args.window, limit=args.limit)
    return {f"perplexity {name}": round(text.perplexity, 2) for name, text in zip(args.data, result.texts, strict=True)}


def prune_and_measure(args: argparse.Namespace, **setting: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Prune by ``setting``: the manifest, and the perplexities of what was written, which is deleted again."""
    with tempfile.TemporaryDirectory() as home:
        manifest = secateur.prune(args.model, Path(home) / "pruned", recipe_of(args, **setting))
        measured = perplexities(args, Path(home) / "pruned")
        shutil.rmtree(Path(home) / "pruned")
    return manifest, measured


def show(row: Mapping[str, Any]) -> None:
    """Print one row as a line of JSON, at once."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
