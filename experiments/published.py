"""What the authors published, as far as it could be found: ``published.json`` says where each number can be read."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from secateur.recipe import Recipe

# The names that published.json has for models, by the last part of the hub's, in small letters.
_MODELS = {
    "llama-7b": "LLaMA-7B", "llama-13b": "LLaMA-13B", "llama-30b": "LLaMA-30B", "llama-65b": "LLaMA-65B",
    "llama-2-7b-hf": "LLaMA2-7B", "llama-2-13b-hf": "LLaMA2-13B", "llama-2-70b-hf": "LLaMA2-70B",
    "opt-1.3b": "OPT-1.3B", "meta-llama-3-8b": "LLaMA3-8B", "meta-llama-3-70b": "LLaMA3-70B",
}  # fmt: skip


def published(model: str, recipe: Recipe | None, dataset: str) -> tuple[float, str] | None:
    """A perplexity and its source.

    Args:
        model: the last part of its hub name.
        recipe: how it is pruned; None for the dense model.
        dataset: the corpus.
    """
    if recipe is None:
        wanted: dict[str, Any] = {"method": "dense", "pattern": None, "permuted": False}
    elif recipe == Recipe.from_dict(recipe.to_dict() | {"alpha": 0.5, "scope": None}) and recipe.reconstruct == (
        "sparsegpt" if recipe.score == "sparsegpt" else "none"
    ):
        pattern = recipe.pattern or f"{recipe.sparsity:.0%}"
        permuted = recipe.pattern is not None and recipe.permute != "none"
        wanted = {"method": recipe.score, "pattern": pattern, "permuted": permuted}
    else:
        return None
    wanted |= {"model": _MODELS.get(model.lower()), "dataset": dataset}
    for entry in _entries():
        if all(entry[key] == value for key, value in wanted.items()):
            return entry["value"], entry["source"]
    return None


@cache
def _entries() -> list[dict[str, Any]]:
    tables = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))["tables"]
    return [entry for entries in tables.values() for entry in entries]


@cache
def sources() -> dict[str, str]:
    """What each source is called."""
    found = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))["sources"]
    return {name: f"{one['title']} ({one['year']})" for name, one in found.items()}
