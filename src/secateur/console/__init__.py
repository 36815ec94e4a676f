"""What people see in a terminal: progress bars on standard error, tables on standard output."""

from secateur.console.evaluation import evaluation_table
from secateur.console.models import layers_table, packing_text, pruning_notes, pruning_table, verdict_text
from secateur.console.speed import (
    benchmark_notes,
    choices_table,
    model_table,
    modules_table,
    plan_notes,
    plan_tables,
    speed_text,
    structured_table,
)
from secateur.console.terminal import TerminalProgress, err, out

__all__ = [
    "TerminalProgress",
    "benchmark_notes",
    "choices_table",
    "err",
    "evaluation_table",
    "layers_table",
    "model_table",
    "modules_table",
    "out",
    "packing_text",
    "plan_notes",
    "plan_tables",
    "pruning_notes",
    "pruning_table",
    "speed_text",
    "structured_table",
    "verdict_text",
]
