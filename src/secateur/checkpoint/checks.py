"""The one check of a model folder: do its files hold the model that its config describes, and nothing else?

Every command that reads a model comes through here before it does anything long. Only headers are read: names, shapes
and types of all tensors are compared with the model that transformers builds of the config, the output head included.
Values are looked at when they are read anyway (:func:`check_finite`).
"""

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur.checkpoint.layout import ADAPTERS, ORDERS, beside_weights
from secateur.checkpoint.shards import FLOATS, reading
from secateur.checkpoint.source import Source
from secateur.errors import InputError, naming
from secateur.files import member, read_as, read_object
from secateur.models.gather import ORDER

# The largest vocabularies, of a quarter of a million tokens, take half of it.
MOST_BYTES_OF_TOKENS = 64 << 20
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def opened(folder: Path) -> Source:
    """The model folder, checked.

    Raises:
        InputError: when it is none, or not whole; or when its tensors go by other names than today's.
    """
    source = Source(folder)
    if not check(source):
        raise InputError(f"{folder} names its tensors otherwise than {source.config.model_type} models do today")
    return source


def check(source: Source) -> bool:
    """Compare what the files of a folder hold with what its config describes.

    Returns:
        False where the names are others, as in files of older layouts: transformers may know how to read those. Then
        nothing is known of shapes but that the files hold enough weights.

    Raises:
        InputError: when anything is missing or left over, or is not what it should be; it says what, and where.
    """
    folder, config = source.folder, source.folder / "config.json"
    _check_companions(folder)
    model = source.described
    names = _by_name(model)
    held = set(source.names()) - _orders(source, model)
    missing = [aliases[0] for aliases in set(names.values()) if not held.intersection(aliases)]
    more = [name for name in source.names() if name in held and name not in names and not is_passed_over(name, model)]
    if missing and more and not source.packed and not source.decodes:
        check_size(model, sum(prod(one.shape) for one in source.held.values()), config)
        return False
    if missing:
        raise InputError(f"{folder} lacks weights of its model: {_listed(missing)}")
    if more:
        raise InputError(f"{folder} holds tensors that its model, by {config.name}, does not have: {_listed(more)}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in held & names.keys():
        _check_tensor(source, name, tuple(parameters[name].shape))
    _check_ids(source, model)
    return True


def read_orders(folder: Path, *, whole: bool = True) -> dict[str, Tensor]:
    """The orders of channels that a folder records, int64, by space or linear; none if it has none.

    Args:
        whole: each is to be an order of all channels; else it may be one of those that were left (``secateur shrink``).

    Raises:
        InputError: when one of them is no order.
    """
    if (path := member(folder, ORDERS)) is None:
        return {}
    with reading(path) as file:
        orders = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    for name, order in orders.items():
        plain = order.dtype == torch.int64 and order.ndim == 1
        if not plain or not (_is_order(order, len(order)) if whole else _is_selection(order)):
            raise InputError(f"{path} is damaged: {name} is no order of channels")
    return orders


def _is_order(order: Tensor, size: int) -> bool:
    return torch.equal(order.sort().values, torch.arange(size))


def _is_selection(order: Tensor) -> bool:
    return bool((order >= 0).all()) and len(order.unique()) == len(order)


def check_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raise :class:`InputError`, naming the first, if any of some tensors of ``folder`` holds NaN or infinity."""
    for name, tensor in tensors.items():
        # Not finite is a sum of what is not finite; the other way round it may have overflowed, and is looked at again.
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
            bad = tensor.numel() - int(tensor.isfinite().sum())
            if bad:
                raise InputError(
                    f"{folder}: {bad} of the {tensor.numel()} values of {name} are NaN or infinite; the checkpoint is "
                    "damaged"
                )


# ---------------------------------------------------------------- names


def _by_name(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """All names of each parameter, by each of them: files hold a tied weight under one, or under both."""
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    return {name: tuple(names) for names in aliases.values() for name in names}


def is_passed_over(name: str, model: PreTrainedModel) -> bool:
    """Whether ``name`` is of what older files hold as well: tables that today's model computes when it is built."""
    if name in dict(model.named_buffers()):
        return True
    patterns = {
        r"rotary_emb\.inv_freq$",
        r"(^|\.)position_ids$",
        r"\.masked_bias$",
        *(model._keys_to_ignore_on_load_unexpected or ()),
    }
    return any(re.search(pattern, name) for pattern in patterns)


def _orders(source: Source, model: PreTrainedModel) -> set[str]:
    """The names of the orders that norms gather by (``--fold gather``); each is checked to be one."""
    names = {name for name in source.names() if name.endswith(ORDER)} if source.gathers else set()
    if source.gathers and not names:
        raise InputError(f"{source.folder} was written with --fold gather, and lacks its orders (tensors *{ORDER})")
    modules = dict(model.named_modules())
    for name in names:
        weight = getattr(modules.get(name.removesuffix(ORDER)), "weight", None)
        size = weight.shape[0] if weight is not None else 0
        if source.held[name].dtype != "I64" or source.shape(name) != (size,):
            raise InputError(f"{source.held[name].file}: {name} is no order of a norm's {size} channels")
        order = source.read([name])[name]
        if not _is_order(order, size):
            raise InputError(f"{source.held[name].file}: {name} does not name each of {size} channels once")
    return names


def _listed(names: Iterable[str]) -> str:
    first, *more = sorted(names)
    return ", ".join([first, *more[:2]]) + (f" and {len(more) - 2} others" if len(more) > 2 else "")


# ---------------------------------------------------------------- shapes, types, sizes


def _check_tensor(source: Source, name: str, shape: tuple[int, ...]) -> None:
    parts = source.stacks.parts(name)
    if foreign := [part for part in parts if source.held[part].dtype not in FLOATS.values()]:
        held = source.held[foreign[0]]
        raise InputError(f"{held.file}: {foreign[0]} is of type {held.dtype}; weights must be {', '.join(FLOATS)}")
    if (found := source.shape(name)) != shape:
        raise InputError(f"{source.held[parts[0]].file}: {name} is {_size(found)}, and config.json says {_size(shape)}")


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def check_size(model: PreTrainedModel, held: int, path: Path) -> None:
    """Whoever converts files of an older layout builds the whole model first."""
    if (needed := sum(parameter.numel() for parameter in model.parameters())) > held:
        raise InputError(f"{path} describes a model of {needed:,} weights, and the files hold {held:,} numbers")


# ---------------------------------------------------------------- what lies beside the weights


def _check_companions(folder: Path) -> None:
    for name in beside_weights(folder):
        member(folder, name)
    if found := [name for name in ADAPTERS if member(folder, name)]:
        raise InputError(
            f"{folder} holds an adapter ({found[0]}), which would be left out: merge it into the model first "
            "(peft's merge_and_unload), or take it away"
        )
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if path := member(folder, name):
            read_object(path)


def _check_ids(source: Source, model: PreTrainedModel) -> None:
    """Special tokens, and the tokenizer's, have a row in the embedding."""
    with naming(source.folder):
        rows = model.get_input_embeddings().weight.shape[0]
    text = source.config.get_text_config()
    _check_special({key: getattr(text, key, None) for key in SPECIAL}, rows, source.folder / "config.json")
    if path := member(source.folder, "generation_config.json"):
        _check_special(read_object(path), rows, path)
    if path := member(source.folder, "tokenizer.json"):
        tokenizer = read_as(_Tokenizer, path, MOST_BYTES_OF_TOKENS)
        ids = tokenizer.model.ids()
        # Special ones beyond the embedding are for other models of the family: text does not hold them.
        ids += [(token.id, token.content) for token in tokenizer.added_tokens if not token.special]
        if ids and max(ids)[0] >= rows:
            number, token = max(ids)
            raise InputError(f"{path}: token {token!r} has the id {number}, and the embedding has {rows} rows")


def _check_special(config: Mapping[str, Any], rows: int, path: Path) -> None:
    for key in SPECIAL:
        value = config.get(key)
        for one in value if isinstance(value, list) else [value]:
            unset = one is None or (key == "pad_token_id" and one == -1)  # as torch counts, this one is the last row
            if not unset and (type(one) is not int or not 0 <= one < rows):
                raise InputError(f"{path}: {key} is {value!r}, and the vocabulary has {rows} tokens")


class _Added(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool = False


class _Vocabulary(msgspec.Struct, frozen=True):
    vocab: dict[str, int] | list[tuple[str, float]] = {}

    def ids(self) -> list[tuple[int, str]]:
        """The largest id, if there is one, and its token; a list has a token in each place."""
        if isinstance(self.vocab, list):
            return [(len(self.vocab) - 1, self.vocab[-1][0])] if self.vocab else []
        return [max((number, token) for token, number in self.vocab.items())] if self.vocab else []


class _Tokenizer(msgspec.Struct, frozen=True):
    """What ``tokenizer.json`` says of ids."""

    model: _Vocabulary
    added_tokens: list[_Added] = []
