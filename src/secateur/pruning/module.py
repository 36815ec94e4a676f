"""Prune a model that is in memory: any module with repeated blocks of linears, on a user's own batches."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from secateur.calibrate.calibration import Calibration
from secateur.calibrate.calls import Batch
from secateur.errors import InputError
from secateur.models.blocks import Block, weights_in
from secateur.progress import Clock, Progress
from secateur.pruning.order import Orderer
from secateur.pruning.prepare import prepare
from secateur.pruning.result import Results
from secateur.pruning.visit import Visit
from secateur.pruning.walk import Prune, walk
from secateur.recipe import Recipe


def prune_module(
    model: nn.Module, batches: Iterable[Batch] = (), recipe: Recipe | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Prune ``model`` in place: a vision transformer, an encoder, or whatever has a list of blocks with linears.

    Weights keep their device, dtype and the order of their channels: ``permute``, ``memory`` and what tells where text
    comes from have no meaning here. A block is called as the model itself calls it, on the first argument that it
    gets, and must return that argument's successor, or a tuple that begins with it. What ``nn.MultiheadAttention``
    multiplies by its ``out_proj`` inside torch cannot be seen: such a linear is pruned by its weights alone, and its
    result says so.

    Args:
        model: in eval mode.
        batches: what to calibrate on: mappings of keyword arguments of ``model``, or token ids for a language
            model of transformers. Needed unless the recipe looks at weights alone. The guard holds out the last
            eighth of them, and at least one. What an ``attention_mask`` ``(B, L)`` says is padding counts in nothing.
        recipe: what to do; by default RIA at 50 %.
        progress: is told how far it is.

    Returns:
        what ``secateur.json`` says of a written model's layers.

    Raises:
        InputError: when the model has no such blocks, changes what they return before the next, or has no weights (on
            ``meta``), or there are too few batches or some that are none; nothing is changed then.
    """
    batches = _checked(model, batches)
    recipe, progress, clock = replace(recipe or Recipe(), permute="none"), progress or Progress(), Clock()
    if recipe.allocate:
        raise InputError("an allocation is found for a folder: give the sparsities of its manifest here")
    task, results = prepare(model, recipe), list[Results]()
    held_out = max(1, len(batches) // 8) if recipe.held_out else 0
    if recipe.needs_inputs and len(batches) <= held_out:
        raise InputError(
            f"{recipe.summary()} needs at least {held_out + 1} batches to calibrate on, not {len(batches)}"
        )
    calibration = Calibration(
        model,
        task.blocks,
        batches if recipe.needs_inputs else (),
        held_out=held_out,
        gram=recipe.needs_gram,
        one_shot=recipe.one_shot,
        corrects=recipe.corrects,
    )
    store = ModuleStore(progress)
    with progress, _experts_one_by_one(model):
        progress.start(recipe.summary(), len(task.blocks), "blocks")
        work = Prune(task, Orderer(task), store, progress, clock, results)
        walk(task.blocks, store, calibration, clock, work)
    return {
        "method": recipe.summary(),
        "recipe": recipe.to_dict(),
        "skipped": task.skipped,
        **Results.of(results).report(clock, weights_in(task.blocks)),
    }


def _checked(model: nn.Module, batches: Iterable[Batch]) -> list[Batch]:
    """The batches of any iterable, such as a loader that shuffles, which is read once."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError("the model has no weights yet (device meta): load them first")
    wanted = "a mapping of the model's keyword arguments, or a tensor of token ids"
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise InputError(f"batches is a {type(batches).__name__}: give a list, each of which is {wanted}")
    batches = list(batches)
    for number, batch in enumerate(batches):
        if not isinstance(batch, Tensor | Mapping):
            raise InputError(f"batch {number} is a {type(batch).__name__}: give {wanted}")
        values = [batch] if isinstance(batch, Tensor) else list(batch.values())
        if all(isinstance(value, Tensor) and not value.numel() for value in values):
            raise InputError(f"batch {number} is empty: give {wanted}")
    return batches


@dataclass(frozen=True)
class ModuleStore:
    """Blocks that are in memory and stay there: the :class:`~secateur.pruning.walk.Store` of :func:`prune_module`."""

    progress: Progress

    def read(self, block: Block) -> dict[str, Tensor]:
        """Its parameters themselves: what changes them changes the module."""
        return {block.prefix + name: parameter.data for name, parameter in block.module.named_parameters()}

    def load(self, block: Block, tensors: dict[str, Tensor]) -> None:
        """They are there."""

    def write(self, visit: Visit) -> None:
        """They have been changed in place."""

    def restore(self, visit: Visit) -> None:
        """No earlier run left anything."""

    def release(self, block: Block) -> None:
        """Nothing is freed; the block is done."""
        self.progress.advance(1)


@contextmanager
def _experts_one_by_one(model: nn.Module) -> Iterator[None]:
    """Let transformers multiply with each expert's weight by itself for a while, so that its inputs can be seen."""
    config = getattr(model, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is not None:
        config._experts_implementation = "eager"  # type: ignore[union-attr]
    try:
        yield
    finally:
        if before is not None:
            config._experts_implementation = before  # type: ignore[union-attr]
