"""Evaluate written models: each is loaded once, and does every text and task."""

import gc
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import data as texts
from secateur.checkpoint import Source, check_there, local_folder
from secateur.devices import check_dtype, choose_device, choose_dtype, free_memory
from secateur.errors import InputError
from secateur.evaluation.cards import folders_with_cards, write_results
from secateur.evaluation.divergence import Reference
from secateur.evaluation.memory import free_beside
from secateur.evaluation.perplexity import CPU, Perplexity, cut, measure
from secateur.evaluation.zero_shot import TaskScore, find_tasks, score
from secateur.memory import Room
from secateur.options import Bos, check_bos
from secateur.progress import Progress
from secateur.runtime.loading import FREE, load
from secateur.runtime.offloading import offload
from secateur.sizes import parse_size


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
    column: str | None = None,
    split: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    bos: Bos = "auto",
    tasks: Sequence[str] | str = (),
    task_files: str | Path | None = None,
    task_limit: int | None = None,
    shots: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    memory: str | None = None,
    card: bool = False,
    dense: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure written models, one after the other, on the same texts and tasks.

    Each is compared with the dense model, token by token, where it has the same vocabulary and reads the same tokens.

    Args:
        models: hub names, folders or ``.gguf`` files; one of them, or several.
        data: the texts, as :mod:`secateur.data.sources` names them; ``wikitext2`` if there are no tasks either.
        column: of text or of chats, in those of the texts that have columns; by default ``text``, ``messages``,
            ``conversations``, or the only one of strings.
        split: of those that are hub datasets; by default ``test``, ``validation`` or ``train``, the first there is.
        window: tokens per window; by default the model's context, at most 2048.
        stride: tokens from one window to the next; by default the window, so that none overlap.
        limit: use only so many windows of each text.
        bos: where the token that begins a text stands: in ``each`` window, ``once`` before the whole text if the
            tokenizer puts one there, or ``never``; ``auto`` is ``each`` for Gemma, else ``once``; see
            :mod:`secateur.data.bos`. In tasks: before each question, as the tokenizer has it, or never.
        tasks: names of lm-eval tasks or groups, of tasks in ``task_files``, or a group of
            :data:`secateur.evaluation.zero_shot.GROUPS`; by default all tasks in ``task_files``.
        task_files: a folder of task files, whose names go before lm-eval's own.
        task_limit: use only so many items of each task.
        shots: examples before each question; by default what the task says, which is mostly none.
        device: ``auto``, ``cpu``, ``cuda`` …
        dtype: ``auto`` (float32 on a CPU, the checkpoint's own on a GPU), ``float32``, ``bfloat16``, ``float16``.
        memory: how much of the device's memory may be used, such as ``8GB``; by default what is free. Of a model that
            needs more one block is in memory at a time: it is read once for all texts, and once for each batch of
            questions.
        card: write what is measured into the cards of those of the models that Secateur wrote.
        dense: the dense model, which reads the texts too and is not among the results; by default the first of several.
        progress: is told how far it is.

    Raises:
        InputError: when a model, a text or a task cannot be used.
    """
    names = [str(model) for model in _listed(models)]
    asked, wanted = _listed(data or []), _listed(tasks)
    for option, value, least in (("limit", limit, 1), ("task-limit", task_limit, 1), ("shots", shots, 0)):
        if value is not None and value < least:
            raise InputError(f"--{option} must be at least {least}, not {value}")
    if not names:
        raise InputError("there is no model to evaluate")
    check_dtype(dtype)
    check_bos(bos)
    if memory is not None:
        parse_size(memory)
    if data is None and not wanted and not task_files:
        asked = ["wikitext2"]
    texts.check_choice(asked, column, split)
    progress = progress or Progress()
    chosen = choose_device(device)
    need = limit * (window or 2048) if limit else None
    aside = [] if dense is None else [str(dense)]
    for name in (*aside, *names):  # before a text is fetched
        check_there(name)
    carded = folders_with_cards(names) if card else []
    sources = [texts.load_text(source, "evaluation", need, column=column, split=split) for source in asked]
    found = find_tasks(wanted, task_files, shots) if wanted or task_files else None
    compares = bool(sources) and len(aside) + len(names) > 1
    reference: Reference | None = None

    def one(name: str, asks: bool, room: Room | None) -> Evaluation:
        """Measure a model, and keep in ``room`` what the others are compared with, if there is one."""
        nonlocal reference
        with local_folder(name) as folder:
            source, keep = Source(folder), None
            tokenizer, precision = source.tokenizer(), choose_dtype(dtype, source.precision, chosen)
            settled = texts.settle_bos(bos, tokenizer, source.config)
            cuts = [
                cut(text, tokenizer, source.config, window=window, stride=stride, limit=limit, bos=settled)
                for text in sources
            ]
            model = load(folder, precision, chosen, memory=_beside(reference, memory) or FREE)
            if room:
                with suppress(InputError):  # where it has no blocks of which one runs after the other
                    outside = model if model.offloaded else offload(source, precision, chosen)
                    keep = Reference(outside, [each.windows for each in cuts], room)
            free = free_beside(model, _beside(reference if model.offloaded else reference or keep, memory))
            perplexities = measure(model, cuts, free=free, reference=reference, keep=keep, progress=progress, name=name)
            reference = reference or keep
            scores = []
            if found and asks:
                with redirect_stdout(None):  # lm-eval prints there, amid results
                    scores = score(
                        model, tokenizer, found, free=free, limit=task_limit, bos=settled, progress=progress, name=name
                    )
        return Evaluation(name, str(precision).removeprefix("torch."), tuple(perplexities), tuple(scores))

    results = []
    # A bound on the host's memory leaves none for hidden states, which wait in a file then.
    bounded = memory is not None and chosen.type == "cpu"
    with progress, Room({} if bounded else {CPU: free_memory(CPU) // 4}) as room:
        for number, name in enumerate((*aside, *names)):
            result = one(name, number >= len(aside), room if compares and not number else None)
            gc.collect()  # lm-eval's wrapper refers to itself, and with it to the model: two would be in memory
            if number < len(aside):
                continue
            results.append(result)
            if name in carded:
                write_results(Path(name), result.texts, result.tasks)
    return results


def _beside(reference: Reference | None, memory: str | None) -> str | None:
    """What is left of so much memory beside what is kept of the dense model."""
    return memory and str(max(1, parse_size(memory) - (reference.nbytes if reference else 0)))


def _listed(names: Sequence[str | Path] | str | Path) -> list[Any]:
    return [names] if isinstance(names, str | Path) else list(names)
