"""Model folders in and out, a block at a time.

A checkpoint is a plain Hugging Face folder: config, tokenizer, safetensors. :class:`Source` reads its
tensors by name without loading the rest; :class:`Writer` writes one shard per block into a hidden folder
beside the destination, which takes its final name only when everything is in it.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from secateur.errors import InputError

MANIFEST = "secateur.json"
ORDERS = "secateur-orders.safetensors"
# What the config of a folder calls its model type when the model needs orders that transformers does not know.
GATHER_TYPE = "secateur-gather"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# What a model folder is made of besides weights; anything else (pickles, code) stays behind.
_COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")


# ---------------------------------------------------------------- finding


@contextmanager
def local_folder(model: str, scratch: Path | None = None) -> Iterator[Path]:
    """Turn what a user calls a model into a folder of safetensors, for as long as the context is open.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        scratch: where a GGUF file or a checkpoint of an old layout is unpacked for the time being.
    Raises:
        InputError: when there is nothing there, or nothing that can be read safely.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        folder, gguf_file = path.parent, path.name
    else:
        folder, gguf_file = path if path.exists() else _download(model), None
        if Source(folder).fits_model():
            yield folder
            return
    with tempfile.TemporaryDirectory(prefix=".secateur-", dir=scratch) as name:
        converted = Path(name)
        convert(folder, converted, gguf_file)
        if not Source(converted).fits_model():
            raise InputError(
                f"{model} keeps its weights in a layout that is not supported: transformers stores them otherwise than "
                "it holds them (stacked experts, for instance)"
            )
        yield converted


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=[*_COMPANIONS, "model*.safetensors"]))
    except HFValidationError:
        raise InputError(f"there is no folder or file {model}, and it cannot be a hub name") from None
    except Exception as error:  # the hub's client raises whatever its transport raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"there is no folder {model}, and the hub does not give a model of that name ({reason}); "
            "check the name and the connection, or give a local folder or .gguf file"
        ) from error


def convert(folder: Path, to: Path, gguf_file: str | None = None) -> None:
    """Load a model the way transformers does and write it to ``to`` in today's layout.

    Args:
        gguf_file: the name of a GGUF file in ``folder`` to read; its weights become plain floats.
    """
    where = {"gguf_file": gguf_file} if gguf_file else {}
    as_floats = {"quantization_config": GgufConfig(dequantize=True)} if gguf_file else {}
    model = load_whole(folder, dtype="auto", **where, **as_floats)
    with _named(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **where)
    model.hf_quantizer = None  # a model that came from GGUF still counts as quantized, and would not be saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def load_whole(folder: Path, **options: Any) -> PreTrainedModel:
    """What transformers makes of a model folder: from safetensors only, with no code from it, and no weight made up.

    Args:
        options: further ones of ``from_pretrained``.

    Raises:
        InputError: when it cannot be loaded, or lacks weights.
    """
    options = {"trust_remote_code": False, "use_safetensors": "gguf_file" not in options or None} | options
    with _named(folder / options.get("gguf_file", "")):
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    if absent := sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])}):
        raise InputError(f"{folder} lacks weights of its model, or has them in another shape: {', '.join(absent[:3])}")
    return model


# ---------------------------------------------------------------- reading


class Source:
    """A model folder whose tensors are read when they are asked for.

    Attributes:
        folder: the folder.
        config: its Hugging Face config.
        gathers: whether its norms need orders that only Secateur applies (``--fold gather``).
        files: the safetensors file of each tensor.
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
        return [name for name in self.files if name.startswith(prefix)]

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors of these names, in the dtype in which they are stored, on the CPU.

        Raises:
            InputError: when a file is damaged.
        """
        tensors: dict[str, Tensor] = {}
        for path in dict.fromkeys(self.files[name] for name in names):
            try:
                with safe_open(path, framework="pt") as file:
                    tensors |= {name: file.get_tensor(name) for name in names if self.files[name] == path}
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged or incomplete: {error}") from error
        return tensors

    def skeleton(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
        """The model without its weights: parameters on the meta device, buffers on ``device``, in eval mode.

        Raises:
            InputError: when transformers has no model of this config by itself.
        """
        with _named(self.folder), torch.device(device), init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(self.config, dtype=dtype, trust_remote_code=False)
        model.eval()
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; raises :class:`InputError` when the folder has none."""
        with _named(self.folder):
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    def fits_model(self) -> bool:
        """Whether the tensors are named as today's model names them, its output head excepted.

        Nothing here runs the head, and some families store it under another name.
        """
        model = self.skeleton(torch.float32)
        head = model.get_output_embeddings()
        free = {id(p) for p in head.parameters()} if head is not None else set()
        expected = {name for name, p in model.named_parameters() if id(p) not in free}
        return expected <= set(self.files)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
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


# ---------------------------------------------------------------- writing


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

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Write one shard of named tensors."""
        self.shards.append({name: tensor.nbytes for name, tensor in tensors.items()})
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, self.folder / f"{len(self.shards)}.shard", metadata={"format": "pt"})

    def finish(
        self,
        companions_from: Path,
        manifest: dict[str, Any],
        orders: dict[str, Tensor] | None = None,
        gathers: bool = False,
    ) -> None:
        """Name the shards, add config, tokenizer, manifest and orders, and put the folder in place.

        Args:
            companions_from: the folder whose config and tokenizer these are.
            manifest: the content of ``secateur.json``.
            orders: int64 tensors to keep beside the weights.
            gathers: the model is wrong without its gather orders: plain transformers must refuse it.
        """
        total = len(self.shards)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self.shards, 1):
            name = f"model-{number:05}-of-{total:05}.safetensors"
            (self.folder / f"{number}.shard").rename(self.folder / name)
            weight_map |= dict.fromkeys(shard, name)
        size = sum(sum(shard.values()) for shard in self.shards)
        _write_json(self.folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
        for pattern in _COMPANIONS:
            for file in companions_from.glob(pattern):
                if not file.name.endswith(".index.json") and file.name != MANIFEST:
                    shutil.copyfile(file, self.folder / file.name)
        if gathers:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            _write_json(self.folder / "config.json", {"model_type": GATHER_TYPE, "base": config})
        if orders:
            save_file({name: order.contiguous() for name, order in orders.items()}, self.folder / ORDERS)
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
