"""Secateur prunes large language models after training.

Names are imported when they are first used: torch and transformers take seconds, and ``secateur --help`` needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError

if TYPE_CHECKING:
    from secateur.benchmark.measuring import bench
    from secateur.budget import compress
    from secateur.evaluation.evaluate import evaluate
    from secateur.exporting.gguf import export
    from secateur.exporting.hub import push
    from secateur.inspection import inspect
    from secateur.masking import apply, mask
    from secateur.packing import pack, unpack
    from secateur.planning.plan import plan
    from secateur.pruning.folder import prune
    from secateur.pruning.module import prune_module
    from secateur.quantizing import quantize
    from secateur.recipe import QuantizationRecipe, Recipe
    from secateur.runtime.generation import generate
    from secateur.runtime.loading import load
    from secateur.shrinkage import Shrinkage
    from secateur.shrinking.folder import shrink
    from secateur.sweeps.sweep import sweep
    from secateur.verification.verify import verify

    __version__: str

__all__ = [
    "InputError",
    "QuantizationRecipe",
    "Recipe",
    "Shrinkage",
    "__version__",
    "apply",
    "bench",
    "compress",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "load",
    "mask",
    "pack",
    "plan",
    "prune",
    "prune_module",
    "push",
    "quantize",
    "shrink",
    "sweep",
    "unpack",
    "verify",
]

_HOMES = {
    "QuantizationRecipe": "secateur.recipe",
    "Recipe": "secateur.recipe",
    "Shrinkage": "secateur.shrinkage",
    "apply": "secateur.masking",
    "bench": "secateur.benchmark.measuring",
    "compress": "secateur.budget",
    "evaluate": "secateur.evaluation.evaluate",
    "export": "secateur.exporting.gguf",
    "generate": "secateur.runtime.generation",
    "inspect": "secateur.inspection",
    "load": "secateur.runtime.loading",
    "mask": "secateur.masking",
    "pack": "secateur.packing",
    "plan": "secateur.planning.plan",
    "prune": "secateur.pruning.folder",
    "prune_module": "secateur.pruning.module",
    "push": "secateur.exporting.hub",
    "quantize": "secateur.quantizing",
    "shrink": "secateur.shrinking.folder",
    "sweep": "secateur.sweeps.sweep",
    "unpack": "secateur.packing",
    "verify": "secateur.verification.verify",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("secateur")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    globals()[name] = value  # the next time it is found at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
