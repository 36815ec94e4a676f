"""What the methods read of a model, a block at a time: inputs of linears, gradients of the loss, hidden states.

Gradients need no more memory than one block and the hidden states between blocks: each block is run again with what
entered it, and what its output is worth goes back through it. That is the chain rule as written, and exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from secateur.calibrate.stream import Rooms, Stream
from secateur.checkpoint import Source, check_finite, resident
from secateur.devices import full_precision
from secateur.errors import InputError
from secateur.importance import Evidence, Method, reap
from secateur.memory import Room, Shelf
from secateur.models.blocks import Block
from secateur.models.fold import rows_of
from secateur.models.spaces import Family
from secateur.progress import Progress
from secateur.shrinking.experts import Experts
from secateur.stats.inputs import InputStats

# By the prefix of the block: importance of the channels of each of its spaces, float64 on the CPU.
Importances = dict[str, dict[str, Tensor]]


def of_inputs(block: Block, family: Family, stats: Mapping[str, InputStats], method: Method) -> dict[str, Tensor]:
    """Importance of a block's channels by what its linears read; of the space of heads under ``query``."""
    return {
        "query" if family.rules[linear.reads] == "heads" else linear.reads: method.function(
            Evidence(square_sum=stats[linear.name].square_sum.cpu())
        )
        for linear in block.linears
        if family.rules.get(linear.reads or "") in ("heads", "block") and linear.reads
    }


@dataclass(frozen=True)
class Dense:
    """A dense model that is read a block at a time, and calibration samples for it.

    Attributes:
        source: its files.
        model: its skeleton, with what lies outside the blocks in memory.
        family: its family.
        blocks: its blocks, in order.
        batches: token ids, int64 ``(B, L)`` each.
        room: where hidden states wait.
        progress: is told of the tokens that a block has processed.
    """

    source: Source
    model: PreTrainedModel
    family: Family
    blocks: Sequence[Block]
    batches: Sequence[Tensor]
    room: Room
    progress: Progress

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.batches[0].device

    @contextmanager
    def block(self, index: int) -> Iterator[tuple[Block, dict[str, Tensor]]]:
        """A block that is in memory for a while, and its tensors as stored."""
        block = self.blocks[index]
        tensors = self.source.read(self.source.names(block.prefix))
        check_finite(tensors, self.source.folder)
        self.progress.at(f"block {index + 1}/{len(self.blocks)}")
        with resident(block.module, tensors, block.prefix, self.device):
            yield block, tensors

    def stream(self) -> Stream:
        """The samples before the first block, which must be in memory by then."""
        return Stream(self.model, self.blocks, self.batches, self.progress, rooms=Rooms(states=self.room))


@full_precision()
def influences(dense: Dense, method: Method) -> list[float]:
    """The importance of each block by the states that enter and leave it, mean over tokens."""
    found, stream = [], None
    for index in range(len(dense.blocks)):
        total = 0.0
        with dense.block(index):
            stream = stream or dense.stream()
            for batch, before in enumerate(stream.hidden):
                after = stream.run(index, batch, before)
                states = (before.flatten(0, 1), after.flatten(0, 1))
                total += method.function(Evidence(states=states)).double().sum().item()
                stream.hidden[batch] = after
        found.append(total / stream.tokens)
    return found


@full_precision()
def of_routes(stream: Stream, index: int, experts: Experts) -> Tensor:
    """Importance of each expert of block ``index``, mean over the tokens that are routed to it; 0 where none is.

    Every expert is run by itself on its tokens, and the outputs are added up as its module would, in the same sequence:
    the samples move on through the block as they would have.

    Returns:
        float64 ``(count,)``, on the CPU.
    """
    module = stream.blocks[index].module.get_submodule(experts.module)
    genuine = module.forward
    total, tokens = torch.zeros(2, experts.count, dtype=torch.float64)

    def forward(states: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        output = torch.zeros_like(states)
        for expert in chosen.unique().tolist():
            rows, places = torch.where(chosen == expert)
            part = genuine(states[rows], chosen[rows, places, None], gates[rows, places, None])
            total[expert] += reap(part).sum(dtype=torch.float64).item()
            tokens[expert] += len(rows)
            output.index_add_(0, rows, part)
        return output

    module.forward = forward
    try:
        stream.advance(index)
    finally:
        del module.forward  # the class's own shows again
    return total / tokens.clamp(min=1)


@full_precision()
def of_gradients(dense: Dense, method: Method) -> Importances:
    """Importance of all channels by the gradient of the language model's loss, summed over the predicted tokens.

    Raises:
        InputError: when a gradient is not finite.
    """
    dense.model.requires_grad_(False)
    entered: list[Shelf] = []
    stream = None
    for index in range(len(dense.blocks)):
        with dense.block(index):
            stream = stream or dense.stream()
            entered.append(shelf := Shelf(dense.room))
            for batch, states in enumerate(stream.hidden):
                shelf.append(states)
                stream.hidden[batch] = stream.run(index, batch, states)
    assert stream is not None
    returned = Shelf(dense.room)
    for batch, tokens in enumerate(dense.batches):
        states = stream.hidden[batch].detach().requires_grad_()
        _loss(stream.answer(batch, states).logits, tokens).backward()
        returned.append(_gradient(states))
    found: Importances = {}
    for index in reversed(range(len(dense.blocks))):
        with dense.block(index) as (block, _):
            block.module.requires_grad_(True)
            for batch, states in enumerate(entered.pop()):
                leaf = states.detach().requires_grad_()
                stream.call(index, batch, leaf).backward(returned[batch])
                returned[batch] = _gradient(leaf)
            found[block.prefix] = _of_parameters(block, dense.family, method)
        if not all(each.isfinite().all() for each in found[block.prefix].values()):
            raise InputError(
                f"the gradients of {block.prefix[:-1]} are not finite: choose another --method, or compute in float32 "
                "(--dtype) if that was another precision"
            )
    return found


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of ``tokens`` ``(B, L)`` but the first of each row, summed."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum")


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _of_parameters(block: Block, family: Family, method: Method) -> dict[str, Tensor]:
    """Importance of the channels of the spaces inside a block, whose parameters have their gradients."""
    coupled: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(space: str, *both: Tensor) -> None:
        weight, gradient = (each.detach().reshape(len(each), -1) for each in both)
        coupled.setdefault(space, []).append((weight, gradient))

    for linear in block.linears:
        whole = block.module.get_parameter(linear.tensor)
        weight, gradient = linear.view(whole), linear.view(_gradient(whole))
        bias = dict(block.module.named_parameters()).get(linear.bias)
        for part, space in enumerate(linear.parts):
            if space in ("query", "key") or family.rules.get(space) in ("heads", "block"):
                rows = rows_of(linear, part, len(weight), family.heads).to(weight.device)
                add(space, weight[rows], gradient[rows])
                if bias is not None:
                    add(space, linear.view_bias(bias)[rows], linear.view_bias(_gradient(bias))[rows])
        if (rule := family.rules.get(linear.reads or "")) in ("heads", "block") and linear.reads:
            add("query" if rule == "heads" else linear.reads, weight.T, gradient.T)
    return {space: method.function(Evidence(coupled=parts)).cpu() for space, parts in coupled.items()}
