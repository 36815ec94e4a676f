"""The task files of examples/zero_shot ask what lm-eval's own tasks ask."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.errors import InputError
from secateur.evaluation.task_files import read_tasks
from secateur.evaluation.zero_shot import GROUPS, find_tasks

READY = Path(__file__).parents[2] / "examples" / "zero_shot"
NAMES = sorted(path.stem for path in READY.glob("*.yaml"))

# Where lm-eval has its own, and rows as the hub has them, with what is awkward about such texts.
WHERE = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "mnli": "glue/mnli/default.yaml",
    "rte": "glue/rte/default.yaml",
    "piqa": "piqa/piqa.yaml",
}


ENDINGS = (" [title] Wait  [step] here.", 'it\'s [substeps] "so"', "[header] x", "İt ß  ... \\n {{ctx}}\n[\n]")


def hellaswag(
    label, activity="Removing ice", before="  Then a man  writes.", after="the [x] Man   waits", given=ENDINGS
):
    row = {"ind": 4, "activity_label": activity, "ctx_a": before, "ctx_b": after, "ctx": "no", "endings": list(given)}
    return row | {"source_id": "a~b", "split": "val", "split_type": "indomain", "label": label}


def arc(answer, *labels, texts=("the Sun", "a  'moon'", 'a "star"\n', "½ – 7", "{{nothing}}")):
    choices = {"text": list(texts[: len(labels)]), "label": list(labels)}
    return {"id": "M_1", "question": " Which [one] is  it?\n", "choices": choices, "answerKey": answer}


ARC = [arc("C", *"ABCD"), arc("2", *"123"), arc("E", *"ABCDE"), arc("1", *"1234")]
ROWS = {
    "hellaswag": [
        hellaswag("3"),
        hellaswag("0", "Finance and Business", "[header] How to [title] pay [step] Go.  ", ""),
        hellaswag("2", " Ünïcode [title]", "a [title] b", "éTÉ", ["7", " 8 ", "[header]", "a   b"]),
        hellaswag("1", "x", "[a\nb] [c]", "ONE Two ]] [[d]"),
    ],
    "boolq": [
        {"question": "is it so", "passage": "It  is. [a] {{b}}\n", "idx": 0, "label": 1},
        {"question": "do “ducks” swim?", "passage": "", "idx": 1, "label": 0},
    ],
    "arc_challenge": ARC,
    "arc_easy": ARC,
    "mnli": [
        {"premise": "One.", "hypothesis": " It is one  ", "label": 0, "idx": 0},
        {"premise": "  Two\n", "hypothesis": "It is two. ", "label": 1, "idx": 1},
        {"premise": "", "hypothesis": "", "label": 2, "idx": 2},
        {"premise": "ﬁ {% x %}", "hypothesis": "Is it?", "label": 2, "idx": 3},
    ],
    "rte": [
        {"sentence1": "One  is.", "sentence2": "Is one {{two}}.", "label": 0, "idx": 0},
        {"sentence1": "Ça va\n", "sentence2": " No ", "label": 1, "idx": 1},
    ],
    "piqa": [
        {"goal": "Open  a jar", "sol1": "Twist 'it'", "sol2": 'Say "open"\\', "label": 1},
        {"goal": "", "sol1": "3", "sol2": " ½\n", "label": 0},
    ],
}


def place(name, rows, folder):
    """A folder with one of the task files, and these rows beside it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_bytes((READY / f"{name}.yaml").read_bytes())
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def asked(task):
    """What a task asks of a model, and what it makes of answers of all kinds."""
    task.build_all_requests()
    requests: dict[int, list[tuple[object, ...]]] = {}
    for instance in task.instances:
        requests.setdefault(instance.doc_id, []).append((instance.idx, *instance.args))
    scores = []
    for number, doc in task.doc_iterator():
        for best in range(len(requests[number])):
            answers = [(-100.0 + (50 if best == i else 0), False) for i, _ in enumerate(requests[number])]
            scores.append(task.process_results(doc, answers))
    return requests, scores


def test_all_the_papers_tasks_are_there_and_each_has_a_source():
    assert set(GROUPS["ria"]) <= set(NAMES)
    assert set(NAMES) == set(WHERE) == set(ROWS) == set(fetcher().TASKS)


@pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports
@pytest.mark.parametrize("label", [None, int], ids=["as on the hub", "int"])
@pytest.mark.parametrize("name", NAMES)
def test_a_ready_task_asks_what_lm_eval_asks(tmp_path, name, label):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    rows = [row | {"label": label(row["label"])} if label and "label" in row else row for row in ROWS[name]]
    folder = place(name, rows, tmp_path / "tasks")
    (ours,) = find_tasks([name], folder)["tasks"].values()
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / WHERE[name])
    split = config.get("test_split") or config["validation_split"]
    files = {"data_files": {split: str(folder / f"{name}.jsonl")}}
    absent = {"training_split": None, "dataset_name": None} | ({"validation_split": None} if split == "test" else {})
    theirs = ConfigurableTask(config=config | {"dataset_path": "json", "dataset_kwargs": files} | absent)
    assert asked(ours) == asked(theirs)
    assert len(asked(ours)[0]) == len(rows)
    assert ours.aggregation() == theirs.aggregation() and ours.higher_is_better() == theirs.higher_is_better()


def test_a_file_of_questions_that_is_not_there_is_named(tmp_path):
    folder = place("rte", ROWS["rte"], tmp_path)
    (folder / "rte.jsonl").unlink()
    with pytest.raises(InputError, match=r"there is no file .*rte\.jsonl for split validation"):
        read_tasks(folder)


def fetcher():
    """The script that brings the questions."""
    spec = importlib.util.spec_from_file_location("fetch", READY / "fetch.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_fetched_is_a_folder_of_tasks(tmp_path, monkeypatch, capsys):
    module, wanted = fetcher(), []

    def load_dataset(dataset, configuration, *, split, streaming):
        wanted.append((dataset, configuration, split))
        return iter(ROWS[list(module.TASKS)[len(wanted) - 1]])

    monkeypatch.setattr(module, "load_dataset", load_dataset)
    module.fetch(tmp_path / "new" / "folder", list(module.TASKS))
    assert wanted == list(module.TASKS.values())
    for name, config in read_tasks(tmp_path / "new" / "folder").items():
        (file,) = config["dataset_kwargs"]["data_files"].values()
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == ROWS[name]
    assert "rte: 2 questions" in capsys.readouterr().out


def test_the_script_refuses_what_is_no_task_of_its():
    done = subprocess.run(
        [sys.executable, str(READY / "fetch.py"), "nowhere", "winogrande"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "winogrande: not one of hellaswag, boolq" in done.stderr
