"""Tasks through lm-eval, which is not installed for the other tests: ``make test-tasks``."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import secateur
from secateur.checkpoint import Source
from secateur.console.evaluation import evaluation_table
from secateur.errors import InputError
from secateur.evaluation import zero_shot
from secateur.evaluation.evaluate import Evaluation
from secateur.evaluation.task_files import read_tasks
from secateur.runtime.offloading import offloaded_bytes
from tests import pico
from tests.evaluation.test_task_files import EXAMPLE, write

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

ITEMS = [json.loads(line) for line in (EXAMPLE / "opposites.jsonl").read_text(encoding="utf-8").splitlines()]


def save(name, folder, seed=0):
    """A model whose tokenizer has a last token, which lm-eval wants to begin empty contexts with."""
    pico.save(name, folder, seed=seed)
    tokenizer = pico.tokenizer()
    tokenizer.eos_token = "!"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save("llama-gqa-tied", tmp_path / "m")


@pytest.fixture
def no_index(monkeypatch):
    """lm-eval's own tasks left out: to index its 14,000 files takes most of a minute."""
    monkeypatch.setattr("lm_eval.tasks._index.TaskIndex._iter_yaml_files", lambda root: ())


def scores(*models, **options):
    return [
        {score.metric: score for score in result.tasks}
        for result in secateur.evaluate(list(models), task_files=EXAMPLE, **options)
    ]


def loglikelihood(model, context, continuation):
    tokenizer = pico.tokenizer()
    before, after = tokenizer.encode(context), tokenizer.encode(continuation)
    with torch.no_grad():
        logs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return sum(logs[len(before) + i - 1, token].item() for i, token in enumerate(after))


def test_scores_agree_with_a_direct_computation(folder):
    (found,) = scores(folder)
    model = pico.build("llama-gqa-tied").double()
    right = {"acc": 0, "acc_norm": 0}
    for item in ITEMS:
        likely = [loglikelihood(model, f"The opposite of {item['word']} is", f" {word}") for word in item["choices"]]
        normed = [value / len(word) for value, word in zip(likely, item["choices"], strict=True)]
        right["acc"] += likely.index(max(likely)) == item["answer"]
        right["acc_norm"] += normed.index(max(normed)) == item["answer"]
    answers = found["acc"].right
    assert answers.count("1") == right["acc"]
    assert len(answers) == len(ITEMS)
    for metric, count in right.items():
        share = count / len(ITEMS)
        assert found[metric].score == pytest.approx(share)
        assert found[metric].standard_error == pytest.approx(math.sqrt(share * (1 - share) / (len(ITEMS) - 1)))
        assert (found[metric].items, found[metric].shots, found[metric].part_of) == (len(ITEMS), 0, None)


def test_models_are_asked_the_same_whatever_their_place(tmp_path, folder):
    other = save("llama-mha", tmp_path / "other", seed=1)
    first, second, last = scores(folder, other, folder, shots=2, task_limit=7)
    assert first == last
    assert first["acc"].items_sha256 == second["acc"].items_sha256
    (fewer,) = scores(folder, shots=1, task_limit=7)
    assert fewer["acc"].items_sha256 != first["acc"].items_sha256  # other examples before each question
    assert (first["acc"].shots, first["acc"].items) == (2, 7)


def test_rolling_perplexity_is_ours_with_windows_that_share_one_token(tmp_path):
    """lm-eval predicts every token of a text, the first from a prefix token, in windows that overlap by one."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    body = "Text of which every token is predicted. " * 16  # 640 tokens: ten windows of 64, and no rest
    model, tokenizer = pico.build("llama-gqa-tied"), pico.tokenizer()
    prefix = tokenizer.decode([0])
    asker = HFLM(pretrained=model, tokenizer=tokenizer, max_length=64, prefix_token_id=0)
    (theirs,) = asker.loglikelihood_rolling(
        [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(body,), idx=0)]
    )
    (tmp_path / "t.txt").write_text(prefix + body)
    folder = pico.save("llama-gqa-tied", tmp_path / "m")
    (ours,) = secateur.evaluate(folder, str(tmp_path / "t.txt"), window=65, stride=64)[0].texts
    assert ours.tokens == len(body) == 640
    assert ours.nll == pytest.approx(-theirs / 640, rel=1e-5)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("bos", ["each", "once", "never"])
def test_questions_begin_as_windows_do(folder, adds, bos):
    tokenizer = pico.tokenizer("~")
    tokenizer.add_bos_token = adds
    model, begins = pico.build("llama-gqa-tied"), set()
    model.register_forward_pre_hook(
        lambda _, words, named: begins.update((named.get("input_ids", *words))[:, 0].tolist()), with_kwargs=True
    )
    zero_shot.score(model, tokenizer, zero_shot.find_tasks([], EXAMPLE), free=10**9, limit=2, bos=bos)
    assert (begins == {tokenizer.bos_token_id}) == (bos == "each" or (bos == "once" and adds))


def test_a_group_stands_for_its_tasks(folder):
    from lm_eval.api.group import Group
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.config.group import GroupConfig
    from lm_eval.tasks import TaskManager

    (task,) = read_tasks(EXAMPLE).values()
    group = Group.from_config(GroupConfig(group="both", aggregate_metric_list=[{"metric": "acc"}]))
    for name in ("first", "second"):
        group.add(ConfigurableTask(config=task | {"task": name, "num_fewshot": 0}))
    tasks = TaskManager(include_defaults=False).load([group])
    found = zero_shot.score(pico.build("llama-gqa-tied"), AutoTokenizer.from_pretrained(folder), tasks, free=10**9)
    assert {(score.task, score.part_of) for score in found if score.metric == "acc"} == {
        ("both", None),
        ("first", "both"),
        ("second", "both"),
    }
    assert len({score.score for score in found if score.metric == "acc"}) == 1
    shown = evaluation_table([Evaluation("m", "float32", (), tuple(found))])
    assert [str(column).split()[0] for column in shown.columns] == ["model", "both"]


@pytest.mark.parametrize("field", ["doc_to_text", "doc_to_choice", "doc_to_target", "description"])
def test_templates_cannot_reach_python(tmp_path, folder, field):
    task = write(tmp_path / "tasks", **{field: "{{ ''.__class__.__mro__[1].__subclasses__() }}"})
    with pytest.raises(InputError, match="unsafe"):
        secateur.evaluate(folder, task_files=task)


def test_a_tokenizer_that_lm_eval_cannot_use_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a first token"):
        secateur.evaluate(pico.save("llama-mha", tmp_path / "m"), task_files=EXAMPLE)


def test_metrics_from_the_hub_are_refused():
    import evaluate

    before = evaluate.load
    with zero_shot._guarded(), pytest.raises(InputError, match="code_eval lies on the hub as Python"):
        evaluate.load("code_eval")
    assert evaluate.load is before


def test_the_sandbox_is_left_again():
    from lm_eval import utils

    before = utils.env
    zero_shot.find_tasks([], EXAMPLE)
    assert utils.env is before


def test_a_name_is_never_taken_for_a_file(tmp_path, no_index):
    (tmp_path / "utils.py").write_text("raise SystemExit('this file was run')")
    (tmp_path / "evil.yaml").write_text("task: evil\nprocess_docs: !function utils.f\n")
    with pytest.raises(InputError, match="not the name of a task of lm-eval"):
        zero_shot.find_tasks([str(tmp_path / "evil.yaml")])


def test_a_broken_file_and_a_wrong_name_are_told_before_any_model_is_read(tmp_path, no_index, monkeypatch):
    nowhere = tmp_path / "model"
    pico.save("llama-mha", nowhere)
    monkeypatch.setattr("secateur.evaluation.evaluate.load", lambda *_, **__: pytest.fail("a model was read"))
    with pytest.raises(InputError, match=r"task opposites cannot be used .*mend its file"):
        secateur.evaluate(nowhere, task_files=write(tmp_path / "tasks", doc_to_text="{{no_such_column}}"))
    with pytest.raises(InputError, match=r"antonyms: not the name of a task of lm-eval, nor of .*\(opposites\)"):
        secateur.evaluate(nowhere, tasks=["antonyms"], task_files=EXAMPLE)


def test_local_names_go_before_groups_and_the_papers_five_are_a_group():
    assert len(zero_shot.GROUPS["ria"]) == 5
    index = Path(lm_eval.__file__).parent / "tasks"
    names = {line.split()[1] for file in index.glob("*/**/*.yaml") for line in _task_lines(file)}
    assert set(zero_shot.GROUPS["ria"]) <= names
    assert list(read_tasks(EXAMPLE)) == list(zero_shot.find_tasks(["opposites"], EXAMPLE)["tasks"])


def _task_lines(file):
    if file.parts[-2] in ("hellaswag", "boolq", "arc", "mnli", "rte"):
        yield from (line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("task: "))


def test_a_model_that_is_read_as_it_runs_gives_the_same_answers(folder, no_index):
    memory = str(offloaded_bytes(Source(folder), torch.float32, torch.device("cpu")))
    (whole,), (parts,) = (scores(folder, task_limit=6, memory=given) for given in (None, memory))
    assert parts.keys() == whole.keys()
    for metric, score in whole.items():
        assert parts[metric].score == pytest.approx(score.score, rel=1e-4)
