"""How a model calls its blocks, recorded once per batch with the blocks stubbed out, and where batches are padded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from secateur.errors import InputError, naming
from secateur.memory import Shelf
from secateur.models.blocks import Block

Batch = Tensor | Mapping[str, Any]

UNPADDED = "give samples of one length, or one at a time, without padding"


class StopForward(BaseException):
    """Thrown to leave a forward pass whose rest nobody needs: no error, so that nobody takes it for one."""


@dataclass(frozen=True)
class Call:
    """What a model passes to a block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@torch.no_grad()
def record(model: nn.Module, blocks: Sequence[Block], batches: Sequence[Batch], hidden: Shelf) -> list[list[Call]]:
    """The calls, by block and batch; ``hidden`` gets the hidden states that enter the first block, per batch.

    Calls that do not differ between batches are one object: masks and positions are kept once.

    Raises:
        InputError: when blocks cannot be called by themselves as the model calls them.
    """
    calls: list[list[Call]] = [[] for _ in blocks]
    first_output: Any = None
    passed: Tensor | None = None  # what the block before has answered

    def stub_of(index: int) -> Callable[..., Any]:
        genuine = blocks[index].module.forward

        def stub(*args: Any, **kwargs: Any) -> Any:
            nonlocal first_output, passed
            states, call = _part(args, kwargs)
            if any(isinstance(value, Cache) for value in (*call.args, *call.kwargs.values())):
                raise InputError(
                    f"{type(model).__name__} passes a cache to its blocks, and each later run of a block would add to "
                    "it: leave past_key_values and use_cache out of the batches"
                )
            if index and not _same(states, passed):
                raise InputError(
                    f"{type(model).__name__} changes the hidden states between its blocks {index - 1} and {index}, so "
                    "that what enters a block is not known from those before it"
                )
            passed = states
            if index == 0:
                hidden.append(states.clone())  # neither the model nor a block may change it in place
                if first_output is None:  # a tensor, or a tuple that begins with one? The stubs answer alike.
                    first_output = genuine(states.clone(), *call.args, **call.kwargs)
            previous = calls[index][-1] if calls[index] else None
            calls[index].append(previous if previous is not None and _same(previous, call) else call)
            if index == len(blocks) - 1:
                raise StopForward
            return (states, *first_output[1:]) if isinstance(first_output, tuple) else states

        return stub

    with _without_cache(model), _forwards({block.module: stub_of(i) for i, block in enumerate(blocks)}):
        for number, batch in enumerate(batches, 1):
            try:
                if isinstance(batch, Tensor):
                    with naming(type(model).__name__, "does not run on token ids alone"):
                        model(batch)
                else:
                    model(**batch)
            except StopForward:
                pass
            if idle := [block.prefix[:-1] for block, made in zip(blocks, calls, strict=True) if len(made) < number]:
                raise InputError(f"{type(model).__name__} did not run its block {idle[0]}")
    return calls


def finish(model: nn.Module, blocks: Sequence[Block], batch: Batch, output: Any) -> Any:
    """What ``model`` makes of a batch when ``output`` is what its last block gives: its last norm and head, mostly.

    Args:
        output: hidden states ``(B, L, H)``, or a tuple that begins with them, as its blocks answer.
    """

    def stub(*_: Any, **__: Any) -> Any:
        return output

    with _without_cache(model), _forwards({block.module: stub for block in blocks}):
        return model(batch) if isinstance(batch, Tensor) else model(**batch)


def real_tokens(
    model: nn.Module, blocks: Sequence[Block], batches: Sequence[Batch], hidden: Shelf
) -> list[Tensor | None]:
    """Where batches have tokens and no padding, by their attention masks: bool ``(B, L)``, or None for everywhere.

    Args:
        hidden: what enters the first block, ``(B, L, H)`` each.

    Raises:
        InputError: when a mask is not of the shape of what enters the blocks, or a decoder reads an encoder's padding.
    """
    inside_decoder = "decoder" in blocks[0].prefix.split(".")
    decodes = inside_decoder and getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    name = "decoder_attention_mask" if decodes else "attention_mask"
    found: list[Tensor | None] = []
    for number, (batch, states) in enumerate(zip(batches, hidden, strict=True)):
        masks = {key: mask for key in ("attention_mask", name) if (mask := _padding_mask(batch, key)) is not None}
        if decodes and "attention_mask" in masks:
            raise InputError(
                f"batch {number} is padded where the encoder reads it, and the decoder reads that: {UNPADDED}"
            )
        if (mask := masks.get(name)) is None:
            found.append(None)
            continue
        if mask.shape != states.shape[:-1]:
            raise InputError(
                f"batch {number} is padded by its {name} {tuple(mask.shape)}, but what enters the blocks is "
                f"{tuple(states.shape)}, so it cannot be told what of it is padding: {UNPADDED}"
            )
        found.append(mask.to(states.device).bool())
    return found


def _padding_mask(batch: Batch, name: str) -> Tensor | None:
    """The mask ``(B, L)`` of this name in a batch; None where there is none, or nothing is padded."""
    mask = batch.get(name) if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 and not mask.bool().all() else None


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Let models of transformers pass no cache to their blocks: each later run of a block would add to it.

    Every part of a model has its config: that of a wrapper, for vision and language, need not know of a cache.
    """
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    before = [(config, config.use_cache) for config in configs.values() if getattr(config, "use_cache", None)]
    for config, _ in before:
        config.use_cache = False
    try:
        yield
    finally:
        for config, value in before:
            config.use_cache = value


@contextmanager
def _forwards(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forward functions for a while."""
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward  # the class's own shows again
            if module in own:
                module.forward = own[module]


def _part(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """Part the hidden states, a block's first argument, from the rest."""
    if args:
        return args[0], Call(args[1:], kwargs)
    return kwargs["hidden_states"], Call((), {k: v for k, v in kwargs.items() if k != "hidden_states"})


def _same(a: Any, b: Any) -> bool:
    """Whether two recorded values are equal, tensors included."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Call) and isinstance(b, Call):
        return _same(a.args, b.args) and _same(a.kwargs, b.kwargs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or bool(a == b)
