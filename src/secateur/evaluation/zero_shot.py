"""Tasks: which of a few answers a model finds likeliest, asked through EleutherAI's lm-eval.

lm-eval asks and scores, with its own prompts, so that scores compare with published ones of the same version
of it. Here its tasks are found before any long work, and what it reads is kept from running as Python.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.data import start_of
from secateur.digests import digest
from secateur.errors import InputError, install
from secateur.evaluation.memory import tokens_at_a_time
from secateur.evaluation.task_files import read_tasks
from secateur.options import Bos
from secateur.progress import Progress

# Named after the paper that reports them: RIA, Tables 3 and 6.
GROUPS = {"ria": ("hellaswag", "boolq", "arc_challenge", "mnli", "rte")}
# A question with its answer is mostly shorter; lm-eval sorts by length, so that little is padded.
TOKENS_PER_REQUEST = 512
# For the standard errors of what is not a mean: enough for two digits of them, where lm-eval draws 100,000.
RESAMPLES = 1000
SEED = 1234  # lm-eval's own


@dataclass(frozen=True)
class TaskScore:
    """One metric of one model on one task.

    Attributes:
        task: the task, or a group of tasks that has a score of its own.
        metric: lm-eval's name of it, with the filter of the answers where there is one.
        score: as lm-eval gives it; accuracies are shares of 1.
        standard_error: of ``score``, over the items; None where lm-eval gives none.
        items: number of questions; None for a group.
        shots: examples before each question; None for a group.
        part_of: the group whose score holds this one.
        right: a digit for each item, in their order: 1 where the answer was right, else 0; None where the metric is not
            of that kind, and for a group.
        items_sha256: of all that was asked: questions with their examples, answers, and which of them is right.
            Answers of two models compare item by item when it is equal.
    """

    task: str
    metric: str
    score: float
    standard_error: float | None
    items: int | None
    shots: int | None
    part_of: str | None
    right: str | None = None
    items_sha256: str | None = None


def first_metrics(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """The first metric of each task that is not part of a group."""
    firsts: dict[str, TaskScore] = {}
    for score in scores:
        if score.part_of is None:
            firsts.setdefault(score.task, score)
    return list(firsts.values())


def find_tasks(names: Sequence[str], files: str | Path | None = None, shots: int | None = None) -> dict[str, Any]:
    """Find tasks and load their questions.

    Args:
        names: as :func:`secateur.evaluation.evaluate` takes them; none for all that ``files`` holds.
        files: a folder of task files.
        shots: examples before each question; by default what the task says. As in lm-eval, a task that says 0 keeps it.
    Returns:
        lm-eval's tasks and groups by name, under ``"tasks"`` and ``"groups"``.
    Raises:
        InputError: when lm-eval is not installed, a name is unknown, or the questions cannot be had.
    """
    with _guarded():
        local = read_tasks(Path(files)) if files else {}
        wanted = [task for name in names or local for task in ((name,) if name in local else GROUPS.get(name, (name,)))]
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_defaults=not set(wanted) <= set(local))
        # A name that is none would be taken for the path of a task file, whose Python would run.
        if unknown := [name for name in wanted if name not in local and name not in manager.all_tasks]:
            known = f", nor of {files} ({', '.join(local)})" if local else ""
            raise InputError(f"{', '.join(unknown)}: not the name of a task of lm-eval{known} (--tasks)")
        found: list[Any] = []
        for name in dict.fromkeys(wanted):
            try:
                if name in local:
                    found.append(ConfigurableTask(config=local[name]))
                    continue
                loaded = manager.load(name)
            except Exception as error:  # whatever lm-eval, datasets, the hub or a template raises
                raise _unusable(name, name in local, error) from error
            group = loaded.get("groups", {}).get(name)
            found += [group] if group else loaded["tasks"].values()  # a tag of lm-eval names tasks, but is no group
        tasks: dict[str, Any] = manager.load(found)
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        task.set_config("num_fewshot", own or 0 if shots is None or own == 0 else shots)
    return tasks


def score(
    model: nn.Module,
    tokenizer: Any,
    tasks: dict[str, Any],
    *,
    free: int,
    limit: int | None = None,
    bos: Bos = "once",
    progress: Progress | None = None,
    name: str = "the model",
) -> list[TaskScore]:
    """Ask a loaded model.

    Args:
        tasks: from :func:`find_tasks`.
        free: bytes that its activations may take.
        limit: use only so many items of each.
        bos: what each request begins with, settled: BOS, what the tokenizer puts there by itself, or nothing.
        progress: is told how far it is, under the model's ``name``.

    Raises:
        InputError: when a task cannot be asked in this way.
    """
    progress = progress or Progress()
    with _guarded():
        from jinja2 import TemplateError
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise InputError(f"{name} cannot be asked: its tokenizer has neither a first token (bos) nor a last (eos)")
        for task in tasks["tasks"].values():
            task.set_fewshot_seed(SEED)  # again for each model, so that all are shown the same examples
        vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        fits = tokens_at_a_time(vocabulary, next(model.parameters()).device, free) // TOKENS_PER_REQUEST
        if bos == "each" and start_of(tokenizer, "once") != start_of(tokenizer, "each"):
            tokenizer.add_bos_token = True  # lm-eval's own option of that name asks for what the tokenizer adds
        adds = False if bos == "never" else None
        asker = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=max(1, fits), add_bos_token=adds)
        for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(asker, kind, _heard(getattr(asker, kind), f"tasks of {name}", progress))
        hook = model.register_forward_hook(lambda _, __, output: progress.advance(len(output.logits)))
        try:
            results = evaluate(asker, tasks, limit=limit, bootstrap_iters=RESAMPLES)
        except (ValueError, TypeError, AssertionError, TemplateError) as error:
            raise InputError(f"lm-eval cannot ask these tasks: {_first_line(error)}") from error
        finally:
            hook.remove()
    return list(_scores(results))


def _scores(results: dict[str, Any]) -> Iterator[TaskScore]:
    own = results.get("groups", {})
    parts = {child: group for group in own for child in results["group_subtasks"][group]}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, answers = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{answers}")
            asked = [one for one in results["samples"].get(task, ()) if one["filter"] == answers]
            yield TaskScore(
                task=task,
                metric=metric if answers == "none" else f"{metric} ({answers})",
                score=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                items=results["n-samples"].get(task, {}).get("effective"),
                shots=results["n-shot"].get(task) if task not in own else None,
                part_of=parts.get(task),
                right=_right(asked, metric),
                items_sha256=_digest(asked) if asked else None,
            )


def _digest(asked: Sequence[dict[str, Any]]) -> str:
    return digest(repr([(one["doc_id"], one["arguments"], one["target"]) for one in asked]))


def _right(asked: Sequence[dict[str, Any]], metric: str) -> str | None:
    """Which answers were right, if the metric is 1 or 0 for each."""
    values = [one[metric] for one in asked if metric in one]
    return "".join(str(int(value)) for value in values) if values and all(x in (0, 1) for x in values) else None


def _heard(ask: Callable[..., Any], what: str, progress: Progress) -> Callable[[Sequence[Any]], Any]:
    """``ask``, its own bars silenced and its requests announced to ``progress``."""

    def run(requests: Sequence[Any]) -> Any:
        progress.start(what, len(requests), "answers")
        return ask(requests, disable_tqdm=True)

    return run


@contextmanager
def _guarded() -> Iterator[None]:
    """Import lm-eval, render its templates in Jinja's sandbox, and let it fetch no metrics, which are Python."""
    try:
        import evaluate as metrics
        from jinja2.sandbox import SandboxedEnvironment
        from lm_eval import utils
    except ImportError as error:
        raise InputError(f"tasks need lm-eval ({error}): {install('tasks')}") from None
    free, fetch = utils.env, metrics.load
    metrics.load = _refuse
    utils.env = SandboxedEnvironment(undefined=free.undefined, keep_trailing_newline=free.keep_trailing_newline)
    utils.env.filters |= free.filters
    try:
        yield
    finally:
        utils.env, metrics.load = free, fetch


def _refuse(metric: str, *_: Any, **__: Any) -> None:
    raise InputError(f"the metric {metric} lies on the hub as Python, which is not run")


def _unusable(name: str, local: bool, error: Exception) -> InputError:
    advice = "mend its file" if local else "check the connection, or give its data in files of your own (--task-files)"
    return InputError(f"task {name} cannot be used ({_first_line(error)}); {advice}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
