"""What is settled before any long work: which linears are pruned, what each must become, and on which samples."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from secateur import data
from secateur.calibrate.stream import in_parts
from secateur.checkpoint import Source, context_of
from secateur.data import SELF
from secateur.devices import choose_calibration_dtype
from secateur.digests import digest
from secateur.errors import InputError
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.spaces import Family, Linear, judged_together
from secateur.options import Options, WalkOptions
from secateur.patterns import Pattern, check_fits
from secateur.progress import Progress
from secateur.ranks import Ranks
from secateur.recipe import Recipe
from secateur.runtime import selftext

# A forward pass takes as many samples at a time as make about this many tokens. A CPU is busy with one of the usual
# length, and slower with more, which leave its cache; a GPU waits for launches of small models.
TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 16384
# Where weights learn a batch is a step: many small ones take them further than few large ones (docs/tuning.md).
TOKENS_OF_A_STEP = 512
# What a pass takes of a GPU's memory for each token in the widest models, generously.
BYTES_PER_TOKEN = 1 << 20


@dataclass(frozen=True)
class Selection:
    """The linears of one model that something is done to.

    Attributes:
        recipe: by which methods.
        family: the model's.
        blocks: in the order in which they run, each with those of its linears that are meant.
        skipped: the full names of the linears that the recipe leaves as they are.
    """

    recipe: WalkOptions
    family: Family
    blocks: Sequence[Block]
    skipped: Sequence[str]


@dataclass(frozen=True)
class Task(Selection):
    """The linears that are pruned.

    Attributes:
        patterns: what each of these must obey, by its full name: nobody else asks the recipe.
    """

    recipe: Recipe
    patterns: Mapping[str, Pattern]


def prepare(model: nn.Module, recipe: Recipe) -> Task:
    """Decide what becomes of every linear of ``model``, which may have no weights.

    Raises:
        InputError: when it has no blocks with linears, a skip names no layer, nothing is left to prune, a linear
            cannot have its pattern, or the recipe's orders have no place in its family.
    """
    family = family_of(model)
    blocks, skipped = leave_out_skipped(blocks_of(model, family), recipe)
    if recipe.orders_channels and recipe.fold == "gather" and not ("residual" in family.rules and family.gathers):
        raise InputError(
            f"--fold gather needs a norm before every reader of a residual space whose writers are known, and "
            f"{type(model).__name__} (family {family.name}) has not"
        )
    patterns = {block.full_name(linear): recipe.target for block in blocks for linear in block.linears}
    check_each(
        blocks,
        lambda block, linear: check_fits(patterns[block.full_name(linear)], block.weight(linear).shape[1]),
        "Choose another pattern, or leave these layers dense",
    )
    return Task(recipe, family, blocks, skipped, patterns)


def leave_out_skipped(blocks: Sequence[Block], recipe: WalkOptions) -> tuple[list[Block], list[str]]:
    """The blocks without the linears that the recipe skips, and the names of those.

    Raises:
        InputError: when a skip names no layer, or none is left.
    """
    skipped = [name for b in blocks for x in b.linears if recipe.skips(name := b.full_name(x))]
    for pattern in recipe.skip:
        if not any(replace(recipe, skip=(pattern,)).skips(name) for name in skipped):
            raise InputError(f"--skip {pattern} names no layer; `secateur inspect` lists them")
    kept = [replace(b, linears=tuple(x for x in b.linears if not recipe.skips(b.full_name(x)))) for b in blocks]
    if not any(block.linears for block in kept):
        raise InputError("every layer is skipped: there is nothing to do")
    return kept, skipped


def check_each(blocks: Sequence[Block], check: Callable[[Block, Linear], None], remedy: str) -> None:
    """Raise one :class:`InputError` of what ``check`` raises, once for each kind of linear, with a ``remedy``."""
    misfits = {}
    for block in blocks:
        for linear in block.linears:
            try:
                check(block, linear)
            except InputError as error:
                misfits[linear.name] = f"{block.full_name(linear)}: {error}"
    if misfits:
        skips = " ".join(f"--skip '*.{name}'" for name in misfits)
        raise InputError(f"{'; '.join(misfits.values())}. {remedy}: {skips}")


@dataclass(frozen=True)
class Samples:
    """The calibration samples; none if the recipe reads no inputs.

    Attributes:
        batches: token ids, int64 ``(B, L)`` each.
        held_out: the number of the last batches that only the guard sees.
        origin: what the manifest says of them, or None.
    """

    batches: Sequence[Tensor] = ()
    held_out: int = 0
    origin: dict[str, Any] | None = None

    def share(self, ranks: Ranks) -> "Samples":
        """Those of them that this rank runs."""
        first = len(self.batches) - self.held_out
        seen, judged = ranks.share(self.batches[:first]), ranks.share(self.batches[first:])
        return Samples((*seen, *judged), len(judged), self.origin)

    def needed(self, everything: bool) -> "Samples":
        """All of them, or only what both models are compared on: the rest is for blocks that are not finished."""
        first = 0 if everything else len(self.batches) - self.held_out
        return replace(self, batches=self.batches[first:])

    @property
    def tokens(self) -> int:
        """Tokens in all batches."""
        return sum(batch.numel() for batch in self.batches)

    @property
    def held_out_tokens(self) -> int:
        """Tokens that only the guard sees."""
        return sum(batch.numel() for batch in self.batches[len(self.batches) - self.held_out :])

    @property
    def seen_tokens(self) -> int:
        """Tokens that statistics are gathered on."""
        return self.tokens - self.held_out_tokens


@dataclass(frozen=True)
class Passes:
    """On how many tokens one block is run.

    Attributes:
        observe: to see what enters its linears. In one-shot mode these tokens move on in the same pass.
        judge: by the guard: dense, at each reader group before its steps and after each, and around each epoch of
            tuning.
        advance: to make what enters the next block.
        learn: by epochs of tuning.
        beside: samples as they would be if the blocks before were dense, where blocks learn to make up for those.
        compare: held-out samples as they would be if the blocks before were dense, or if they were pruned in one-shot
            mode, so that both models can be compared at the end.
    """

    observe: int
    judge: int
    advance: int
    learn: int
    beside: int
    compare: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.observe + self.judge + self.advance + self.learn + self.beside + self.compare


def passes(task: Selection, samples: Samples, index: int, finished: int = 0, room: float = math.inf) -> Passes:
    """What the walk that writes does with block ``index``, with ``room`` for so many bytes of Gram matrices.

    An earlier run has ``finished`` so many blocks. The guard may have less to do: steps are not tried where nothing is
    lost.
    """
    block, recipe = task.blocks[index], task.recipe
    done, last = index < finished, index + 1 == len(task.blocks)
    epochs = recipe.tuning_epochs if block.linears and not done else 0
    trials = len(judged_together(block.linears)) * (1 + len(recipe.steps)) + bool(epochs) + epochs
    moved = 1 + (last and (done or not recipe.one_shot))  # behind the last block those that the guard has are there
    observed = 0 if done else observations(task, index, recipe.one_shot, recipe.needs_gram, room)
    return Passes(
        observe=samples.seen_tokens * observed,
        judge=0 if done else samples.held_out_tokens * (1 + trials),
        advance=0 if last or (recipe.one_shot and not done) else samples.tokens,
        learn=epochs * samples.seen_tokens,
        beside=samples.seen_tokens if recipe.corrects else 0,
        compare=samples.held_out_tokens * moved,
    )


def observations(task: Selection, index: int, one_shot: bool, gram: bool, room: float = math.inf) -> int:
    """How often block ``index`` is observed: more than once where its Gram matrices, if wanted, find no room together.

    One of which nothing is pruned is run for the next one's sake only, where samples move on as they are observed.
    """
    moves = one_shot and index + 1 < len(task.blocks)
    return max(len(in_parts(task.blocks[index], room if gram else math.inf)), moves)


def tokens_of_a_pass(recipe: Options, device: str) -> int:
    """How many tokens a forward pass takes on a kind of device, ``cpu`` or another, if it has memory for them."""
    if recipe.tuning_epochs:
        return TOKENS_OF_A_STEP
    return TOKENS_ON_CPU if device == "cpu" else TOKENS_ON_GPU


def batch_size(recipe: Options, device: torch.device) -> int:
    """How many samples a forward pass takes: the same each time on the same kind of device."""
    tokens = tokens_of_a_pass(recipe, device.type)
    if device.type == "cuda":
        tokens = min(tokens, torch.cuda.get_device_properties(device).total_memory // BYTES_PER_TOKEN)
    return max(1, tokens // recipe.length)


def draw_samples(
    source: Source, recipe: Options, batch: int, device: torch.device, progress: Progress | None = None
) -> Samples:
    """Draw the calibration samples for the model of ``source``, and move them to ``device``, ``batch`` at a time.

    Those of a text take no time that is worth telling ``progress``; those that the model writes itself do.

    Raises:
        InputError: when a text cannot be had or is too short, the samples are too long for the model, or it cannot
            write them.
    """
    if not recipe.needs_inputs:
        return Samples()
    check_length(source.config, recipe)
    counts = data.share_out(recipe.calibration, recipe.samples)
    texts_first = sorted(counts, key=SELF.__eq__)
    parts = {name: _draw(source, recipe, name, counts[name], device, progress) for name in texts_first}
    samples = data.interleave([parts[name] for name in counts])
    origin = {
        "source": recipe.calibration,
        "samples": recipe.samples,
        "held_out": recipe.held_out,
        "length": recipe.length,
        "seed": recipe.seed,
        "token_ids_sha256": digest(samples),
    }
    if len(counts) > 1:
        origin["parts"] = counts
    if SELF in counts:
        origin[SELF] = selftext.origin()
    return _in_batches(samples.to(device), recipe, batch, origin)


def _draw(
    source: Source, recipe: Options, name: str, samples: int, device: torch.device, progress: Progress | None
) -> Tensor:
    """Samples of the one source ``name``, int64 ``(samples, L)``."""
    length, seed = recipe.length, recipe.seed
    if name == SELF:
        dtype = choose_calibration_dtype(recipe.precision, source.config.dtype or torch.float32, device)
        memory = recipe.memory if isinstance(recipe, WalkOptions) else None
        return selftext.write_samples(
            source, samples, length, seed, device=device, dtype=dtype, memory=memory, progress=progress
        )
    text = data.load_text(name, "calibration", samples * length)
    ids = data.calibration_samples(text, source.tokenizer(), samples, length, seed)
    data.check_ids(ids, source.config.get_text_config().vocab_size, name)
    return ids


def samples_to_come(recipe: Options, config: PreTrainedConfig, batch: int) -> Samples:
    """What :func:`draw_samples` will draw for a model of ``config``, on the meta device.

    Raises:
        InputError: when the samples are too long for the model, or a mixture makes no sense.
    """
    if not recipe.needs_inputs:
        return Samples()
    check_length(config, recipe)
    data.share_out(recipe.calibration, recipe.samples)
    return _in_batches(torch.empty(recipe.samples, recipe.length, dtype=torch.int64, device="meta"), recipe, batch)


def check_length(config: PreTrainedConfig, recipe: Options) -> None:
    """Raise :class:`InputError` if the samples are too long for a model of ``config``."""
    longest = context_of(config)
    if longest is not None and recipe.length > longest:
        raise InputError(f"samples of {recipe.length} tokens exceed the model's context of {longest} (--length)")


def _in_batches(ids: Tensor, recipe: Options, batch: int, origin: dict[str, Any] | None = None) -> Samples:
    """Samples ``(n, L)``, ``batch`` at a time, with those last that only the guard sees."""
    seen, held_out = ids.tensor_split([recipe.samples - recipe.held_out])
    guarding = held_out.split(batch) if recipe.held_out else ()
    return Samples((*seen.split(batch), *guarding), len(guarding), origin)
