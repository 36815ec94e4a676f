"""The package's own rules, as laws over its imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "secateur"

# One direction: a module imports only from those further up this list (and from its own row).
ORDER = [
    {"errors", "progress"},
    {"sparsity", "reconstruct.gram"},
    {"stats", "permute.assign", "runtime.triton_norm", "runtime._native", "runtime.cusparselt", "formats.sparse"},
    {"runtime.kernels", "runtime.choosing"},
    {"runtime.semi_structured", "runtime.graphs"},
    {"runtime.algorithms", "runtime.decoding"},
    {"reconstruct.cg", "reconstruct.sparsegpt"},
    {"reconstruct.admm", "reconstruct.refine"},
    {"reconstruct"},
    {"scores"},
    {"runtime.gather"},
    {"permute.greedy"},
    {"permute.search"},
    {"permute"},
    {"models.spaces"},
    {"models.families"},
    {"models.blocks", "models.fold"},
    {"models.stream"},
    {"models.guard"},
    {"data.readers", "data.demo"},
    {"data.sources"},
    {"data.tokens"},
    {"data"},
    {"recipe"},
    {"checkpoint.layout", "checkpoint.experts", "checkpoint.packed", "runtime.sparse_linear"},
    {"checkpoint.source", "runtime.dispatch"},
    {"checkpoint.finding", "checkpoint.writer"},
    {"checkpoint", "layers", "runtime.sparse_experts", "runtime.acceleration"},
    {"runtime.loading", "formats.packing", "ordering", "preparation", "groups"},
    {"evaluate.memory", "evaluate.uncertainty", "evaluate.task_files"},
    {"evaluate.perplexity", "evaluate.zero_shot"},
    {"evaluate.evaluation"},
    {"runtime.generation", "pipeline", "evaluate.comparison", "inspection", "verification"},
    {"benchmark.roles", "benchmark.machine", "benchmark.timing", "benchmark.structured"},
    {"benchmark.plan", "benchmark.pairs"},
    {"benchmark.rounds"},
    {"benchmark.measuring"},
    {"benchmark.plot"},
    {"demo", "in_memory", "console.terminal", "console.models", "console.evaluation", "console.speed"},
    {"console"},
    {""},
    {"cli.app"},
    {"cli.pruning", "cli.judging", "cli.running"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path):
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            inside = node.module.startswith("secateur") or node.module == "secateur"
            yield from (name if inside and name.removeprefix("secateur.") in RANK else node.module for name in whole)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_downstream_is_imported_upstream(path):
    name = dotted(path)
    if name in ("models", "evaluate", "formats", "runtime", "benchmark"):
        return  # docstrings only
    for imported in imports(path):
        if imported == "secateur" and name in ("pipeline",):
            continue  # its version number
        if imported == "secateur" or imported.startswith("secateur."):
            other = imported.removeprefix("secateur").removeprefix(".")
            assert RANK[other] <= RANK[name], f"{name} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_reads_pickles_or_remote_code(path):
    assert "pickle" not in set(imports(path))
    text = path.read_text(encoding="utf-8")
    for word in ("torch.load", "torch.save", "trust_remote_code=True", "yaml.load(", "eval(", "exec("):
        assert word not in text.replace("_eval(", "").replace(".eval(", "")
