"""What models lost or won against the dense one, and how much of the loss was prevented."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from secateur.evaluation.evaluate import Evaluation
from secateur.evaluation.perplexity import Perplexity
from secateur.evaluation.uncertainty import CONFIDENCE, interval, mcnemar, paired_interval
from secateur.evaluation.zero_shot import TaskScore


@dataclass(frozen=True)
class Comparison:
    """One model against the dense one, on one text.

    Attributes:
        data: the text, as it was named.
        rise: P / P(dense) − 1.
        rise_low: lower end of its 95 % interval, from the differences of the blocks' mean log-likelihoods: both
            models read the same tokens, so that what makes a text hard cancels. None when there are too few.
        rise_high: upper end.
        prevented: share of the baseline's rise that this model avoids, (P(A) − P(B)) / (P(A) − P(dense)) with A
            the baseline and B this model (RIA, Appendix J). None for the baseline itself, or when it lost nothing.
    """

    data: str
    rise: float
    rise_low: float | None
    rise_high: float | None
    prevented: float | None

    @property
    def better(self) -> bool:
        """Whether the model is better than the dense one beyond chance, window by window."""
        return self.rise_high is not None and self.rise_high < 0


@dataclass(frozen=True)
class TaskComparison:
    """One model against the dense one, by one metric of one task, item by item.

    Attributes:
        task: the task.
        metric: the metric, which is 1 or 0 for each item.
        gained: the number of items that this model gets right and the dense one does not.
        lost: the number of those of which the opposite is true.
        difference: of the scores: (gained - lost) / items.
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: how likely so uneven a pair of gained and lost is where neither model is better, by McNemar's exact
            test, two-sided.
    """

    task: str
    metric: str
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def better(self) -> bool:
        """Whether the model is better than the dense one beyond chance."""
        return self.gained > self.lost and self.p_value < 1 - CONFIDENCE


def compare(results: Sequence[Evaluation]) -> list[list[Comparison | None]]:
    """Per model and text, the comparison with the dense model; None for the dense one, and where tokens differ.

    Args:
        results: the dense model, the baseline, and any others, all measured on the same texts.
    """
    rows: list[list[Comparison | None]] = [[None] * len(results[0].texts)]
    for place, model in enumerate(results[1:]):
        baselines = results[1].texts if place else [None] * len(model.texts)
        rows.append([_against(*texts) for texts in zip(results[0].texts, baselines, model.texts, strict=True)])
    return rows


def compare_task(dense: TaskScore, model: TaskScore) -> TaskComparison | None:
    """The comparison by one metric; None where it is not 1 or 0 for each item, or the items are not the same."""
    known = dense.right is not None and model.right is not None and model.items_sha256 == dense.items_sha256
    if not known or (dense.task, dense.metric) != (model.task, model.metric):
        return None
    pairs = list(zip(model.right or "", dense.right or "", strict=True))
    gained, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
    low, high = paired_interval(gained, lost, len(pairs))
    difference = (gained - lost) / len(pairs)
    return TaskComparison(model.task, model.metric, gained, lost, difference, low, high, mcnemar(gained, lost))


def compare_tasks(results: Sequence[Evaluation]) -> list[list[TaskComparison | None]]:
    """Per model and metric of a task, the comparison with the first model; None for that, and as above."""
    first, *others = results
    rows: list[list[TaskComparison | None]] = [[None] * len(first.tasks)]
    return rows + [[compare_task(*scores) for scores in zip(first.tasks, one.tasks, strict=True)] for one in others]


def document(results: Sequence[Evaluation]) -> dict[str, Any]:
    """All of it as one JSON document, the comparisons beside the texts of each model."""
    rows = zip(results, compare(results), compare_tasks(results), strict=True)
    return {
        "models": [
            asdict(result)
            | {"against_dense": [against and asdict(against) for against in texts]}
            | {"tasks_against_dense": [against and asdict(against) for against in tasks]}
            for result, texts, tasks in rows
        ]
    }


def _against(dense: Perplexity, baseline: Perplexity | None, model: Perplexity) -> Comparison | None:
    if model.tokens_sha256 != dense.tokens_sha256:
        return None  # per token of another tokenizer: not the same unit
    differences = [ours - theirs for ours, theirs in zip(model.block_nll, dense.block_nll, strict=True)]
    between = interval(model.nll - dense.nll, differences)
    return Comparison(
        data=model.data,
        rise=math.expm1(min(model.nll - dense.nll, 700)),
        rise_low=math.expm1(min(between[0], 700)) if between else None,
        rise_high=math.expm1(min(between[1], 700)) if between else None,
        prevented=_prevented(dense, baseline, model) if baseline else None,
    )


def _prevented(dense: Perplexity, baseline: Perplexity, model: Perplexity) -> float | None:
    drop = baseline.perplexity - dense.perplexity
    comparable = baseline.tokens_sha256 == dense.tokens_sha256 and 0 < drop < math.inf
    return (baseline.perplexity - model.perplexity) / drop if comparable else None
