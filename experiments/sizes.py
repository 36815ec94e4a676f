"""What large models would take to prune, as ``secateur plan`` predicts it: the tables of docs/sizes.md.

    python -m experiments.sizes > docs/sizes.md

Nothing of it is measured but the rates, and not all of those: the page says which. The configs in ``configs/`` have the
published shapes of the models.
"""

import sys
from dataclasses import fields
from pathlib import Path

import secateur
from secateur.planning.rates import Rates
from secateur.recipe import Recipe

CONFIGS = Path(__file__).parent / "configs"
RECIPES = {
    "fast (RI, 2:4)": Recipe.load("fast"),
    "RIA 50 %": Recipe(),
    "RIA 2:4": Recipe(pattern="2:4"),
    "good": Recipe.load("good"),
}
GB = 10**9
# Rounded from what one thread of an Emerald Rapids processor with AMX did beside other work, and scaled to 32 cores: 32
# times as fast in products, 12 to 16 times where memory bounds it. What one core does by itself is as fast as there.
CPU = Rates(
    device="cpu",
    dtype="bfloat16",
    products=16 * 0.8e12,
    products32=16 * 0.2e12,
    grams=16 * 0.4e12,
    moved=8 * 12e9,
    calls=1.7e5,
    pruned=8 * 1.5e7,
    selected=8 * 4e7,
    distances=16 * 2e9,
    assigned=5e9,
    listed=1.3e6,
    factored=16 * 4e10,
    diagonalized=4 * 1e10,
    hashed=1.2e9,
    tokenized=4e5,
    disk_read=2e9,
    disk_write=1e9,
    files=300,
    free=512 * GB,
    device_free=512 * GB,
    process=GB // 2,
)
# An H100. Products, and weights that are pruned, follow from what two blocks as wide as LLaMA-7B's took there; the rest
# is assumed.
H100 = Rates(
    device="cuda",
    dtype="bfloat16",
    products=4.3e14,
    products32=4.5e13,
    grams=1.5e14,
    moved=2e12,
    calls=1.5e5,
    pruned=1.7e8,
    selected=2e9,
    distances=1e12,
    assigned=5e9,
    listed=1.3e6,
    factored=5e12,
    diagonalized=7e10,
    hashed=1.5e9,
    tokenized=4e5,
    disk_read=2e9,
    disk_write=1e9,
    files=300,
    free=512 * GB,
    device_free=78 * GB,
    process=GB,
)
MACHINES = {"32 cores": (CPU, 1), "one H100": (H100, 1), "eight H100": (H100, 8)}


OPENING = """\
# What large models would take

**Predictions**, by `secateur plan`, from configs alone: none of these runs was made. `python -m experiments.sizes`
makes this page. 128 samples of 2,048 tokens; memory is that of one process at its peak, of which nothing is
left out that waits there because there is room; temporary is what waits in a file instead. The slowest stage
says where the time goes: blocks are read and written beside the rest.

The numbers of weights, bytes and floating-point operations are exact. Times are as good as the rates below, and
where those are assumed no better than a factor of a few."""
CLOSING = """
## The rates

Of the 32 cores: rounded from what one thread of an Emerald Rapids processor (AMX) did beside other work, times 32
for products and 12 to 16 for what memory bounds: a guess at such a machine. Of the H100: `products` from a dense
bfloat16 pass of two blocks as wide as LLaMA-7B's over 128 × 2,048 tokens, which took 0.53 s, and `pruned` from RIA at
50 % of the same two blocks, 2.33 s; all others are assumed. Disks are assumed, 2 GB/s read and 1 GB/s written. Eight
H100 are eight processes that share the samples and are dealt the reader groups of a block; what they say to each
other is not counted.

| per second | 32 cores | H100 |
| --- | ---: | ---: |"""


def show(text: str = "") -> None:
    """A line of the page."""
    sys.stdout.write(text + "\n")


def hours(seconds: float) -> str:
    """With two digits."""
    return f"{seconds / 3600:.2g} h" if seconds >= 600 else f"{seconds / 60:.2g} min"


def figure(rate: float | str) -> str:
    """A rate, with two digits."""
    return rate if isinstance(rate, str) else f"{rate:.2g}"


def row(model: Path, name: str, machine: str) -> str:
    """One run, in one line of a table."""
    rates, ranks = MACHINES[machine]
    plan = secateur.plan(model, RECIPES[name], rates=rates, ranks=ranks, rate=lambda number: 1.0)
    slowest = max(("read", "write", "calibrate", "order", "prune"), key=lambda stage: plan.seconds[stage])
    host, gpu = (sum(parts.values()) / GB for parts in (plan.memory.host, plan.memory.device))
    short = sum(plan.memory.host.values()) > rates.free or sum(plan.memory.device.values()) > rates.device_free
    cells = [
        name,
        machine,
        f"{host:,.0f} GB",
        f"{gpu:,.0f} GB" if gpu else "",
        f"{plan.disk.temporary / GB:,.0f} GB" if plan.disk.temporary >= GB else "",
        "does not fit" if short else hours(plan.total),
        slowest,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    show(OPENING)
    for folder in (CONFIGS / name for name in ("Llama-3.1-8B", "Llama-3.1-70B", "Llama-3.1-405B", "DeepSeek-V3")):
        plan = secateur.plan(folder, rates=CPU, rate=lambda number: 1.0)
        dense, packed, int8, int4 = (bound.model_bytes / GB for bound in plan.bounds)
        weights, prunable = plan.parameters / 1e9, plan.prunable / 1e9
        show(f"\n## {folder.name}\n")
        show(f"{weights:,.1f} billion weights, {prunable:,.1f} of them in linears that are pruned;")
        show(
            f"{dense:,.0f} GB read and written, {packed:,.0f} GB packed at 50 %, {int8:,.0f} GB with int8 values, "
            f"{int4:,.0f} GB with int4 values."
        )
        show("\n| recipe | machine | memory | GPU memory | temporary | time | slowest stage |")
        show("| --- | --- | ---: | ---: | ---: | ---: | --- |")
        for name in RECIPES:
            for machine in MACHINES:
                show(row(folder, name, machine))
    show(CLOSING)
    for field in fields(Rates):
        show(f"| {field.name} | {figure(getattr(CPU, field.name))} | {figure(getattr(H100, field.name))} |")


if __name__ == "__main__":
    main()
