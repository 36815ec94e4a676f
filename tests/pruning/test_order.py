import pytest
import torch

from secateur.models.blocks import Block
from secateur.patterns import NM, Unstructured
from secateur.permute.orders import find_order, kept_score
from secateur.pruning.order import Orderer
from secateur.pruning.prepare import Task, prepare
from secateur.pruning.visit import Visit
from secateur.recipe import Recipe
from tests import pico


def task_of(name="llama-mha", **setting):
    model = pico.build(name)
    return prepare(model, Recipe(score="magnitude", **{"pattern": "2:4"} | setting))


def tensors_of(block: Block):
    return {block.prefix + name: p.data.clone() for name, p in block.module.named_parameters()}


def visits(task: Task):
    return [Visit(block.prefix, block, tensors_of(block), {}, None) for block in task.blocks]


def surveyed(task: Task, all_visits):
    orderer = Orderer(task)
    for visit in all_visits:
        orderer.survey(visit)
    orderer.settle_shared()
    return orderer.shared["residual"]


def test_a_linear_counts_in_the_survey_by_the_shares_of_its_own_score():
    task = task_of()
    plain = surveyed(task, visits(task))
    loud = visits(task)
    for visit in loud:
        visit.tensors[visit.block.prefix + "self_attn.q_proj.weight"] *= 1024  # exact, so that nothing else can differ
    assert torch.equal(surveyed(task, loud), plain)


def test_the_shared_order_is_worth_more_than_none():
    task = task_of()
    order = surveyed(task, visits(task))
    rows = torch.cat([b.weight(x).abs() for b in task.blocks for x in b.linears if x.reads == "residual"])
    assert kept_score(rows[:, order], NM(2, 4)) > kept_score(rows, NM(2, 4))


def with_patterns(task: Task, change):
    """The same task, with other patterns where ``change`` gives one for a linear's name."""
    patterns = {name: change(name) or pattern for name, pattern in task.patterns.items()}
    return Task(task.recipe, task.family, task.blocks, task.skipped, patterns)


def test_a_space_whose_readers_may_lose_any_weight_keeps_its_order():
    task = with_patterns(task_of(), lambda name: Unstructured(0.5) if "down_proj" in name else None)
    visit = visits(task)[0]
    before = tensors_of(visit.block)
    Orderer(task).order(visit)
    prefix = visit.block.prefix
    assert set(visit.results.orders) == {prefix + "value"}
    down = prefix + "mlp.down_proj.weight"
    assert torch.equal(visit.tensors[down], before[down])


@pytest.mark.parametrize("other", [NM(1, 2), NM(4, 8)], ids=str)
def test_each_space_is_ordered_by_the_pattern_of_its_own_readers(other):
    task = with_patterns(task_of(), lambda name: other if "down_proj" in name else None)
    visit = visits(task)[0]
    down = visit.block.weight(visit.block.linears[-1]).abs()
    Orderer(task).order(visit)
    assert torch.equal(visit.results.orders[visit.block.prefix + "mlp"], find_order(down, other))
    assert not torch.equal(find_order(down, other), find_order(down, NM(2, 4)))
