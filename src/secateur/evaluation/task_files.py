"""Tasks in a folder of one's own: lm-eval's YAML files beside their data, for machines without a hub.

A file is one task, in the keys of lm-eval that are data. Those that name or hold Python, or that read beyond the
folder, are refused: ``!function``, ``class``, ``include``, scripts for data sets, metrics from the hub. What is
left cannot run code from the folder, save through templates, which are rendered in a sandbox.
"""

from pathlib import Path
from typing import Any

import yaml

from secateur.errors import InputError
from secateur.files import read_text

# Loaders of data files that come with datasets.
LOADERS = ("json", "parquet", "csv")
KEYS = {
    "task", "tag", "dataset_path", "dataset_kwargs",
    "training_split", "validation_split", "test_split", "fewshot_split", "num_fewshot",
    "output_type", "doc_to_text", "doc_to_choice", "doc_to_target", "description",
    "target_delimiter", "fewshot_delimiter", "generation_kwargs", "filter_list", "metric_list",
    "should_decontaminate", "doc_to_decontamination_query", "metadata",
}  # fmt: skip
# Those that lm-eval has itself: any other name it would fetch from the hub, as Python.
METRICS = (
    "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score", "exact_match", "f1", "mcc", "bleu", "chrf", "ter",
    "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte",
)  # fmt: skip
AGGREGATIONS = (
    "mean", "nanmean", "median", "perplexity", "weighted_perplexity", "bits_per_byte", "f1", "matthews_corrcoef",
    "brier_score", "bleu", "chrf", "ter",
)  # fmt: skip


def read_tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """The tasks of a folder by name, each as a configuration of lm-eval with the paths of its data made absolute.

    Raises:
        InputError: when there are none, or one is not pure data.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise InputError(f"{folder} holds no task files (*.yaml); see docs/evaluation.md for one (--task-files)")
    tasks: dict[str, dict[str, Any]] = {}
    for file in files:
        config = _read(file)
        if config["task"] in tasks:
            raise InputError(f"{file}: another file of the folder is task {config['task']!r} already")
        tasks[config["task"]] = config
    return tasks


def _read(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = getattr(error, "problem", None) or error
        raise InputError(f"{file} cannot be read as a task of plain data ({reason}); no Python is run") from None
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        raise InputError(f"{file} is not a task: give it a name, as in task: my_task")
    if foreign := sorted(map(str, set(config) - KEYS)):
        raise InputError(f"{file}: {', '.join(foreign)} cannot be used in a task file; {', '.join(sorted(KEYS))} can")
    if config.get("dataset_path") not in LOADERS:
        raise InputError(f"{file}: dataset_path must be {', '.join(LOADERS)}, with its files under dataset_kwargs")
    _check_metrics(file, config.get("metric_list"))
    return config | {"dataset_kwargs": {"data_files": _data_files(file, config.get("dataset_kwargs"))}}


def _check_metrics(file: Path, entries: Any) -> None:
    for entry in entries or []:
        if not isinstance(entry, dict) or entry.get("metric") not in METRICS or entry.get("hf_evaluate"):
            raise InputError(f"{file}: metric_list holds {entry}; a metric is one of {', '.join(METRICS)}")
        if entry.get("aggregation", "mean") not in AGGREGATIONS:
            raise InputError(f"{file}: the aggregation of {entry['metric']} is one of {', '.join(AGGREGATIONS)}")


def _data_files(file: Path, options: Any) -> dict[str, str]:
    """The data file of each split: existing files of the folder, no patterns and no addresses."""
    named = options.get("data_files") if isinstance(options, dict) and set(options) == {"data_files"} else None
    if not isinstance(named, dict) or not named:
        raise InputError(f"{file}: dataset_kwargs must be data_files and a file for each split, such as test: my.jsonl")
    home = file.parent.resolve()
    paths = {split: (home / str(name)).resolve() for split, name in named.items()}
    for split, path in paths.items():
        if not path.is_relative_to(home):
            raise InputError(f"{file}: the data of split {split} must lie in the folder of the task, not at {path}")
        if not path.is_file():
            raise InputError(f"{file}: there is no file {path} for split {split}")
    return {str(split): str(path) for split, path in paths.items()}
