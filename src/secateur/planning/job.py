"""What is to be done, as the laws of its cost see it: a model without weights, and how often what runs on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from secateur.calibrate.calibration import ERROR_ROWS
from secateur.models.blocks import Block
from secateur.models.spaces import Linear, reader_groups
from secateur.planning.sizes import routed_share
from secateur.pruning.allocation import probed
from secateur.pruning.prepare import Passes, Samples, Task, observations, passes
from secateur.recipe import Recipe
from secateur.scores import SCORES


@dataclass(frozen=True)
class Job:
    """A model that is pruned by a recipe.

    Attributes:
        model: all on the meta device.
        task: what becomes of its linears.
        samples: the calibration samples, on the meta device.
        stored: the dtype of the checkpoint's weights.
        computed: the dtype of forward passes.
        surveys: whether an order for the whole model is searched first.
        room: bytes of Gram matrices that are gathered at once.
        ranks: the number of processes that share the samples out among them.
    """

    model: PreTrainedModel
    task: Task
    samples: Samples
    stored: torch.dtype
    computed: torch.dtype
    surveys: bool
    room: float
    ranks: int = 1

    @property
    def recipe(self) -> Recipe:
        """How it is pruned."""
        return self.task.recipe

    @cached_property
    def passes(self) -> list[tuple[Block, Passes]]:
        """Every block, and on how many tokens it is run."""
        blocks = enumerate(self.task.blocks)
        return [(block, passes(self.task, self.samples, index, room=self.room)) for index, block in blocks]

    def surveyed(self, block: Block) -> int:
        """Tokens that a block is run on in the survey."""
        score = SCORES[self.recipe.score]
        if not self.surveys or not score.needs_inputs:
            return 0
        index = self.task.blocks.index(block)
        return self.samples.seen_tokens * observations(self.task, index, True, score.needs_gram, self.room)

    @property
    def readings(self) -> int:
        """How often blocks are read: once to prune them, once in a survey, twice for an allocation."""
        return 1 + self.surveys + 2 * self.recipe.allocate

    def probed(self, index: int) -> int:
        """Tokens that a block is run on for an allocation."""
        return probed(self.task, self.samples, index) if self.recipe.allocate else 0

    @property
    def forward_tokens(self) -> int:
        """Tokens that blocks are run on, over all blocks and passes: what the progress bar counts."""
        surveyed = sum(self.surveyed(block) + self.probed(index) for index, block in enumerate(self.task.blocks))
        return surveyed + sum(passes.tokens for _, passes in self.passes)

    @property
    def width(self) -> int:
        """Channels of the hidden states."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    # ---------------------------------------------------------------- bytes

    @cached_property
    def parameters(self) -> int:
        """Weights of the model, those that serve twice once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def block_parameters(self, block: Block) -> int:
        """Weights of one block."""
        return sum(parameter.numel() for parameter in block.module.parameters())

    @cached_property
    def outer_parameters(self) -> int:
        """Weights outside the blocks: embedding, last norm, output head."""
        return self.parameters - sum(map(self.block_parameters, self.task.blocks))

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors, as they are read and written."""
        return self.parameters * self.stored.itemsize

    # ---------------------------------------------------------------- linears

    def groups(self, block: Block) -> Iterator[tuple[list[Linear], float]]:
        """The reader groups of a block, each with the share of the tokens that it sees."""
        for group in reader_groups(block.linears):
            name = group[0].tensor
            yield group, routed_share(self.model, block.prefix + name, block.module.get_parameter(name))

    def group_cost(self, block: Block, group: Sequence[Linear]) -> float:
        """By what a reader group is dealt to ranks: a factor of its Gram matrix, and products with that."""
        shapes = [block.shape(linear) for linear in group]
        return float(shapes[0][1] ** 2 * (shapes[0][1] + sum(rows for rows, _ in shapes)))

    def error_rows(self, share: float) -> int:
        """The number of input rows that output errors are measured on, where a linear sees this share of the tokens."""
        seen = self.samples.seen_tokens
        return -(-round(share * seen) // max(1, seen // ERROR_ROWS))

    # ---------------------------------------------------------------- arithmetic

    def block_flops(self, block: Block) -> int:
        """Of a forward pass, per token: two for each weight that it multiplies with, and attention.

        Attention is counted as two products of all pairs of tokens of a sample, masked or not.
        """
        weights = [(name, p) for name, p in block.module.named_parameters() if p.ndim > 1]
        products = sum(routed_share(self.model, block.prefix + name, p) * p.numel() for name, p in weights)
        return round(2 * products) + 2 * self.recipe.length * self.attention_channels(block)

    def attention_channels(self, block: Block) -> int:
        """Channels of all queries and all values; 0 in a block without attention."""
        if not any("attn" in name or "attention" in name for name, _ in block.module.named_modules()):
            return 0
        config = self.model.config.get_text_config()
        if "value" in self.task.family.rules:
            queries, _, width = self.task.family.heads
            return 2 * queries * width
        if not (heads := getattr(config, "num_attention_heads", 0)):  # what RWKV calls attention is none
            return 0
        width = getattr(config, "head_dim", None) or self.width // heads
        return int(heads * (getattr(config, "qk_head_dim", width) + getattr(config, "v_head_dim", width)))

    def unneeded_flops(self, block: Block) -> int:
        """What a pass that only observes saves, per token, by ending where the last linear would multiply.

        Nothing where experts are among them: a pass that does not run all of them goes on to the end.
        """
        if not block.linears or any(linear.stack for linear in block.linears):
            return 0
        rows, columns = block.shape(block.linears[-1])
        return 2 * rows * columns
