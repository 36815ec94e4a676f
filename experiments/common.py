"""What the experiments share: their arguments, and the sweep behind a table."""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import secateur
from secateur.recipe import Recipe
from secateur.sweeps.results import Entry, Results


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
        arguments.add_argument("--keep", type=Path, help="keep all rows in this folder, and use those that are there")
    return arguments


def setting_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all recipes have in common: they are calibrated as the arguments say."""
    return {"calibration": args.calibration, "samples": args.samples, "length": args.length}


def recipe_of(args: argparse.Namespace, **setting: Any) -> Recipe:
    """The recipe of ``setting``, calibrated as the arguments say."""
    return Recipe.from_dict(setting | setting_of(args))


def target_of(pattern: str) -> dict[str, str | float]:
    """What a recipe says for ``2:4``, or for ``50%``: a share to remove anywhere."""
    return {"sparsity": float(pattern.strip("%")) / 100} if pattern.endswith("%") else {"pattern": pattern}


def swept(args: argparse.Namespace, axes: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Results:
    """Every combination of ``axes``, of the model and the texts that the arguments name.

    Args:
        base: what all recipes have in common besides.

    Raises:
        InputError: when one of them failed.
    """
    grid = {
        "models": [args.model],
        "base": dict(base or {}) | setting_of(args),
        "grid": dict(axes),
        "evaluate": {"data": args.data, "window": args.window, "limit": args.limit},
    }
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as home:
        results = secateur.sweep(grid, Path(home) / "sweep", keep_models=args.keep is not None)
    if results.failed:
        raise secateur.InputError(f"{results.failed[0].row}: {results.failed[0].outcome.failure}")
    return results


def perplexities(entry: Entry) -> dict[str, float]:
    """The perplexity of a row on each text, by the text's name."""
    texts = entry.outcome.evaluation.texts if entry.outcome.evaluation else ()
    return {f"perplexity {text.data}": round(text.perplexity, 2) for text in texts}


def show(row: Mapping[str, Any]) -> None:
    """Print one row as a line of JSON, at once."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
