"""What pruning a model would take, and what it would be."""

import math
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from secateur.planning.costs import FLOPS
from secateur.planning.plan import Plan

_LETTERS = " kMGTPE"


def plan_tables(result: Plan) -> list[Table]:
    """The work, where it is done; what would be written; what bounds its speed."""
    return [_work(result), _memory(result), _sizes(result), _bounds(result)]


def _work(result: Plan) -> Table:
    """Stage by stage: expected seconds, and FLOPs of products of matrices."""
    table = _table(escape(f"{result.model} by {result.method}"), "stage", "for", "FLOPs", "expected")
    for stage, seconds in result.seconds.items():
        parts: dict[str, list[float]] = {}
        for cost in result.costs:
            if cost.stage == stage:
                part = parts.setdefault(cost.what, [0.0, 0.0])
                part[0] += cost.amount / getattr(result.rates, cost.kind)
                part[1] += cost.amount if cost.kind in FLOPS else 0
        for number, (what, (spent, flops)) in enumerate(parts.items()):
            table.add_row(stage if number == 0 else "", what, _scaled(flops) if flops else "", _time(spent))
        if parts:
            table.add_row("", "", "", f"[bold]{_time(seconds)}[/]", end_section=True)
    table.add_row("all", "", _scaled(sum(result.flops.values())), f"[bold]{_time(result.total)}[/]")
    return table


def _memory(result: Plan) -> Table:
    """Peaks of memory by what is in it, and the disk."""
    table = _table("memory at the peak, and disk", "where", "for", "")
    disk = {"read": result.disk.read, "written": result.disk.written, "temporary": result.disk.temporary}
    places: dict[str, Mapping[str, int]] = {"memory": result.memory.host, "GPU memory": result.memory.device}
    for where, parts in places.items():
        for number, (what, size) in enumerate(parts.items()):
            table.add_row(where if number == 0 else "", what, _size(size))
        if parts:
            table.add_row("", "", f"[bold]{_size(sum(parts.values()))}[/]", end_section=True)
    for number, (what, size) in enumerate((what, size) for what, size in disk.items() if size):
        table.add_row("disk" if number == 0 else "", what, _size(size))
    return table


def _sizes(result: Plan) -> Table:
    sizes = _table(f"the model at {escape(result.pattern)}, in MB", "linears")
    for column in ("number", "shapes", "bfloat16", "packed", "packed int8", "packed int4"):
        sizes.add_column(column, justify="left" if column == "shapes" else "right")
    for row in result.roles:
        shapes = "\n".join(f"{rows}×{columns}" for rows, columns in row.shapes)
        cells = _shrinking(row.size.dense, row.size.bfloat16, row.size.int8, row.size.int4)
        sizes.add_row(row.role, str(row.linears), shapes, *cells, end_section=row is result.roles[-1])
    sizes.add_row("whole model", "", "", *_shrinking(*(bound.model_bytes for bound in result.bounds)))
    return sizes


def _bounds(result: Plan) -> Table:
    bounds = _table(
        "generating text, one sequence at a time",
        "weights", "MB per token", "GB/s", "tokens/s at most", "times dense, by bytes",
    )  # fmt: skip
    for bound in result.bounds:
        name = {"dense": "bfloat16", "bfloat16": "packed"}.get(bound.weights, f"packed {bound.weights}")
        numbers = f"{bound.token_bytes / 1e6:,.1f}", f"{bound.read_rate / 1e9:.1f}", f"{bound.tokens_per_second:,.1f}"
        bounds.add_row(name, *numbers, f"{bound.by_bytes:.2f}")
    return bounds


def _table(title: str, *columns: str) -> Table:
    """A table whose first columns are words, and whose last ones are numbers."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in (columns[0], "for") else "right")
    return table


def _shrinking(dense: int, *packed: int) -> list[str]:
    """Bytes in MB, and as shares of the dense ones."""
    return [f"{dense / 1e6:,.1f}", *(f"{part / 1e6:,.1f} ({part / dense:.4f})" for part in packed)]


def _scaled(number: float) -> str:
    """With three digits, and a letter for the thousands."""
    thousands = min(len(_LETTERS) - 1, int(math.log10(max(1, number)) // 3))
    return f"{number / 1000**thousands:,.3g} {_LETTERS[thousands]}".strip()


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _time(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02} h"


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
