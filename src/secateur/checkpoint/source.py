"""Read a model folder, tensor by tensor."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from math import prod
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from secateur.checkpoint.config import build_config, described_model, empty_model, further_layers, read_written
from secateur.checkpoint.experts import Stacks
from secateur.checkpoint.layout import INDEX, WEIGHTS
from secateur.checkpoint.minifloats import find_coded, read_coded
from secateur.checkpoint.names import Names, are_as_stored, names_in
from secateur.checkpoint.packed import Entry, check_parts, declared, parts_of, read_sparse
from secateur.checkpoint.quantized import find_quantized, read_quantized
from secateur.checkpoint.shards import FLOATS, Held, read_header, reading
from secateur.checkpoint.sparse import SparseWeight
from secateur.digests import file_digest
from secateur.errors import InputError, naming
from secateur.files import member, read_as
from secateur.quantization.grid import QuantizedWeight


class Source:
    """A model folder whose tensors are read when they are asked for.

    Only headers are read to make one; :func:`~secateur.checkpoint.checks.check` compares them with the config.

    Attributes:
        folder: the folder.
        config: its Hugging Face config.
        gathers: whether its norms need orders that only Secateur applies (``--fold gather``).
        held: what the files hold, by the names there, but for layers that no model runs; sparse weights as the dense
            ones that they stand for.
        called: what the model calls them, where that is something else.
        stacks: which of them the model has as one tensor. All else here goes by the model's names.
        packed: whether it is a packed folder.
        sparse: what its files say of their sparse weights, by name; to all else they look like dense ones.
        scheme: how its quantized weights are written, if it has any.
        quantized: the files of their parts, by name; to all else they look like dense ones as well.
        coded: where weights are that are stored in floats of few bits; likewise.
        decodes: whether it has such weights, or quantized ones, so that ``base`` is another config than is written.
        base: the content of its ``config.json`` as that of a plain model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        written = read_written(folder)
        self.packed, self.gathers = written.packed, written.gathers
        self.scheme, self.decodes, self.base = written.scheme, written.decodes, written.base
        self.held = self._headers()
        self.config = build_config(written, len(self.held))
        for name in further_layers(self.held, self.config):
            del self.held[name]
        self.quantized = find_quantized(self.held, self.scheme) if self.scheme else {}
        self._minifloats = written.minifloats
        self.coded = find_coded(self.held, self._minifloats) if self._minifloats else {}
        self.sparse: dict[str, Entry] = {}
        if self.packed:
            self._find_sparse()
        self.called = Names() if are_as_stored(self.config) else names_in(self.held, self.described)
        self.stacks = Stacks(self.held, self.called)

    @cached_property
    def described(self) -> PreTrainedModel:
        """The model that its config describes, all on the meta device.

        Raises:
            InputError: when transformers cannot build it, or it is out of proportion to the files.
        """
        size = sum(prod(one.shape) for one in self.held.values())
        return described_model(self.config, self.folder / "config.json", len(self.held), 2 * size)

    def _headers(self) -> dict[str, Held]:
        # As transformers looks for them: whatever else lies in the folder is not this model's.
        if path := member(self.folder, WEIGHTS):
            return read_header(path)
        if path := member(self.folder, INDEX):
            return self._from_index(path)
        raise InputError(
            f"{self.folder} holds neither {WEIGHTS} nor {INDEX}; pickled weights (.bin, .pt) are not read: "
            "convert them with save_pretrained first"
        )

    def _from_index(self, index: Path) -> dict[str, Held]:
        weight_map = read_as(_Index, index).weight_map
        held: dict[str, Held] = {}
        for name in sorted(set(weight_map.values())):
            # What a file says is never to be trusted with a path.
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise InputError(f"{index} names {name!r}, which is not the name of a .safetensors file beside it")
            if (path := member(self.folder, name)) is None:
                raise InputError(f"{self.folder} lacks {name}, which its index names")
            held |= {key: one for key, one in read_header(path).items() if weight_map.get(key, name) == name}
        if absent := [key for key in weight_map if key not in held]:
            raise InputError(f"{self.folder} lacks {', '.join(absent[:3])}, which its index names")
        return held

    def _find_sparse(self) -> None:
        """Let sparse weights stand in ``held`` in place of their parts."""
        for shard in sorted({one.file for one in self.held.values()}):
            for name, entry in declared(shard).items():
                if name in self.sparse:
                    raise InputError(f"{self.folder} declares {name} in two files")
                parts = [self.held.pop(part) for part in parts_of(name, entry)]
                check_parts(shard, name, entry, [(part.dtype, part.shape) for part in parts])
                self.sparse[name] = entry
                self.held[name] = Held(shard, entry.whole, FLOATS[entry.dtype], sum(part.nbytes for part in parts))

    def refuse_gathers(self, purpose: str) -> None:
        """Raise :class:`InputError` if plain transformers could not load it: ``purpose`` says what it is not for."""
        if self.packed:
            raise InputError(f"{self.folder} is packed, and cannot be {purpose}: secateur unpack it first")
        if self.gathers:
            raise InputError(f"{self.folder} was written with --fold gather, and cannot be {purpose}")

    def fingerprint(self) -> dict[str, str]:
        """What tells that the files are others, by name: SHA-256 of the config, and of each header and size."""
        found = {"config.json": file_digest(self.folder / "config.json")}
        parts = {file for files in self.quantized.values() for file in files.values()}
        parts |= {coded.scales[1] for coded in self.coded.values()}
        for path in sorted(parts | {one.file for one in self.held.values()}):
            with path.open("rb") as file:
                header = file.read(int.from_bytes(start := file.read(8), "little"))
            found[path.name] = hashlib.sha256(start + header + str(path.stat().st_size).encode()).hexdigest()
        return found

    @property
    def precision(self) -> torch.dtype:
        """The precision in which it is stored: what its config says, or else that of the first tensor in its files."""
        return self.config.dtype or self.dtype(self.names()[0])

    def names(self, prefix: str = "") -> list[str]:
        """The names of the tensors that begin with ``prefix``, in the order of their files."""
        return [name for name in self.stacks.names if name.startswith(prefix)]

    def names_outside(self, prefixes: Sequence[str]) -> list[str]:
        """The names of the tensors that begin with none of ``prefixes``: of blocks, say."""
        inside = tuple(prefixes)
        return [name for name in self.names() if not name.startswith(inside)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor ``name``; raises :class:`InputError` when the layers of a stack differ."""
        layers = [[self.held[part].shape for part in layer] for layer in self.stacks.layers(name)]
        if name not in self.stacks.members:
            return layers[0][0]
        shapes = {(sum(shape[0] for shape in layer), *layer[0][1:]) for layer in layers if all(layer)}
        if len(shapes) != 1 or len({shape[1:] for layer in layers for shape in layer}) > 1:
            raise InputError(f"{self.folder}: the experts of {name} differ in shape, or one of them lacks a part")
        return (len(layers), *shapes.pop())

    def dtype(self, name: str) -> torch.dtype:
        """The type in which the tensor ``name`` is stored."""
        types = {self.held[part].dtype for part in self.stacks.parts(name)}
        return max((_DTYPES.get(kind, torch.float32) for kind in types), key=lambda dtype: dtype.itemsize)

    def read(self, names: list[str], sparse_as: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors of these names, in the dtype in which they are stored, on the CPU.

        Args:
            names: of the tensors.
            sparse_as: expand packed weights in this dtype; by default in that which they had before.

        Raises:
            InputError: when a file is damaged.
        """
        wanted = [part for name in names for part in self.stacks.parts(name)]
        parts = {part: self._expanded(part, sparse_as) for part in wanted if part in self.sparse}
        parts |= {part: self.read_quantized(part).dense() for part in wanted if part in self.quantized}
        if self._minifloats:
            parts |= {part: read_coded(self.coded[part], self._minifloats) for part in wanted if part in self.coded}
        plain = [part for part in wanted if part not in parts]
        for path in dict.fromkeys(self.held[part].file for part in plain):
            with reading(path) as file:
                parts |= {part: file.get_tensor(part) for part in plain if self.held[part].file == path}
        return {name: self.stacks.join(name, parts) for name in names}

    def _expanded(self, name: str, dtype: torch.dtype | None) -> Tensor:
        weight = self.read_sparse(name)
        return (weight if dtype is None else weight.to(dtype)).dense().view(self.sparse[name].whole)

    def read_sparse(self, name: str) -> SparseWeight:
        """One of the weights in ``sparse``; raises :class:`InputError` when it is damaged."""
        return read_sparse(self.held[name].file, name, self.sparse[name])

    def read_quantized(self, name: str) -> QuantizedWeight:
        """One of the weights in ``quantized``; raises :class:`InputError` when it is damaged."""
        assert self.scheme is not None
        return read_quantized(self.quantized[name], name, self.scheme)

    def skeleton(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
        """The model without its weights: parameters on the meta device, buffers on ``device``, in eval mode.

        Raises:
            InputError: when transformers has no model of this config by itself.
        """
        with naming(self.folder):
            return empty_model(self.config, dtype, device)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; raises :class:`InputError` when the folder has none."""
        with naming(self.folder):
            return AutoTokenizer.from_pretrained(self.folder, config=self.config, trust_remote_code=False)


_DTYPES = {name: getattr(torch, dtype) for dtype, name in FLOATS.items()}


class _Index(msgspec.Struct, frozen=True):
    """What ``model.safetensors.index.json`` says: the file of each tensor."""

    weight_map: dict[str, str]
