"""Bring the questions of these tasks from the hub into a folder, for machines that have no network.

    python examples/zero_shot/fetch.py FOLDER                  # all of them
    python examples/zero_shot/fetch.py FOLDER rte hellaswag    # some
    secateur eval MODEL --task-files FOLDER                    # on any machine, once FOLDER is there

The task files go along, so that the folder is complete.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from datasets import load_dataset

# Data set, its configuration, and the split that lm-eval asks.
TASKS = {
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "boolq": ("aps/super_glue", "boolq", "validation"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "mnli": ("nyu-mll/glue", "mnli", "validation_matched"),
    "rte": ("nyu-mll/glue", "rte", "validation"),
    "piqa": ("baber/piqa", None, "validation"),
}


def fetch(folder: Path, names: Sequence[str]) -> None:
    """Write the rows of each task as JSON, one a line, and its task file beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        dataset, configuration, split = TASKS[name]
        rows = load_dataset(dataset, configuration, split=split, streaming=True)  # the other splits stay there
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        shutil.copy(Path(__file__).with_name(f"{name}.yaml"), folder)
        print(f"{name}: {len(lines):,} questions")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", nargs="*", help=f"of {', '.join(TASKS)}; by default all")
    given = parser.parse_args()
    if unknown := [name for name in given.task if name not in TASKS]:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(TASKS)}")
    fetch(given.folder, given.task or list(TASKS))
