"""``shrink()``: from a checkpoint to a smaller checkpoint, a block at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur import __version__
from secateur.calibrate.calibration import Calibration
from secateur.calibrate.stream import Rooms
from secateur.checkpoint import Source, Workspace, Writer, check_apart, check_finite, load_into, local_folder
from secateur.devices import DTYPES, choose_device, free_memory, full_precision, threads
from secateur.digests import bytes_digest
from secateur.errors import InputError
from secateur.importance import METHODS
from secateur.memory import Room
from secateur.models.blocks import Block, blocks_of, family_of
from secateur.models.fold import select_block, zero_block
from secateur.progress import Clock, Progress
from secateur.pruning.journal import Setting
from secateur.pruning.prepare import draw_samples
from secateur.shrinkage import Shrinkage
from secateur.shrinking.choice import BLOCKS, EXPERTS, Kept, choose, choose_experts, named, selection
from secateur.shrinking.evidence import Dense, influences, of_gradients, of_inputs, of_routes
from secateur.shrinking.experts import select_experts
from secateur.shrinking.target import Target, changes_of_depth, check_blocks, settle
from secateur.shrinking.widths import weights_of


def shrink(
    model: str | Path,
    out: str | Path,
    options: Shrinkage | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Remove heads and channels of ``model``, whole blocks, or experts, and write what stays to ``out``.

    The result of such structured pruning is a plain Hugging Face folder of a smaller model, with one width and one
    number of experts for all blocks and the residual width of the dense one. Weights that stay have their bits.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        out: the folder to write; it appears only when it is complete.
        options: what to do; by default half of the weights go, by the norm of what heads and channels give.
        force: replace a model folder that Secateur wrote.
        progress: is told how far it is.

    Returns:
        the content of ``secateur.json``, which is part of what is written.

    Raises:
        InputError: when something given cannot be used, or no config can say what would be written; nothing is written
            then.
        OSError: when the disk is full or fails.
    """
    options, progress, clock = options or Shrinkage(), progress or Progress(), Clock()
    with progress, Workspace(out, model, force=force) as work, local_folder(str(model), work.folder) as folder:
        check_apart(work.out, folder)
        source = Source(folder)
        source.refuse_gathers("shrunk")
        if source.scheme:
            raise InputError(f"{model} is quantized: shrink the model that it was made of")
        setting = Setting.choose(options, source.config.dtype or torch.float32, {})
        device = choose_device(setting.device)
        with threads(setting.threads):
            with clock("load"):
                skeleton = source.skeleton(DTYPES[setting.dtype], device)
                family = family_of(skeleton)
                blocks = blocks_of(skeleton, family)
                target = settle(source.config, source.base, blocks, family, options)
                samples = draw_samples(source, options, setting.batch, device, progress)
                outer = source.read(source.names_outside([block.prefix for block in blocks]))
                check_finite(outer, folder)
                load_into(skeleton, outer, "", device)
                skeleton.tie_weights()
            work.begin()
            free = {each: free_memory(each) // 2 for each in (device, torch.device("cpu"))}
            with Room(free, work.folder) as room:
                dense = Dense(source, skeleton, family, blocks, samples.batches, room, progress)
                job = _Job(dense, target, options, Writer(work, 1 + target.depth), clock)
                kept = job.run(outer)
        manifest = {
            "secateur": __version__,
            "model": str(model),
            "family": family.name,
            "method": options.summary(),
            "shrinkage": options.to_dict(),
            "calibration": samples.origin,
            "computed_in": setting.dtype,
            "sparsity": 1 - job.weights / target.dense_weights,
            "weights": {"dense": target.dense_weights, "kept": job.weights},
            "config": job.changes,
            "influences": job.influences,
            "tensors_sha256": job.digests,
            "seconds": clock.seconds(),
        }
        config = source.base | job.changes if job.changes or source.decodes else None
        job.writer.finish(model, folder, manifest, kept, config=config)
        return manifest


class _Job:
    """All that is written of one model.

    Attributes:
        writer: where it goes.
        digests: SHA-256 of the bytes of each tensor that was written, by its name.
        weights: of the blocks' linears that stay.
        changes: what the config has to say otherwise.
        influences: of the dense blocks, where these are what goes.
    """

    def __init__(self, dense: Dense, target: Target, options: Shrinkage, writer: Writer, clock: Clock) -> None:
        self.writer, self.digests = writer, dict[str, str]()
        self.weights, self.changes, self.influences = target.weights, target.changes, list[float]()
        self._dense, self._target, self._options, self._clock = dense, target, options, clock
        self._method = METHODS[options.method]

    def run(self, outer: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose and write, after what lies outside the blocks; what stays, by name, as it is to be recorded."""
        dense, target, method = self._dense, self._target, self._method
        passes = {"inputs": 2 * len(dense.blocks) - 1, "gradients": 2 * len(dense.blocks), "states": len(dense.blocks)}
        tokens = sum(batch.numel() for batch in dense.batches)
        needs = "states" if target.experts else method.needs
        dense.progress.start(self._options.summary(), passes[needs] * tokens)
        self._write(outer)
        if target.experts:
            return self._drop_experts()
        if method.needs == "inputs":
            return self._narrow_as_it_goes()
        with self._clock("calibrate"):
            if method.needs == "states":
                self.influences = influences(dense, method)
            else:
                importances = of_gradients(dense, method)
        if method.removes == "blocks":
            return self._drop(self.influences)
        kept = dict[str, Kept]()
        for index, block in enumerate(dense.blocks):
            tensors = dense.source.read(dense.source.names(block.prefix))
            if index in target.open:
                kept[block.prefix] = choose(dense.family, target.widths, importances[block.prefix])
            self._write_block(block, tensors, kept.get(block.prefix))
        return named(kept)

    @full_precision()
    def _narrow_as_it_goes(self) -> dict[str, Tensor]:
        """Choose in each block by what the narrower blocks before it give.

        Until it is written a block has zeros in place of what goes, and so computes what it will.
        """
        dense, kept = self._dense, dict[str, Kept]()
        calibration = Calibration(
            dense.model, dense.blocks, dense.batches, progress=dense.progress, rooms=Rooms(states=dense.room)
        )
        for index in range(len(dense.blocks)):
            with self._clock("calibrate"), dense.block(index) as (block, tensors):
                stats = calibration.observe(index).stats
                if index in self._target.open:
                    importance = of_inputs(block, dense.family, stats, self._method)
                    kept[block.prefix] = some = choose(dense.family, self._target.widths, importance)
                    zero_block(tensors, block.prefix, dense.family, *selection(some, dense.family))
                    load_into(block.module, tensors, block.prefix, dense.device)
                calibration.advance(index)
            self._write_block(block, tensors, kept.get(block.prefix))
        return named(kept)

    def _drop_experts(self) -> dict[str, Tensor]:
        """Write each block, in turn, without its least important experts: by what the dense blocks before it give."""
        dense, kept, stream = self._dense, dict[str, Kept](), None
        for index in range(len(dense.blocks)):
            with self._clock("calibrate"), dense.block(index) as (block, tensors):
                stream = stream or dense.stream()
                if (experts := self._target.experts.get(index)) is None:
                    stream.advance(index)
                else:
                    kept[block.prefix] = choose_experts(experts, of_routes(stream, index, experts))
            if experts is not None:
                select_experts(tensors, block.prefix, experts, kept[block.prefix][EXPERTS])
            self._write(tensors)
        return named(kept)

    def _write_block(self, block: Block, tensors: dict[str, Tensor], kept: Kept | None) -> None:
        """Without what goes, or with zeros in its place."""
        if kept is not None:
            change = zero_block if self._options.in_place else select_block
            change(tensors, block.prefix, self._dense.family, *selection(kept, self._dense.family))
        self._write(tensors)

    def _drop(self, importances: Sequence[float]) -> dict[str, Tensor]:
        """Write the blocks that are left when the least important have gone, numbered anew."""
        dense, target = self._dense, self._target
        least = sorted(target.open, key=lambda index: (importances[index], -index))
        gone = {*least[: len(dense.blocks) - target.depth]}
        kept = [index for index in range(len(dense.blocks)) if index not in gone]
        self.changes = changes_of_depth(dense.source.config, dense.blocks, kept)
        check_blocks(dense.source.base, self.changes, dense.blocks, kept)
        self.weights = weights_of([dense.blocks[index] for index in kept], dense.family)
        for number, index in enumerate(kept):
            prefix = dense.blocks[index].prefix
            tensors = dense.source.read(dense.source.names(prefix))
            self._write(tensors, prefix, f"{dense.family.blocks}.{number}.")
        return {BLOCKS: torch.tensor(kept)}

    def _write(self, tensors: dict[str, Tensor], prefix: str = "", now: str = "") -> None:
        """Write the next shard, in which names begin with ``now`` instead of ``prefix``."""
        with self._clock("write"):
            self.digests |= {now + name.removeprefix(prefix): bytes_digest(each) for name, each in tensors.items()}
            files = self._dense.source.stacks.split(tensors)
            self.writer.add({now + name.removeprefix(prefix): each for name, each in files.items()})
