import sys
from pathlib import Path

import pytest
import yaml

import secateur
from secateur.errors import InputError
from secateur.evaluation.task_files import read_tasks
from tests import pico

EXAMPLE = Path(__file__).parents[2] / "examples" / "tasks"


def write(folder, **changes):
    """The example with some keys changed, or taken out by None."""
    folder.mkdir(exist_ok=True)
    config = yaml.safe_load((EXAMPLE / "opposites.yaml").read_text(encoding="utf-8")) | changes
    text = yaml.safe_dump({key: value for key, value in config.items() if value is not None})
    (folder / "opposites.yaml").write_text(text)
    (folder / "opposites.jsonl").write_bytes((EXAMPLE / "opposites.jsonl").read_bytes())
    return folder


def test_the_example_is_a_task_whose_data_lie_beside_it():
    (task,) = read_tasks(EXAMPLE).values()
    assert task["dataset_kwargs"] == {"data_files": {"test": str((EXAMPLE / "opposites.jsonl").resolve())}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "is not a task"),
        ({"class": "mine.Task"}, "class cannot be used in a task file"),
        ({"include": "../other.yaml"}, "include cannot be used"),
        ({"process_docs": "utils.f"}, "process_docs cannot be used"),
        ({"unsafe_code": True}, "unsafe_code cannot be used"),
        ({"dataset_path": "some/script.py"}, "dataset_path must be json, parquet, csv"),
        ({"dataset_path": ["json"]}, "dataset_path must be json, parquet, csv"),
        ({"dataset_kwargs": {"trust_remote_code": True}}, "dataset_kwargs must be data_files"),
        ({"dataset_kwargs": None}, "dataset_kwargs must be data_files"),
        ({"dataset_kwargs": {"data_files": "opposites.jsonl"}}, "a file for each split"),
        ({"dataset_kwargs": {"data_files": {"test": "../secret.jsonl"}}}, "must lie in the folder"),
        ({"dataset_kwargs": {"data_files": {"test": "/etc/hostname"}}}, "must lie in the folder"),
        ({"dataset_kwargs": {"data_files": {"test": "https://example.com/a.jsonl"}}}, "there is no file"),
        ({"dataset_kwargs": {"data_files": {"test": "*.jsonl"}}}, "there is no file"),
        ({"metric_list": [{"metric": "somebody/metric"}]}, "a metric is one of acc"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "a metric is one of acc"),
        ({"metric_list": [{"metric": ["acc"]}]}, "a metric is one of acc"),
        ({"metric_list": [{"metric": "acc", "aggregation": "average"}]}, "the aggregation of acc is one of mean"),
    ],
)
def test_what_is_more_than_data_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_tasks(write(tmp_path / "tasks", **changes))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.jsonl").write_text("{}")
    folder = write(tmp_path / "tasks")
    (folder / "opposites.jsonl").unlink()
    (folder / "opposites.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(InputError, match="must lie in the folder"):
        read_tasks(folder)


@pytest.mark.parametrize("tag", ["!function utils.f", "!!python/object/apply:os.system [a]", "!!python/name:os.system"])
def test_python_in_a_file_is_refused(tmp_path, tag):
    folder = write(tmp_path / "tasks")
    (folder / "utils.py").write_text("raise SystemExit('this file was run')")
    with (folder / "opposites.yaml").open("a") as file:
        file.write(f"description: {tag}\n")
    with pytest.raises(InputError, match="no Python is run"):
        read_tasks(folder)


def test_a_folder_without_tasks_and_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no task files"):
        read_tasks(tmp_path / "nowhere")
    folder = write(tmp_path / "tasks")
    (folder / "again.yaml").write_text((folder / "opposites.yaml").read_text())
    with pytest.raises(InputError, match=r"opposites.yaml: another file of the folder is task 'opposites'"):
        read_tasks(folder)


def test_without_lm_eval_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match="pip install 'lm-eval>="):
        secateur.evaluate(pico.save("llama-mha", tmp_path), tasks=["rte"])
