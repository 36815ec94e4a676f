"""Secateur prunes large language models after training."""

from importlib.metadata import version

__version__ = version("secateur")

from secateur.benchmark.measuring import bench
from secateur.benchmark.plan import plan
from secateur.errors import InputError
from secateur.evaluate.evaluation import evaluate
from secateur.formats.packing import pack, unpack
from secateur.in_memory import prune_module
from secateur.inspection import inspect
from secateur.pipeline import prune
from secateur.recipe import Recipe
from secateur.runtime.generation import generate
from secateur.runtime.loading import load
from secateur.verification import verify

__all__ = [
    "InputError",
    "Recipe",
    "__version__",
    "bench",
    "evaluate",
    "generate",
    "inspect",
    "load",
    "pack",
    "plan",
    "prune",
    "prune_module",
    "unpack",
    "verify",
]
