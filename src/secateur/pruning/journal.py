"""What a run that makes a folder has finished, kept in its workspace so that a later run can go on after it.

For every block there is its shard of the model to come and, beside the model, a record: the results, the orders that
were found, and the digest of the dense block. A finished survey leaves the orders that all blocks share. Hidden states
are not kept: they are many times larger than what it takes to compute them anew from the blocks that are written.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.calibrate.guard import Trial
from secateur.checkpoint import Workspace
from secateur.devices import choose_calibration_dtype, choose_device
from secateur.errors import InputError
from secateur.models.blocks import Block
from secateur.options import Options
from secateur.progress import Clock
from secateur.pruning.prepare import batch_size
from secateur.pruning.result import LayerResult, QuantizedLayer, Results

SHARED, ALLOCATION = "shared.orders", "allocation"


@dataclass(frozen=True)
class Setting:
    """What the bits of a result depend on besides model, recipe and text: settled when a run starts, and kept to.

    Attributes:
        device: the device to compute on.
        dtype: the name of the precision to compute in.
        threads: the number of torch's threads.
        batch: samples per forward pass.
    """

    device: str
    dtype: str
    threads: int
    batch: int

    @classmethod
    def choose(cls, recipe: Options, stored: torch.dtype, earlier: Mapping[str, Any]) -> "Setting":
        """That of the ``earlier`` run, if there is one to resume; else what suits the recipe and this machine.

        Raises:
            InputError: when the device cannot be used, or the earlier run's setting is none.
        """
        if "setting" in earlier:
            try:
                return msgspec.convert(earlier["setting"], cls)
            except msgspec.ValidationError as error:
                raise InputError(f"the journal of the run to resume is damaged: {error} (setting)") from None
        device = choose_device(recipe.device)
        if device.type == "meta":
            raise InputError("device 'meta' has no values to compute with: give auto, cpu or cuda (--device)")
        dtype = str(choose_calibration_dtype(recipe.precision, stored, device)).removeprefix("torch.")
        return cls(str(device), dtype, torch.get_num_threads(), batch_size(recipe, device))


@dataclass(frozen=True)
class Journal:
    """The records of one run."""

    work: Workspace

    def orders(self) -> dict[str, Tensor] | None:
        """The orders that a finished survey found, if there is one."""
        return load_file(self.work.folder / SHARED) if self.work.intact(SHARED) else None

    def keep_orders(self, orders: dict[str, Tensor]) -> None:
        """Record that the survey is finished."""
        with self.work.file(SHARED) as path:
            save_file(orders, path)

    def allocation(self) -> str | None:
        """The sparsities that an allocation has found, as a recipe spells them, if there is one."""
        return (self.work.folder / ALLOCATION).read_text() if self.work.intact(ALLOCATION) else None

    def keep_allocation(self, sparsities: str) -> None:
        """Record that the allocation is finished."""
        with self.work.file(ALLOCATION) as path:
            path.write_text(sparsities)

    def has(self, block: Block) -> bool:
        """Whether there is a record of ``block``."""
        return self.work.intact(_record(block))

    def keep(self, block: Block, dense: str, results: Results, seconds: Mapping[str, float]) -> None:
        """Record that a block is finished, whose tensors had the digest ``dense`` before, after so many seconds."""
        facts = {
            "dense": dense,
            "layers": [dataclasses.asdict(layer) for layer in results.layers],
            "quantized": [dataclasses.asdict(layer) for layer in results.quantized],
            "trials": [dataclasses.asdict(trial) for trial in results.trials],
            "tuned": results.tuned,
            "seconds": dict(seconds),
        }
        with self.work.file(_record(block)) as path:
            save_file(
                {name: order.contiguous() for name, order in results.orders.items()}, path, {"facts": json.dumps(facts)}
            )

    def recall(self, block: Block, dense: str, clock: Clock) -> Results:
        """What is recorded of a block; the clock goes on from then.

        Raises:
            InputError: when its tensors have not the digest that they had.
        """
        with safe_open(self.work.folder / _record(block), framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            orders = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["dense"] != dense:
            raise InputError(f"{block.prefix[:-1]} of the model is not what it was in the run that is to be resumed")
        clock.set(facts["seconds"])
        return Results(
            msgspec.convert(facts["layers"], list[LayerResult]),
            msgspec.convert(facts["quantized"], list[QuantizedLayer]),
            msgspec.convert(facts["trials"], list[Trial]),
            msgspec.convert(facts["tuned"], list[str]),
            orders,
        )


def _record(block: Block) -> str:
    return f"{block.prefix}results"


def command_of(model: str | Path, out: str | Path, recipe: Options, force: bool, command: str = "prune") -> list[str]:
    """The words of the command line that does so: what differs from the default recipe, one by one."""
    words = ["secateur", command, str(model), "--out", str(out)]
    for field in dataclasses.fields(recipe):
        value, option = getattr(recipe, field.name), field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            many: Sequence[Any] = value if isinstance(value, tuple) else (value,)
            words += [word for one in many for word in (f"--{option}", str(one))]
    return [*words, "--force"] if force else words
