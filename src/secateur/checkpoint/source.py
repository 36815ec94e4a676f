"""Read a model folder, tensor by tensor."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from secateur.checkpoint.experts import Stacks
from secateur.checkpoint.layout import GATHER_TYPE, INDEX, PACKED_TYPE, WEIGHTS
from secateur.checkpoint.packed import Entry, declared, parts_of, read_sparse
from secateur.checkpoint.sparse import SparseWeight
from secateur.errors import InputError


class Source:
    """A model folder whose tensors are read when they are asked for.

    Attributes:
        folder: the folder.
        config: its Hugging Face config.
        gathers: whether its norms need orders that only Secateur applies (``--fold gather``).
        files: the safetensors file of each tensor that the files hold.
        stacks: which of them the model has as one tensor. All else here goes by the model's names.
        packed: whether it is a packed folder.
        sparse: what its files say of their sparse weights, by name; to all else they look like dense ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config, self.packed, self.gathers = read_config(folder)
        self.files = self._index()
        self.sparse: dict[str, Entry] = {}
        if self.packed:
            self._find_sparse()
        self.stacks = Stacks(self.files)

    def _index(self) -> dict[str, Path]:
        # As transformers looks for them: whatever else lies in the folder is not this model's.
        if (self.folder / WEIGHTS).is_file():
            return dict.fromkeys(_keys(self.folder / WEIGHTS), self.folder / WEIGHTS)
        if (self.folder / INDEX).is_file():
            return self._from_index(self.folder / INDEX)
        raise InputError(
            f"{self.folder} holds neither {WEIGHTS} nor {INDEX}; pickled weights (.bin, .pt) are not read: "
            "convert them with save_pretrained first"
        )

    def _from_index(self, index: Path) -> dict[str, Path]:
        try:
            weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{index} is damaged: {error!r}") from None
        for file in sorted(set(weight_map.values())):
            # What a file says is never to be trusted with a path.
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise InputError(f"{index} names {file!r}, which is not the name of a .safetensors file beside it")
            if not (self.folder / file).is_file():
                raise InputError(f"{self.folder} lacks {file}, which its index names")
        return {name: self.folder / file for name, file in weight_map.items()}

    def _find_sparse(self) -> None:
        """Let sparse weights stand in ``files`` in place of their parts."""
        for shard in sorted(set(self.files.values())):
            for name, entry in declared(shard).items():
                if name in self.sparse:
                    raise InputError(f"{self.folder} declares {name} in two files")
                self.sparse[name] = entry
                self.files[name] = shard
                for part in parts_of(name, entry):
                    self.files.pop(part, None)

    def refuse_gathers(self, purpose: str) -> None:
        """Raise :class:`InputError` if plain transformers could not load it: ``purpose`` says what it is not for."""
        if self.packed:
            raise InputError(f"{self.folder} is packed, and cannot be {purpose}: secateur unpack it first")
        if self.gathers:
            raise InputError(f"{self.folder} was written with --fold gather, and cannot be {purpose}")

    def names(self, prefix: str = "") -> list[str]:
        """The names of the tensors that begin with ``prefix``, in the order of their files."""
        return [name for name in self.stacks.names if name.startswith(prefix)]

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors of these names, in the dtype in which they are stored, on the CPU.

        Raises:
            InputError: when a file is damaged.
        """
        wanted = [part for name in names for part in self.stacks.parts(name)]
        parts = {part: self.read_sparse(part).dense() for part in wanted if part in self.sparse}
        plain = [part for part in wanted if part not in self.sparse]
        for path in dict.fromkeys(self.files[part] for part in plain):
            try:
                with safe_open(path, framework="pt") as file:
                    parts |= {part: file.get_tensor(part) for part in plain if self.files[part] == path}
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged or incomplete: {error}") from error
        return {name: self.stacks.join(name, parts) for name in names}

    def read_sparse(self, name: str) -> SparseWeight:
        """One of the weights in ``sparse``; raises :class:`InputError` when it is damaged."""
        return read_sparse(self.files[name], name, self.sparse[name])

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

    def fits_model(self) -> bool:
        """Whether the tensors are named as today's model names them, its output head excepted.

        Nothing here runs the head, and some families store it under another name.
        """
        model = self.skeleton(torch.float32)
        head = model.get_output_embeddings()
        free = {id(p) for p in head.parameters()} if head is not None else set()
        expected = {name for name, p in model.named_parameters() if id(p) not in free}
        return expected <= set(self.names())


def read_config(folder: Path) -> tuple[PreTrainedConfig, bool, bool]:
    """The config of the model in ``folder``, whether its weights are packed, and whether its norms need orders.

    Raises:
        InputError: when there is none, or it cannot be used.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        packed = written.get("model_type") == PACKED_TYPE
        base = written["base"] if packed else written
        gathers = base.get("model_type") == GATHER_TYPE
        base = base["base"] if gathers else base
        config = (
            AutoConfig.for_model(**base)
            if gathers or packed
            else AutoConfig.from_pretrained(folder, trust_remote_code=False)
        )
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if quantization := getattr(config, "quantization_config", None):
        kind = dict(quantization).get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
        raise InputError(f"{folder} is quantized ({kind}): give the original model, in float32, bfloat16 or float16")
    return config, packed, gathers


def context_of(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model of ``config`` takes, or None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def empty_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The model of ``config`` with parameters on the meta device and buffers on ``device``, in eval mode."""
    with torch.device(device), init_empty_weights(include_buffers=False):
        # Only this way of running experts multiplies with each one's weight by itself.
        eager = {"experts_implementation": "eager"}
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False, **eager)
    return model.eval()


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Turn what transformers raises into an :class:`InputError` that names the folder."""
    try:
        yield
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise InputError(f"{folder} cannot be loaded: {error}") from error


def _keys(shard: Path) -> list[str]:
    try:
        with safe_open(shard, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{shard} is damaged or incomplete: {error}") from error


def load_into(module: nn.Module, tensors: dict[str, Tensor], prefix: str, device: torch.device) -> None:
    """Give ``module`` real weights: ``tensors`` of names that begin with ``prefix``, in the module's own dtype.

    Weights that already have that dtype and device are shared, not copied.
    """
    dtypes = {name: p.dtype for name, p in (*module.named_parameters(), *module.named_buffers())}
    state = {
        (key := name.removeprefix(prefix)): tensor.to(device, dtypes.get(key, tensor.dtype))
        for name, tensor in tensors.items()
    }
    module.load_state_dict(state, strict=False, assign=True)
