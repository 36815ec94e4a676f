"""Write a model folder, a shard at a time."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from secateur.checkpoint.layout import COMPANIONS, GATHER_TYPE, INDEX, MANIFEST, ORDERS
from secateur.errors import InputError


class Writer:
    """Writes a model folder that has its name only when it is whole.

    Used as a context: leaving it after :meth:`finish` puts the folder in place; leaving it by an
    exception, or not at all because the process died, leaves what was at ``out`` untouched.
    """

    def __init__(self, out: Path, force: bool = False) -> None:
        self.out = out
        self.force = force
        check_destination(out, force)

    def __enter__(self) -> "Writer":
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".partial", dir=self.out.parent))
        self.folder.chmod(0o755)  # mkdtemp's folders are private
        self.shards: list[dict[str, int]] = []
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def add(self, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        """Write one shard of named tensors; ``metadata`` in place of what transformers asks of a file it loads."""
        self.shards.append({name: tensor.nbytes for name, tensor in tensors.items()})
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, self.folder / f"{len(self.shards)}.shard", metadata=metadata or {"format": "pt"})

    def finish(
        self,
        companions_from: Path,
        manifest: dict[str, Any] | None,
        orders: dict[str, Tensor] | None = None,
        gathers: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Name the shards, add config, tokenizer, manifest and orders, and put the folder in place.

        Args:
            companions_from: the folder whose config and tokenizer these are.
            manifest: the content of ``secateur.json``, if there is to be one.
            orders: int64 tensors to keep beside the weights.
            gathers: the model is wrong without its gather orders: plain transformers must refuse it.
            config: the content of ``config.json``, where it is not that of ``companions_from``.
        """
        total = len(self.shards)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self.shards, 1):
            name = f"model-{number:05}-of-{total:05}.safetensors"
            (self.folder / f"{number}.shard").rename(self.folder / name)
            weight_map |= dict.fromkeys(shard, name)
        size = sum(sum(shard.values()) for shard in self.shards)
        _write_json(
            self.folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        )
        for pattern in COMPANIONS:
            for file in companions_from.glob(pattern):
                if not file.name.endswith(".index.json") and file.name != MANIFEST:
                    shutil.copyfile(file, self.folder / file.name)
        if config is not None:
            _write_json(self.folder / "config.json", config)
        if gathers:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            _write_json(self.folder / "config.json", {"model_type": GATHER_TYPE, "base": config})
        if orders:
            save_file({name: order.contiguous() for name, order in orders.items()}, self.folder / ORDERS)
        if manifest is not None:
            _write_json(self.folder / MANIFEST, manifest)
        self._put_in_place()

    def _put_in_place(self) -> None:
        check_destination(self.out, self.force)
        if not self.out.exists():
            self.folder.rename(self.out)
            return
        # A folder that has something in it cannot be replaced in one step: step aside, and back on failure.
        aside = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".old", dir=self.out.parent))
        os.replace(self.out, aside)
        try:
            self.folder.rename(self.out)
        except OSError:
            os.replace(aside, self.out)
            raise
        shutil.rmtree(aside)


def check_destination(out: Path, force: bool) -> None:
    """Raise :class:`InputError` when writing to ``out`` would overwrite something without ``force``."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} exists and is not a folder")
    if out.exists() and not force and any(out.iterdir()):
        raise InputError(f"{out} exists; give another --out, or --force to replace it")
    if out.exists() and force and any(out.iterdir()) and not (out / "config.json").is_file():
        raise InputError(f"{out} is not a model folder, and --force does not replace anything else")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
