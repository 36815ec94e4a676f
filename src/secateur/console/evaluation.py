"""Models side by side, as they were measured."""

from collections.abc import Sequence
from statistics import fmean

from rich.markup import escape
from rich.table import Table

from secateur.evaluation.comparison import Comparison, compare, compare_task
from secateur.evaluation.evaluate import Evaluation
from secateur.evaluation.perplexity import Perplexity
from secateur.evaluation.zero_shot import TaskScore, first_metrics


def evaluation_table(results: Sequence[Evaluation]) -> Table:
    """Models side by side, the first of them the dense one: a column per text and task.

    Below each perplexity is its 95 % interval, then the rise against the dense model and the interval of that, then
    the share of the second model's rise that was prevented. Of each task the first metric is shown, with its standard
    error. A star is at what is better than the dense model's beyond chance, by paired differences.
    """
    first = results[0]
    tasks = first_metrics(first.tasks)
    table = Table(show_lines=any(result.texts for result in results))
    table.add_column("model", overflow="fold")
    for text in first.texts:
        stride = f" every {text.stride}" if text.stride < text.window else ""
        table.add_column(f"perplexity on {text.data}\n{text.windows} × {text.window}{stride}", justify="right")
    for task in tasks:
        table.add_column(f"{task.task}\n{task.metric}, %", justify="right")
    if len(tasks) > 1:
        table.add_column("mean", justify="right")
    for result, row in zip(results, compare(results), strict=True):
        texts = [_perplexity(*each) for each in zip(result.texts, row, strict=True)]
        scores = first_metrics(result.tasks)
        mean = [f"{100 * fmean(task.score for task in scores):.1f}"] if len(scores) > 1 else []
        table.add_row(escape(result.model), *texts, *[_score(*pair) for pair in zip(tasks, scores, strict=True)], *mean)
    return table


def _perplexity(text: Perplexity, against: Comparison | None) -> str:
    lines = [f"{text.perplexity:,.2f}" + "*" * bool(against and against.better)]
    if text.low is not None and text.high is not None:
        lines.append(f"{text.low:,.2f} – {text.high:,.2f}")
    if against:
        between = f" ({against.rise_low:,.0%} – {against.rise_high:,.0%})" if against.rise_low is not None else ""
        lines.append(f"{against.rise:+,.1%}{between}")
        if against.prevented is not None:
            lines.append(f"{against.prevented:,.0%} prevented")
    return "\n".join(lines)


def _score(dense: TaskScore, task: TaskScore) -> str:
    against = compare_task(dense, task)
    error = f" ± {100 * task.standard_error:.1f}" if task.standard_error is not None else ""
    return f"{100 * task.score:.1f}{error}" + "*" * bool(against and against.better)
