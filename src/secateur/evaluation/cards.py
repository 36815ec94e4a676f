"""What has been measured, written into the cards of the models that Secateur wrote.

A card's metadata has the figures (the hub's ``model-index``), and its text a table of them. A figure of the same text
or task, measured in the same way, is replaced; all else in the card stays, since anyone may have edited it.
"""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from secateur.checkpoint import CARD, MANIFEST, MEASURED, MEASURED_END
from secateur.checkpoint.durable import replacing
from secateur.data import hub_dataset, public_name
from secateur.errors import InputError, reason
from secateur.evaluation.perplexity import Perplexity
from secateur.evaluation.zero_shot import TaskScore
from secateur.files import member, read_text

_KIND = "text-generation"


def folders_with_cards(models: Sequence[str]) -> list[str]:
    """Those of the models that Secateur wrote, whose cards can be written to.

    Raises:
        InputError: when there are none, or a card cannot be read or written.
    """
    written = [model for model in models if (Path(model) / MANIFEST).is_file() and member(Path(model), CARD)]
    if not written:
        raise InputError(f"none of {', '.join(models)} is a folder that Secateur wrote with a card ({CARD}): --card")
    for model in written:
        _read(Path(model))
        if not os.access(model, os.W_OK):
            raise InputError(f"{model} cannot be written to, and its card is there: leave --card out")
    return written


def write_results(folder: Path, texts: Sequence[Perplexity], tasks: Sequence[TaskScore]) -> None:
    """Write what was measured into the card of a folder.

    Raises:
        InputError: when it cannot be read any more.
    """
    card = _read(folder)
    now = [*chain.from_iterable(map(_of_text, texts)), *map(_of_task, tasks)]
    results = list({_key(result): result for result in [*(card.data.get("eval_results") or []), *now]}.values())
    card.data["eval_results"] = results
    card.data["model_name"] = card.data.get("model_name") or folder.resolve().name
    before, begin, rest = card.text.partition(MEASURED)
    if begin and MEASURED_END in rest:
        after = rest.partition(MEASURED_END)[2]
        card.text = f"{before}{MEASURED}\n{_table(results)}\n{MEASURED_END}{after}"
    with replacing(folder / CARD) as path:
        path.write_text(str(card), encoding="utf-8", newline="")


def _read(folder: Path) -> ModelCard:
    path = folder / CARD
    try:
        return ModelCard(read_text(path))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no card that results could be written to ({reason(error)}): mend it") from None


def _of_text(text: Perplexity) -> list[EvalResult]:
    known = hub_dataset(text.data)
    far = text.divergence
    figures = {"perplexity": text.perplexity}
    if far:  # KL in nats per token, top-1 as a share of the tokens
        figures |= {"kl_divergence_from_dense": far.kl, "top1_agreement_with_dense": far.top1}
    how: dict[str, Any] = {"windows": text.windows, "window": text.window, "stride": text.stride}
    how |= {name: value for name, value in (("bos", text.bos), ("column", text.column)) if value not in ("once", None)}
    return [
        EvalResult(
            task_type=_KIND,
            dataset_type=known or public_name(text.data),
            dataset_name=public_name(text.data),
            dataset_config=text.data.removeprefix(f"{known}/") if known and text.data.startswith(f"{known}/") else None,
            dataset_split=text.split,
            metric_type=metric,
            metric_value=figure,
            metric_args=how,
        )
        for metric, figure in figures.items()
    ]


def _of_task(score: TaskScore) -> EvalResult:
    counts = {"items": score.items, "shots": score.shots}
    return EvalResult(
        task_type=_KIND,
        dataset_type=score.task,
        dataset_name=score.task,
        metric_type=score.metric,
        metric_value=score.score,
        metric_args={name: count for name, count in counts.items() if count is not None},
    )


def _key(result: EvalResult) -> tuple[str, ...]:
    whose = (result.dataset_type, result.dataset_config, result.dataset_split, result.metric_type, result.metric_args)
    return tuple(map(str, whose))


def _table(results: Sequence[EvalResult]) -> str:
    rows = ["| | | |", "| --- | --- | ---: |"]
    for result in results:
        given = result.metric_args if isinstance(result.metric_args, dict) else {}
        how = ", ".join(f"{name} {value}" for name, value in given.items())
        where = f"{_cell(result.dataset_name)}{', ' if how else ''}{_cell(how)}"
        value = f"{result.metric_value:,.4g}" if isinstance(result.metric_value, int | float) else "?"
        rows.append(f"| {where} | {_cell(result.metric_type)} | {value} |")
    return "\n".join(rows)


def _cell(text: object) -> str:
    """A text of one line in which Markdown, HTML and a table's bars mean nothing."""
    plain = "".join(each if each.isprintable() else " " for each in str(text))
    return "".join(f"&#{ord(each)};" if each in "\\`*_[]<>|&#" else each for each in plain)
