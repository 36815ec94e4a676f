"""Load a model folder for running it, whatever Secateur wrote there."""

import warnings
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from secateur.checkpoint import Source, check, load_into, load_whole
from secateur.checkpoint.packed import Entry
from secateur.checkpoint.sparse import stack_rows
from secateur.devices import choose_device
from secateur.errors import naming
from secateur.models.gather import ORDER, attach_orders
from secateur.runtime.acceleration import accelerate, check_form
from secateur.runtime.kernels import KERNELS
from secateur.runtime.sparse_experts import keep_experts
from secateur.runtime.sparse_linear import SparseLinear, has_triton


def load(
    folder: str | Path, dtype: torch.dtype | str = "auto", device: torch.device | str = "cpu", form: str = "auto"
) -> PreTrainedModel:
    """A transformers model, in eval mode.

    A plain folder loads as ``AutoModelForCausalLM.from_pretrained`` loads it; one that was written with
    ``--fold gather`` gets the norms that it needs.

    A folder that was packed keeps its weights packed, as :class:`~secateur.runtime.sparse_linear.SparseLinear`,
    where there are kernels for them: for bfloat16 and int8 values, on the CPU experts included. Others are expanded,
    and take the memory and the time of a dense model.

    On a CUDA device pruned linears, whether they came packed or not, take the forms that are measured to be fastest, as
    :mod:`secateur.runtime.acceleration` has it. ``choices`` of the model says what was chosen, and why.

    Args:
        folder: a local model folder.
        dtype: ``auto`` for the precision in which it is stored.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` …
        form: on a CUDA device, the form of pruned linears: ``auto`` (the fastest), ``dense``, ``2:4`` or ``packed``.

    Raises:
        InputError: when there is no such device or form, or the folder cannot be read.
    """
    check_form(form)
    chosen = choose_device(str(device))
    source = Source(Path(folder))
    check(source)  # what goes by older names is left to transformers, which says as well what is missing
    if source.packed:
        model = _load_packed(source, dtype, chosen)
    else:
        model = load_whole(Path(folder), config=source.config, dtype=dtype)
    orders = source.read([name for name in source.names() if name.endswith(ORDER)])
    attach_orders(model, orders)
    model.to(chosen).eval()
    model.choices = accelerate(model, form) if chosen.type == "cuda" else ()
    return model


def _load_packed(source: Source, dtype: torch.dtype | str, device: torch.device) -> PreTrainedModel:
    """The model on the CPU; its sparse weights stay packed if there are kernels for them on ``device``."""
    keep = has_triton() if device.type == "cuda" else device.type == "cpu" and bool(KERNELS)
    if device.type == "cpu" and not KERNELS:
        warnings.warn(
            "Secateur was installed without a C++ compiler: packed weights run as slowly as dense ones",
            stacklevel=3,
        )
    stored = source.config.dtype or torch.float32
    precision = stored if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."))
    model = source.skeleton(precision)
    packed = _keep_packed(model, source, precision, experts=device.type == "cpu") if keep else set()
    # What no kernel runs is expanded as it is read: other types, and transposed weights.
    load_into(model, source.read([name for name in source.names() if name not in packed]), "", torch.device("cpu"))
    model.tie_weights()
    if (source.folder / "generation_config.json").is_file():
        with naming(source.folder):
            model.generation_config = GenerationConfig.from_pretrained(source.folder)
    return model


def _has_kernels(entry: Entry, precision: torch.dtype) -> bool:
    """Whether the values that a file declares run packed, or do once they are rounded to ``precision``."""
    return bool(entry.group) or entry.dtype == "bfloat16" or precision == torch.bfloat16


def _keep_packed(model: PreTrainedModel, source: Source, precision: torch.dtype, experts: bool) -> set[str]:
    """Let modules that multiply with packed weights stand in ``model`` where there are kernels for these.

    Args:
        model: a skeleton.
        source: of packed weights.
        precision: of the model.
        experts: whether stacks of experts stay packed too.

    Returns:
        The names of the parameters that are not needed any more.
    """
    packed = set()
    for name in source.names():
        layers = source.stacks.layers(name)
        entries = [source.sparse.get(part) for layer in layers for part in layer]
        stacked = name in source.stacks.members
        if (stacked and not experts) or not all(entry and _has_kernels(entry, precision) for entry in entries):
            continue
        weights = [stack_rows([source.read_sparse(part) for part in layer], name) for layer in layers]
        if precision == torch.bfloat16:
            weights = [weight.to(precision) for weight in weights]
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        if stacked:
            keep_experts(owner, attribute, weights)
        elif isinstance(owner, nn.Linear):
            model.set_submodule(path, SparseLinear(weights[0], owner.bias))
        else:
            continue
        packed.add(name)
    return packed
