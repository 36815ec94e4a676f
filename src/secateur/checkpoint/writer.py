"""Write a model folder, a shard at a time."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.checkpoint.card import model_card
from secateur.checkpoint.layout import CARD, GATHER_TYPE, INDEX, MANIFEST, ORDERS, beside_weights
from secateur.checkpoint.workspace import MODEL, Workspace
from secateur.files import member, read_object


class Writer:
    """Writes the shards of a model folder in a workspace, one after the other, and puts the folder in place.

    Attributes:
        elsewhere: another process writes them; this one counts along, and reads what an earlier run has finished.

    Raises:
        OSError: from any method, when the disk is full or fails.
    """

    def __init__(self, work: Workspace, shards: int, *, elsewhere: bool = False) -> None:
        """Nothing is written yet.

        Args:
            work: which has begun.
            shards: how many there will be.
            elsewhere: see :class:`Writer`.
        """
        self.elsewhere = elsewhere
        self._work, self._total = work, shards
        self._shards: list[dict[str, int]] = []  # by the tensors' names, their bytes

    def add(self, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        """Write the next shard of named tensors; ``metadata`` in place of what transformers asks of a file it loads."""
        if not self.elsewhere:
            contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            self._save(self._name(len(self._shards)), contiguous, metadata or {"format": "pt"})
        self._count(tensors)

    def has(self, index: int) -> bool:
        """Whether an earlier run has finished the shard of this number, from 0."""
        return self._work.intact(f"{MODEL}/{self._name(index)}")

    def again(self) -> dict[str, Tensor]:
        """The tensors of the next shard, which an earlier run has finished: it counts as added."""
        tensors = load_file(self._work.folder / MODEL / self._name(len(self._shards)))
        self._count(tensors)
        return tensors

    def _name(self, index: int) -> str:
        return f"model-{index + 1:05}-of-{self._total:05}.safetensors"

    def _count(self, tensors: dict[str, Tensor]) -> None:
        self._shards.append({name: tensor.nbytes for name, tensor in tensors.items()})

    def _save(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        with self._work.file(f"{MODEL}/{name}") as path:
            try:
                path.touch()
                mode = path.stat().st_mode
                save_file(tensors, path, metadata=metadata)
                path.chmod(mode)  # safetensors lets nobody else read what it writes
            except SafetensorError as error:  # which hides what the system said
                raise OSError(f"{name} cannot be written in {path.parent}: {error}") from error

    def finish(
        self,
        model: str | Path,
        companions_from: Path,
        manifest: dict[str, Any],
        orders: dict[str, Tensor] | None = None,
        gathers: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Add the index, config, tokenizer, terms, orders, card and manifest, and put the folder in place.

        Args:
            model: what all this was made of, as the user named it.
            companions_from: the folder whose config, tokenizer and terms these are.
            manifest: the content of ``secateur.json``. It gets ``files``, the SHA-256 of every other file but the card:
                by them ``--force`` knows what it may replace.
            orders: int64 tensors to keep beside the weights.
            gathers: the model is wrong without its gather orders: plain transformers must refuse it.
            config: the content of ``config.json``, where it is not that of ``companions_from``.
        """
        weight_map = {name: self._name(number) for number, shard in enumerate(self._shards) for name in shard}
        size = sum(sum(shard.values()) for shard in self._shards)
        self._write_json(INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
        for name in beside_weights(companions_from):
            if file := member(companions_from, name):
                with self._work.file(f"{MODEL}/{name}") as path:
                    shutil.copyfile(file, path)
        if gathers:
            config = {"model_type": GATHER_TYPE, "base": config or read_object(companions_from / "config.json")}
        if config is not None:
            self._write_json("config.json", config)
        if orders:
            self._save(ORDERS, {name: order.contiguous() for name, order in orders.items()})
        card = model_card(model, companions_from, manifest, read_object(self._work.folder / MODEL / "config.json"))
        with self._work.file(f"{MODEL}/{CARD}") as path:
            path.write_text(card, encoding="utf-8", newline="\n")
        written = {
            Path(name).name: digest for name, digest in self._work.journal.files.items() if name.startswith(f"{MODEL}/")
        }
        for name in (MANIFEST, CARD):
            written.pop(name, None)
        manifest["files"] = dict(sorted(written.items()))
        self._write_json(MANIFEST, manifest)
        self._work.put_in_place()

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        with self._work.file(f"{MODEL}/{name}") as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
