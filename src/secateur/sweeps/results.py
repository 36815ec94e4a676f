"""What became of a sweep: its rows, and their means over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from secateur.evaluation.comparison import Comparison, compare, compare_task
from secateur.evaluation.divergence import Divergence
from secateur.evaluation.evaluate import Evaluation
from secateur.evaluation.zero_shot import TaskScore, first_metrics
from secateur.recipe import QuantizationRecipe
from secateur.sweeps.chains import as_data
from secateur.sweeps.grid import Grid, Row
from secateur.sweeps.variants import Skipped, Variant
from secateur.sweeps.work import Outcome

# The figures of a :class:`~secateur.evaluation.divergence.Divergence`.
DIVERGENCE = tuple(field.name for field in fields(Divergence))


@dataclass(frozen=True)
class Entry:
    """One row, and what became of it.

    Attributes:
        row: the row.
        id: what it is filed under: rows that are the same computation share it.
        outcome: what became of it.
        model: the folder of what its steps came to, if models are kept.
    """

    row: Row
    id: str
    outcome: Outcome
    model: Path | None = None


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        deviation: the sample standard deviation; None of a single one.
    """

    value: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """That of at least one value."""
        finite = all(abs(value) < float("inf") for value in values)
        return cls(fmean(values), stdev(values) if len(values) > 1 and finite else None)


@dataclass(frozen=True)
class TextSummary:
    """A variant on one text.

    Intervals are 95 % over texts of the same kind, and each end is the mean of those of the rows: it does not shrink
    with more seeds, which all read the same text.

    Attributes:
        data: the text, as it was named.
        perplexity: over the seeds.
        low: lower end of its interval; None when there are too few windows to tell.
        high: upper end.
        rise: P / P(dense) − 1; None for the dense model, or where tokens differ.
        rise_low: lower end of its interval, window by window against the dense model.
        rise_high: upper end.
        prevented: share of the baseline's rise that this variant avoids (RIA, Appendix J), seed by seed; None for the
            baseline itself and where there is none.
        kl: KL divergence from the dense model, in nats per token; None for that one, or where tokens differ.
        kl_low: lower end of its interval.
        kl_high: upper end.
        top1: share of tokens for which the dense model finds the same next token likeliest.
        top1_low: lower end of its interval.
        top1_high: upper end.
        better: whether each row is better than the dense model beyond chance.
    """

    data: str
    perplexity: Mean
    low: float | None
    high: float | None
    rise: float | None
    rise_low: float | None
    rise_high: float | None
    prevented: float | None
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    top1: float | None
    top1_low: float | None
    top1_high: float | None
    better: bool


@dataclass(frozen=True)
class TaskSummary:
    """A variant on one task.

    Attributes:
        task: its name.
        metric: its first one.
        score: over the seeds.
        standard_error: over the items, the mean of those of the rows.
        difference: to the score of the dense model; None for that one, and where items are not the same or not told
            right from wrong.
        low: lower end of its 95 % interval, item by item against the dense model; the mean of those of the rows.
        high: upper end.
        p_value: of McNemar's exact test against the dense model, the largest of the rows.
        better: whether each row is better than the dense model beyond chance.
    """

    task: str
    metric: str
    score: Mean
    standard_error: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    better: bool


@dataclass(frozen=True)
class Summary:
    """A model treated in one way: the mean of its rows.

    Attributes:
        model: the model's label.
        labels: the variant's.
        rows: the number of rows that it is the mean of: seeds, where they make a difference.
        failures: why others are missing.
        texts: per text; none if there are no rows.
        tasks: per task.
        sparsity: of the pruned linears.
        retained: share of the score, the mean over linears.
        relative_error: of the linears' outputs.
        gone: share of the weights that structured pruning has removed.
        bits: of a weight, where quantizing is the last step; scales and zero-points included.
        seconds: a row.
    """

    model: str
    labels: tuple[str, ...]
    rows: int
    failures: tuple[str, ...]
    texts: tuple[TextSummary, ...]
    tasks: tuple[TaskSummary, ...]
    sparsity: float | None
    retained: float | None
    relative_error: float | None
    gone: float | None
    bits: float | None
    seconds: float | None


@dataclass(frozen=True)
class Results:
    """A sweep, as far as it has come.

    Attributes:
        axes: the names of the axes.
        entries: all rows that are finished or have failed, the dense one of each model first.
        summaries: one for each model and variant that has an entry.
        skipped: combinations that make no row.
    """

    axes: tuple[str, ...]
    entries: tuple[Entry, ...]
    summaries: tuple[Summary, ...]
    skipped: tuple[Skipped, ...]

    @classmethod
    def of(cls, grid: Grid, entries: Sequence[Entry], skipped: Sequence[Skipped] = ()) -> "Results":
        """The entries with their summaries."""
        places: dict[tuple[str, tuple[str, ...]], list[Entry]] = {}
        for entry in entries:
            places.setdefault((entry.row.model, entry.row.variant.labels), []).append(entry)
        summaries = [_summary(grid, found[0].row.variant, found, places) for found in places.values()]
        return cls(grid.axes, tuple(entries), tuple(summaries), tuple(skipped))

    @property
    def failed(self) -> tuple[Entry, ...]:
        """The rows that failed."""
        return tuple(entry for entry in self.entries if entry.outcome.failure)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, the same from the same rows."""
        return {
            "axes": self.axes,
            "summaries": [asdict(one) | {"labels": self.by_axis(one.labels)} for one in self.summaries],
            "rows": [
                {
                    "model": entry.row.model,
                    "labels": self.by_axis(entry.row.variant.labels),
                    "seed": entry.row.seed,
                    "steps": as_data(entry.row.steps),
                    "id": entry.id,
                    **asdict(entry.outcome),
                }
                for entry in self.entries
            ],
            "skipped": [asdict(one) | {"labels": self.by_axis(one.labels)} for one in self.skipped],
        }

    def by_axis(self, labels: Iterable[str]) -> dict[str, str]:
        """Labels by the names of their axes."""
        return dict(zip(self.axes, labels, strict=True))


def _summary(
    grid: Grid, variant: Variant, entries: list[Entry], places: Mapping[tuple[str, tuple[str, ...]], list[Entry]]
) -> Summary:
    model = entries[0].row.model
    dense = _evaluated(places.get((model, grid.dense.labels), []))
    labels = grid.baseline_of(variant)
    baseline = _evaluated(places.get((model, labels), [])) if labels not in (None, variant.labels) else {}
    measured = _evaluated(entries)
    against = [
        _against(evaluation, dense.get(None), baseline.get(seed) or (_only(baseline)))
        for seed, evaluation in measured.items()
        if seed is not None
    ]
    done = [entry.outcome for entry in entries if not entry.outcome.failure]
    evaluations = list(measured.values())
    prunings = [outcome.pruning for outcome in done if outcome.pruning]
    last = [entry.row.steps[-1] for entry in entries if entry.row.steps]
    quantized = bool(last) and isinstance(last[0], QuantizationRecipe)
    errors = [pruning.relative_error for pruning in prunings]
    return Summary(
        model=model,
        labels=variant.labels,
        rows=len(done),
        failures=tuple(entry.outcome.failure for entry in entries if entry.outcome.failure),
        texts=_texts(evaluations, against),
        tasks=_tasks(evaluations, dense.get(None) if variant != grid.dense else None),
        sparsity=_mean([pruning.sparsity for pruning in prunings]),
        retained=_mean([pruning.retained for pruning in prunings]),
        relative_error=_mean(errors),
        gone=_mean([outcome.shrinking.gone for outcome in done if outcome.shrinking]),
        bits=_mean([found.bits_per_weight for one in done if (found := one.quantization) and quantized]),
        seconds=_mean([outcome.seconds for outcome in done]),
    )


def _evaluated(entries: Iterable[Entry]) -> dict[int | None, Evaluation]:
    """What was measured, by seed; None is that of the dense model."""
    return {entry.row.seed: entry.outcome.evaluation for entry in entries if entry.outcome.evaluation}


def _only(baseline: Mapping[int | None, Evaluation]) -> Evaluation | None:
    """The baseline's one row, where seeds make no difference to it."""
    return next(iter(baseline.values())) if len(baseline) == 1 else None


def _against(model: Evaluation, dense: Evaluation | None, baseline: Evaluation | None) -> list[Comparison | None]:
    """Per text, the comparison of one row with the dense model and the baseline."""
    if dense is None:
        return [None] * len(model.texts)
    return compare([dense, baseline, model] if baseline else [dense, model])[-1]


def _texts(evaluations: list[Evaluation], against: list[list[Comparison | None]]) -> tuple[TextSummary, ...]:
    summaries = []
    for place, first in enumerate(evaluations[0].texts if evaluations else ()):
        texts = [evaluation.texts[place] for evaluation in evaluations]
        compared = [row[place] for row in against]
        rises = [one for one in compared if one] if compared and None not in compared else []
        far = [text.divergence for text in texts]
        summaries.append(
            TextSummary(
                data=first.data,
                perplexity=Mean.of([text.perplexity for text in texts]),
                low=_mean([text.low for text in texts]),
                high=_mean([text.high for text in texts]),
                rise=_mean([one.rise for one in rises]),
                rise_low=_mean([one.rise_low for one in rises]),
                rise_high=_mean([one.rise_high for one in rises]),
                prevented=_mean([one.prevented for one in rises]),
                **{name: _mean([getattr(one, name, None) for one in far]) for name in DIVERGENCE},
                better=bool(rises) and all(one.better for one in rises),
            )
        )
    return tuple(summaries)


def _tasks(evaluations: list[Evaluation], dense: Evaluation | None) -> tuple[TaskSummary, ...]:
    columns = zip(*(first_metrics(evaluation.tasks) for evaluation in evaluations), strict=True)
    own = first_metrics(dense.tasks) if dense else []
    return tuple(_task(*pair) for pair in zip_longest(columns, own if evaluations else []))


def _task(scores: Sequence[TaskScore], dense: TaskScore | None) -> TaskSummary:
    compared = [compare_task(dense, score) for score in scores] if dense else []
    known = [one for one in compared if one] if None not in compared else []
    return TaskSummary(
        task=scores[0].task,
        metric=scores[0].metric,
        score=Mean.of([score.score for score in scores]),
        standard_error=_mean([score.standard_error for score in scores]),
        difference=_mean([one.difference for one in known]),
        low=_mean([one.low for one in known]),
        high=_mean([one.high for one in known]),
        p_value=max((one.p_value for one in known), default=None),
        better=bool(known) and all(one.better for one in known),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """None if one of them is, or there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
