"""Models side by side, as they were measured."""

from collections.abc import Sequence
from statistics import fmean

from secateur.console.tables import Cell, Grid
from secateur.evaluation.comparison import Comparison, compare, compare_task
from secateur.evaluation.divergence import Divergence
from secateur.evaluation.evaluate import Evaluation
from secateur.evaluation.perplexity import Perplexity
from secateur.evaluation.zero_shot import TaskScore, first_metrics

_BOS = {"once": "", "each": ", BOS in each", "never": ", without BOS"}


def evaluation_table(results: Sequence[Evaluation]) -> Grid:
    """Models side by side, the first of them the dense one: a column per text and task.

    Of each text the perplexity, its 95 % interval, the rise against the dense model with the interval of that, the
    share of the second model's rise that was prevented, and the KL divergence from the dense model and the share of
    tokens at which both would say the same, with theirs. Of each task the first metric, with its standard error. A star
    is at what is better than the dense model's beyond chance, by paired differences.
    """
    first = results[0]
    tasks = first_metrics(first.tasks)
    columns: list[Cell] = [
        "model",
        *(
            (f"perplexity on {text.data}", "95 % interval", "rise", "of it prevented", "KL, nats", "top-1 agreement")
            for text in first.texts
        ),
        *(f"{task.task} {task.metric}, %" for task in tasks),
        *(["mean"] if len(tasks) > 1 else []),
    ]
    table = Grid("; ".join(map(_windows, first.texts)), columns)
    for result, row in zip(results, compare(results), strict=True):
        texts = [_perplexity(*each) for each in zip(result.texts, row, strict=True)]
        scores = first_metrics(result.tasks)
        mean = [f"{100 * fmean(task.score for task in scores):.1f}"] if len(scores) > 1 else []
        table.add(result.model, *texts, *map(_score, tasks, scores), *mean)
    return table


def _windows(text: Perplexity) -> str:
    """How much of a text was read."""
    stride = f", one every {text.stride}" if text.stride < text.window - (text.bos == "each") else ""
    chosen = "".join(f", {name} {value}" for name, value in (("column", text.column), ("split", text.split)) if value)
    return f"{text.data}{chosen}: {text.windows} windows of {text.window} tokens{stride}{_BOS[text.bos]}"


def _perplexity(text: Perplexity, against: Comparison | None) -> tuple[str, ...]:
    interval = f"{text.low:,.2f} – {text.high:,.2f}" if text.low is not None and text.high is not None else ""
    rise = prevented = ""
    if against:
        between = f" ({against.rise_low:,.0%} – {against.rise_high:,.0%})" if against.rise_low is not None else ""
        rise = f"{against.rise:+,.1%}{between}"
        prevented = f"{against.prevented:,.0%}" if against.prevented is not None else ""
    star = "*" * bool(against and against.better)
    return f"{text.perplexity:,.2f}{star}", interval, rise, prevented, *_divergence(text.divergence)


def _divergence(found: Divergence | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    kl = f" ({found.kl_low:.3g} – {found.kl_high:.3g})" if found.kl_low is not None else ""
    top1 = f" ({found.top1_low:.1%} – {found.top1_high:.1%})" if found.top1_low is not None else ""
    return f"{found.kl:.3g}{kl}", f"{found.top1:.1%}{top1}"


def _score(dense: TaskScore, task: TaskScore) -> str:
    against = compare_task(dense, task)
    error = f" ± {100 * task.standard_error:.1f}" if task.standard_error is not None else ""
    return f"{100 * task.score:.1f}{error}" + "*" * bool(against and against.better)
