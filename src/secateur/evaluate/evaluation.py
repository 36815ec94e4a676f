"""Evaluate written models: each is loaded once, and does every text and task."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur import data as texts
from secateur.checkpoint import Source, local_folder
from secateur.errors import InputError
from secateur.evaluate.perplexity import Perplexity, measure
from secateur.evaluate.zero_shot import TaskScore, find_tasks, score
from secateur.progress import Progress
from secateur.recipe import choose_device, choose_dtype
from secateur.runtime.loading import load


@dataclass(frozen=True)
class Evaluation:
    """How one model did.

    Attributes:
        model: the model, as it was named.
        dtype: the precision of the computation.
        texts: its perplexities, in the order of the texts.
        tasks: its scores, in the order of the tasks.
    """

    model: str
    dtype: str
    texts: tuple[Perplexity, ...]
    tasks: tuple[TaskScore, ...]

    @property
    def perplexity(self) -> float:
        """The perplexity on the first text."""
        return self.texts[0].perplexity


def evaluate(
    models: Sequence[str | Path] | str | Path,
    data: Sequence[str] | str | None = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    tasks: Sequence[str] = (),
    task_files: str | Path | None = None,
    task_limit: int | None = None,
    shots: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure written models, one after the other, on the same texts and tasks.

    Args:
        models: hub names, folders or ``.gguf`` files; one of them, or several.
        data: the texts, as :mod:`secateur.data.sources` names them; ``wikitext2`` if there are no tasks either.
        window: tokens per window; by default the model's context, at most 2048.
        stride: tokens from one window to the next; by default the window, so that none overlap.
        limit: use only so many windows of each text.
        tasks: names of lm-eval tasks or groups, of tasks in ``task_files``, or a group of
            :data:`secateur.evaluate.zero_shot.GROUPS`; by default all tasks in ``task_files``.
        task_files: a folder of task files, whose names go before lm-eval's own.
        task_limit: use only so many items of each task.
        shots: examples before each question; by default what the task says, which is mostly none.
        device: ``auto``, ``cpu``, ``cuda`` …
        dtype: ``auto`` (float32 on a CPU, the checkpoint's own on a GPU), ``float32``, ``bfloat16``, ``float16``.
    Raises:
        InputError: when a model, a text or a task cannot be used.
    """
    names = [str(models)] if isinstance(models, str | Path) else [str(model) for model in models]
    for option, value in (("limit", limit), ("task-limit", task_limit)):
        if value is not None and value < 1:
            raise InputError(f"--{option} {value} leaves nothing to evaluate; give 1 or more")
    if not names:
        raise InputError("there is no model to evaluate")
    if data is None:
        data = [] if tasks or task_files else ["wikitext2"]
    progress = progress or Progress()
    chosen = choose_device(device)
    need = limit * (window or 2048) if limit else None
    sources = [texts.load_text(source, "evaluation", need) for source in ([data] if isinstance(data, str) else data)]
    found = find_tasks(tasks, task_files, shots) if tasks or task_files else None
    results = []
    with progress:
        for name in names:
            with local_folder(name) as folder:
                tokenizer = Source(folder).tokenizer()
                model = load(folder)
            precision = choose_dtype(dtype, model.dtype, chosen)
            model.to(chosen, precision)
            perplexities = tuple(
                measure(model, tokenizer, text, window=window, stride=stride, limit=limit, progress=progress, name=name)
                for text in sources
            )
            scores = score(model, tokenizer, found, limit=task_limit, progress=progress, name=name) if found else []
            results.append(Evaluation(name, str(precision).removeprefix("torch."), perplexities, tuple(scores)))
    return results
