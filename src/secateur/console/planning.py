"""What pruning a model would take, and what it would be."""

import math
from collections.abc import Mapping

from secateur.console.tables import Grid
from secateur.console.terminal import show_time
from secateur.data import SELF
from secateur.planning.costs import FLOPS
from secateur.planning.plan import Plan

_LETTERS = " kMGTPE"
_ALL = "all"


def plan_tables(result: Plan) -> list[Grid]:
    """The work, where it is done; what would be written; what bounds its speed."""
    return [_work(result), _memory(result), _sizes(result), _bounds(result)]


def _work(result: Plan) -> Grid:
    """Stage by stage: expected seconds, and FLOPs of products of matrices."""
    table = Grid(f"{result.model} by {result.method}", ["for", "FLOPs", "expected"], group="stage")
    for stage, seconds in result.seconds.items():
        parts: dict[str, list[float]] = {}
        for cost in result.costs:
            if cost.stage == stage:
                part = parts.setdefault(cost.what, [0.0, 0.0])
                part[0] += cost.amount / getattr(result.rates, cost.kind)
                part[1] += cost.amount if cost.kind in FLOPS else 0
        for what, (spent, flops) in parts.items():
            table.add(what, _scaled(flops) if flops else "", show_time(spent), group=stage)
        if parts:
            table.add(_ALL, "", show_time(seconds), group=stage, style="bold", ends=True)
    table.add(_ALL, _scaled(sum(result.flops.values())), show_time(result.total), style="bold")
    return table


def _memory(result: Plan) -> Grid:
    """Peaks of memory by what is in it, and the disk."""
    table = Grid("memory at the peak, and disk", ["for", "bytes"], group="where")
    places: dict[str, Mapping[str, int]] = {"memory": result.memory.host, "GPU memory": result.memory.device}
    for where, parts in places.items():
        for what, size in parts.items():
            table.add(what, _size(size), group=where)
        if parts:
            table.add(_ALL, _size(sum(parts.values())), group=where, style="bold", ends=True)
    disk = {"read": result.disk.read, "written": result.disk.written, "temporary": result.disk.temporary}
    for what, size in disk.items():
        if size:
            table.add(what, _size(size), group="disk")
    return table


def _sizes(result: Plan) -> Grid:
    columns = ["linears", "shapes", "number", "bfloat16", "packed", "packed int8", "packed int4"]
    sizes = Grid(f"the model at {result.pattern}, in MB", columns, words=2)
    for row in result.roles:
        shapes = "\n".join(f"{rows}×{columns}" for rows, columns in row.shapes)
        cells = _shrinking(row.size.dense, row.size.bfloat16, row.size.int8, row.size.int4)
        sizes.add(row.role, shapes, str(row.linears), *cells, ends=row is result.roles[-1])
    sizes.add("whole model", "", "", *_shrinking(*(bound.model_bytes for bound in result.bounds)))
    return sizes


def _bounds(result: Plan) -> Grid:
    columns = ["weights", "MB per token", "GB/s", "tokens/s at most", "times dense, by bytes"]
    bounds = Grid("generating text, one sequence at a time", columns)
    for bound in result.bounds:
        name = {"dense": "bfloat16", "bfloat16": "packed"}.get(bound.weights, f"packed {bound.weights}")
        numbers = f"{bound.token_bytes / 1e6:,.1f}", f"{bound.read_rate / 1e9:.1f}", f"{bound.tokens_per_second:,.1f}"
        bounds.add(name, *numbers, f"{bound.by_bytes:.2f}")
    return bounds


def _shrinking(dense: int, *packed: int) -> list[str]:
    """Bytes in MB, and as shares of the dense ones."""
    return [f"{dense / 1e6:,.1f}", *(f"{part / 1e6:,.1f} ({part / dense:.4f})" for part in packed)]


def _scaled(number: float) -> str:
    """With three digits, and a letter for the thousands."""
    thousands = min(len(_LETTERS) - 1, int(math.log10(max(1, number)) // 3))
    return f"{number / 1000**thousands:,.3g} {_LETTERS[thousands]}".strip()


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def plan_notes(result: Plan) -> list[str]:
    """How the tables are meant."""
    removed = result.removed / max(1, result.prunable)
    notes = [
        f"{result.parameters:,} weights in {result.blocks} blocks and outside; {result.prunable:,} of them in linears "
        f"that are pruned, of which {100 * removed:.4g} % would be zero",
    ]
    if result.left_dense:
        share = 100 * sum(result.left_dense.values())
        names = ", ".join(list(result.left_dense)[:3])
        notes.append(f"{share:.3g} % of the weights in the blocks stay dense, since they are no linears: {names}")
    if SELF in result.calibration:
        notes.append(
            f"the model, whole in memory, writes {result.calibration[SELF]} samples itself first, unless they are kept "
            "from an earlier run; times and memory here are without that"
        )
    if result.tokens:
        notes.append(f"blocks are run on {result.tokens:,} tokens in all")
    notes.append(
        f"times are estimates for a machine that does nothing else, computing on {result.rates.device} in "
        f"{result.rates.dtype}; fetching model and text from the hub comes on top"
    )
    for where, parts, free in (
        ("of memory", result.memory.host, result.rates.free),
        ("of the GPU's memory", result.memory.device, result.rates.device_free),
    ):
        if (needed := sum(parts.values())) > free:
            notes.append(f"{_size(needed)} {where} are needed at the peak, and {_size(free)} are free here")
    notes += [
        "bytes depend on the share of weights that are kept, not on where they lie: 2:4, 16:32 and 50 % take the same",
        "tokens/s are bounds from above: the bytes of the weights over the rate at which so many are read here, as "
        f"measured ({result.machine}), without KV cache and arithmetic; "
        "where dense products stay below their bound, packing gains more than the bytes say",
    ]
    if result.dense_linears:
        notes.append(
            f"{result.dense_linears} linears, whose weights are transposed, are stored packed but run dense: "
            "MB per token count them so"
        )
    return notes
