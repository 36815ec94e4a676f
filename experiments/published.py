"""What the authors published, as far as it could be found: ``published.json`` says where each number can be read."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from secateur.options import Options
from secateur.recipe import Recipe

# The names that published.json has for models, by the last part of the hub's, in small letters.
_MODELS = {
    "llama-7b": "LLaMA-7B", "llama-13b": "LLaMA-13B", "llama-30b": "LLaMA-30B", "llama-65b": "LLaMA-65B",
    "llama-2-7b-hf": "LLaMA2-7B", "llama-2-13b-hf": "LLaMA2-13B", "llama-2-70b-hf": "LLaMA2-70B",
    "opt-1.3b": "OPT-1.3B", "meta-llama-3-8b": "LLaMA3-8B", "meta-llama-3-70b": "LLaMA3-70B",
}  # fmt: skip


def published(model: str, steps: Sequence[Options], dataset: str) -> tuple[float, str] | None:
    """A perplexity and its source.

    Args:
        model: the last part of its hub name.
        steps: what was done to it; nothing to the dense model.
        dataset: the corpus.
    """
    match steps:
        case ():
            wanted: dict[str, Any] = {"method": "dense", "pattern": None, "permuted": False}
        case (Recipe() as recipe,) if _as_published(recipe):
            pattern = recipe.pattern or f"{recipe.sparsity:.0%}"
            permuted = recipe.pattern is not None and recipe.permute != "none"
            wanted = {"method": recipe.score, "pattern": pattern, "permuted": permuted}
        case _:
            return None
    wanted |= {"model": _MODELS.get(model.lower()), "dataset": dataset}
    for entry in _entries():
        if all(entry[key] == value for key, value in wanted.items()):
            return entry["value"], entry["source"]
    return None


def _as_published(recipe: Recipe) -> bool:
    """Whether a method is the one of its name in the paper: its score as it was, and SparseGPT's own reconstruction."""
    alone = "sparsegpt" if recipe.score == "sparsegpt" else "none"
    return replace(recipe, alpha=Recipe.alpha, scope=None) == recipe and recipe.reconstruct == alone


def _entries() -> list[dict[str, Any]]:
    return [entry for entries in _document()["tables"].values() for entry in entries]


def sources() -> dict[str, str]:
    """What each source is called."""
    return {name: f"{one['title']} ({one['year']})" for name, one in _document()["sources"].items()}


@cache
def _document() -> Any:
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
