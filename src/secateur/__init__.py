"""Secateur prunes large language models after training."""

from importlib.metadata import version

__version__ = version("secateur")

from secateur.errors import InputError
from secateur.evaluate.perplexity import evaluate
from secateur.inspection import inspect
from secateur.pipeline import prune
from secateur.recipe import Recipe

__all__ = ["InputError", "Recipe", "__version__", "evaluate", "inspect", "prune"]
