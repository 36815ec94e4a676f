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
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from secateur.checkpoint.experts import Stacks
from secateur.checkpoint.layout import GATHER_TYPE, INDEX, WEIGHTS
from secateur.errors import InputError


class Source:
    """A model folder whose tensors are read when they are asked for.

    Attributes:
        folder: the folder.
        config: its Hugging Face config.
        gathers: whether its norms need orders that only Secateur applies (``--fold gather``).
        files: the safetensors file of each tensor that the files hold.
        stacks: which of them the model has as one tensor. All else here goes by the model's names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is not a model folder: it has no config.json")
        try:
            written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self.gathers = written.get("model_type") == GATHER_TYPE
            base = written.get("base")
            self.config = (
                AutoConfig.for_model(**base)
                if self.gathers
                else AutoConfig.from_pretrained(folder, trust_remote_code=False)
            )
        except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{folder / 'config.json'} cannot be read: {error}") from error
        if quantization := getattr(self.config, "quantization_config", None):
            kind = dict(quantization).get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
            raise InputError(
                f"{folder} is quantized ({kind}): give the original model, in float32, bfloat16 or float16"
            )
        self.files = self._index()
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

    def refuse_gathers(self, purpose: str) -> None:
        """Raise :class:`InputError` if the model gathers: ``purpose`` says what cannot be done with it."""
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
        parts: dict[str, Tensor] = {}
        wanted = [part for name in names for part in self.stacks.parts(name)]
        for path in dict.fromkeys(self.files[part] for part in wanted):
            try:
                with safe_open(path, framework="pt") as file:
                    parts |= {part: file.get_tensor(part) for part in wanted if self.files[part] == path}
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged or incomplete: {error}") from error
        return {name: self.stacks.join(name, parts) for name in names}

    def skeleton(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
        """The model without its weights: parameters on the meta device, buffers on ``device``, in eval mode.

        Raises:
            InputError: when transformers has no model of this config by itself.
        """
        with naming(self.folder), torch.device(device), init_empty_weights(include_buffers=False):
            # Only this way of running experts multiplies with each one's weight by itself.
            eager = {"experts_implementation": "eager"}
            model = AutoModelForCausalLM.from_config(self.config, dtype=dtype, trust_remote_code=False, **eager)
        model.eval()
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; raises :class:`InputError` when the folder has none."""
        with naming(self.folder):
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    def fits_model(self) -> bool:
        """Whether the tensors are named as today's model names them, its output head excepted.

        Nothing here runs the head, and some families store it under another name.
        """
        model = self.skeleton(torch.float32)
        head = model.get_output_embeddings()
        free = {id(p) for p in head.parameters()} if head is not None else set()
        expected = {name for name, p in model.named_parameters() if id(p) not in free}
        return expected <= set(self.names())


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
