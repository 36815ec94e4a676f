"""Experts as linears: one rule for all that transformers keeps in stacks.

A module of experts multiplies the tokens that are routed to each with a layer of ``gate_up_proj`` (``up_proj`` where
nothing gates), and what its gate makes of them with a layer of ``down_proj``. The module says whether layers are stored
transposed, and whether the rows of gate and up alternate. Where it does not, shapes do.

Whatever a gate computes, it computes channel by channel, and ``down_proj`` adds the channels up: so each expert has a
space of its own there, which may have any order.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from secateur.models.spaces import Fused, Linear


def find_experts(block: nn.Module, outside: str | None = None) -> Iterator[Linear]:
    """The linears of all experts in a block, expert by expert.

    Args:
        block: may have no weights.
        outside: the space that experts read and write, if it is known.
    """
    for path, module in block.named_modules():
        held = dict(module.named_parameters())
        stacks = [name for name, parameter in held.items() if parameter.ndim == 3]
        first = next((name for name in ("gate_up_proj", "up_proj") if name in stacks), None)
        if first is None or {*stacks} != {first, "down_proj"}:
            continue
        up, down = held[first], held["down_proj"]
        transposed = getattr(module, "is_transposed", up.shape[2] != down.shape[1])
        fused: Fused = "stacked" if getattr(module, "is_concatenated", True) else "interleaved"
        # A norm, say, would lie along the space as well.
        alone = held.keys() <= {first, "down_proj", f"{first}_bias", "down_proj_bias"}
        for expert in range(len(up)):
            inside = f"{path.removesuffix('.experts')}.{expert}" if alone else None
            parts = (inside, inside) if inside and first == "gate_up_proj" else inside
            for name, reads, writes in ((first, outside, parts), ("down_proj", inside, outside)):
                yield Linear(
                    f"{path}.{expert}.{name}",
                    reads,
                    writes,
                    fused=fused if name == first else "stacked",
                    transposed=transposed,
                    stack=f"{path}.{name}",
                    expert=expert,
                )


def experts_per_token(config: Any) -> int:
    """To how many experts of a stack a token goes, at most, by the config of a language model."""
    count = getattr(config, "num_experts_per_tok", 1)
    return max(count) if isinstance(count, list) else count  # HunYuan may name one for each block


def routers(block: nn.Module) -> set[str]:
    """The names of the linears in a block that say where a token goes, or how much of something counts.

    That is what has a row for each expert beside a module that is called ``experts``, and what has a single row. An MLP
    that has by chance as many rows has several linears.
    """
    found = set()
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == 1:
            found.add(path)
        experts = getattr(module, "experts", None)
        if not isinstance(experts, nn.Module):
            continue
        count = len(experts) if isinstance(experts, nn.ModuleList) else len(next(experts.parameters(), ()))
        for owner, inner in module.named_modules(prefix=path):
            linears = {name: one for name, one in inner.named_children() if isinstance(one, nn.Linear)}
            if inner is module or len(linears) == 1:
                found |= {f"{owner}.{name}".lstrip(".") for name, one in linears.items() if one.out_features == count}
    return found
