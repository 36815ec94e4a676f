"""Load a model folder for running it, whatever Secateur wrote there."""

import warnings
import weakref
from contextlib import ExitStack
from math import prod
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from secateur.checkpoint import Source, load_into, load_whole, local_folder
from secateur.checkpoint.sparse import stack_rows
from secateur.devices import choose_device, free_memory
from secateur.errors import InputError, Notice, naming
from secateur.models.gather import ORDER, attach_orders
from secateur.runtime.acceleration import accelerate, check_form
from secateur.runtime.kernels import KERNELS
from secateur.runtime.offloading import offload, offloaded_bytes
from secateur.runtime.sparse_experts import keep_experts
from secateur.runtime.sparse_linear import SparseLinear, has_triton
from secateur.sizes import parse_size, show_size

# What may be used is what is free when the model is loaded.
FREE = "free"
# Weights may take so much of what may be used; the rest is for activations.
SHARE_OF_WEIGHTS = 0.9


def load(
    model: str | Path,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    form: str = "auto",
    memory: str | None = None,
) -> PreTrainedModel:
    """A transformers model, in eval mode, of whatever the commands take.

    A plain folder loads as ``AutoModelForCausalLM.from_pretrained`` loads it; one that was written with
    ``--fold gather`` gets the norms that it needs.

    Weights that are quantized, or stored in floats of few bits, are decoded once, and run dense.

    A folder that was packed keeps its weights packed, as :class:`~secateur.runtime.sparse_linear.SparseLinear`,
    where there are kernels for them: for bfloat16 and int8 values, on the CPU experts included. Others are expanded,
    and take the memory and the time of a dense model.

    On a CUDA device pruned linears, whether they came packed or not, take the forms that are measured to be fastest, as
    :mod:`secateur.runtime.acceleration` has it. ``choices`` of the model says what was chosen, and why.

    Where ``memory`` is too little for the whole model, its blocks are read from its files, which have to stay where
    they are, each time that they run (:mod:`secateur.runtime.offloading`): a forward pass then reads the model once,
    and runs it dense. ``offloaded`` of the model has them; it is None of a model that is loaded whole.

    Args:
        model: a hub name, a folder, or a ``.gguf`` file.
        dtype: ``auto`` for the precision in which it is stored.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` …
        form: on a CUDA device, the form of pruned linears: ``auto`` (the fastest), ``dense``, ``2:4`` or ``packed``.
        memory: how much of the device's memory may be used: a size such as ``8GB``, or ``free`` for what is free now.
            By default the model is loaded whole, whatever it takes.

    Raises:
        InputError: when there is no such device or form, or the model cannot be read, or not in so little memory.
    """
    check_form(form)
    chosen = choose_device(str(device))
    with ExitStack() as stack:
        folder = stack.enter_context(local_folder(str(model)))
        loaded = _load(folder, dtype, chosen, form, memory)
        if loaded.offloaded:  # what was unpacked for this model is there as long as it is
            weakref.finalize(loaded, stack.pop_all().close)
    return loaded


def _load(
    folder: Path, dtype: torch.dtype | str, chosen: torch.device, form: str, memory: str | None
) -> PreTrainedModel:
    """The same of a folder that has been checked."""
    source = Source(folder)
    precision = source.precision if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."))
    if memory is not None and not _fits(source, precision, chosen, memory):
        if form not in ("auto", "dense"):
            raise InputError(f"{folder} does not fit whole into memory, and blocks that are read as they run are dense")
        model = offload(source, precision, chosen)
        _add_generation_config(model, source)
        model.choices = ()
        return model
    if source.packed or source.decodes:
        model = _load_in_parts(source, precision, chosen)
    else:
        model = load_whole(folder, config=source.config, dtype=dtype)
    orders = source.read([name for name in source.names() if name.endswith(ORDER)])
    attach_orders(model, orders)
    model.to(chosen).eval()
    model.choices = accelerate(model, form) if chosen.type == "cuda" else ()
    model.offloaded = None
    return model


def _fits(source: Source, precision: torch.dtype, device: torch.device, memory: str) -> bool:
    """Whether the model may be loaded whole; says so where it may not, and what that means.

    Raises:
        InputError: when not even one block fits at a time.
    """
    bound = free_memory(device) if memory == FREE else parse_size(memory)
    whole = 0
    for name in source.names():
        if _stays_packed(source, name, precision, device):
            whole += sum(source.held[part].nbytes for part in source.stacks.parts(name))
        else:
            whole += prod(source.shape(name)) * precision.itemsize
    # On its way to a GPU it is in the host's memory.
    on_host = device.type == "cpu" or whole <= free_memory(torch.device("cpu"))
    if whole <= SHARE_OF_WEIGHTS * bound and on_host:
        return True
    least = offloaded_bytes(source, precision, device)
    if memory != FREE and least > bound:
        raise InputError(
            f"{source.folder} takes {show_size(least)} even with one block at a time in memory, and --memory allows "
            f"{show_size(bound)}"
        )
    warnings.warn(
        f"{source.folder} takes {show_size(whole)}, more than {show_size(bound)} of memory allow: its blocks are read "
        "from disk when they run (all of them for each forward pass; once for all texts whose perplexity is measured)",
        Notice,
        stacklevel=4,
    )
    return False


def _load_in_parts(source: Source, precision: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model on the CPU; its sparse weights stay packed if there are kernels for them on ``device``."""
    if source.packed and device.type == "cpu" and not KERNELS:
        warnings.warn(
            "Secateur was installed without a C++ compiler: packed weights run as slowly as dense ones",
            Notice,
            stacklevel=4,
        )
    model = source.skeleton(precision)
    packed = _keep_packed(model, source, precision, device)
    # What no kernel runs is expanded as it is read: other types, and transposed weights.
    load_into(model, source.read([name for name in source.names() if name not in packed]), "", torch.device("cpu"))
    model.tie_weights()
    _add_generation_config(model, source)
    return model


def _add_generation_config(model: PreTrainedModel, source: Source) -> None:
    """As ``from_pretrained`` does."""
    if (source.folder / "generation_config.json").is_file():
        with naming(source.folder):
            model.generation_config = GenerationConfig.from_pretrained(source.folder)


def _stays_packed(source: Source, name: str, precision: torch.dtype, device: torch.device) -> bool:
    """Whether what the files declare of a tensor runs packed, or does once it is rounded to ``precision``."""
    on_gpu = device.type == "cuda"
    if not (has_triton() if on_gpu else device.type == "cpu" and KERNELS) or (on_gpu and name in source.stacks.members):
        return False
    entries = [source.sparse.get(part) for part in source.stacks.parts(name)]
    return all(
        entry and not entry.layers and (entry.group or entry.dtype == "bfloat16" or precision == torch.bfloat16)
        for entry in entries
    )


def _keep_packed(model: PreTrainedModel, source: Source, precision: torch.dtype, device: torch.device) -> set[str]:
    """Let modules that multiply with packed weights stand in ``model`` where there are kernels for these on ``device``.

    Args:
        model: a skeleton.
        source: of packed weights.
        precision: of the model.
        device: where it is to run.

    Returns:
        The names of the parameters that are not needed any more.
    """
    packed = set()
    for name in source.names():
        if not _stays_packed(source, name, precision, device):
            continue
        stacked, layers = name in source.stacks.members, source.stacks.layers(name)
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
