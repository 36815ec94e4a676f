"""The package's own rules, as laws over its files and imports."""

import ast
import importlib
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

import secateur

PACKAGE = Path(secateur.__file__).parent
# One direction: a package, or a module at the top, imports from layers above its own and from itself; inside a layer it
# may import its neighbours, as long as they do not import it.
LAYERS = [
    ["citations", "errors", "patterns", "sizes"],  # words that need no torch
    ["progress", "devices", "digests", "files", "memory", "ranks"],
    ["masks", "stats", "permute", "scores", "importance", "reconstruct", "quantization"],  # pure functions over tensors
    ["options", "recipe", "shrinkage"],  # which of them to use
    ["models", "data"],  # what they work on
    ["checkpoint", "calibrate"],  # where weights and statistics come from
    [
        "pruning",
        "shrinking",
        "quantizing",
        "runtime",
        "packing",
        "inspection",
    ],  # the main job, and running what it wrote
    [
        "verification",
        "evaluation",
        "benchmark",
        "planning",
        "sweeps",
    ],  # what a model is worth, or one to come would take
    ["", "transformers", "demo", "console", "cli", "__main__"],  # how people reach all of it
]
# Who tells the version of the package, in manifests and in what tells runs apart.
VERSIONED = {
    "secateur.pruning.folder",
    "secateur.pruning.job",
    "secateur.quantizing",
    "secateur.shrinking.folder",
    "secateur.sweeps.sweep",
}
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def dotted(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [dotted(path) for path in FILES]


def package(module):
    """``pruning`` of ``secateur.pruning.walk``; the empty string of ``secateur`` itself."""
    return ".".join(module.split(".")[1:2])


def imports(path):
    """The modules that a file imports, or names from, those that only a type checker sees included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in whole)


def packages_imported(path):
    own = package(dotted(path))
    return {package(name) for name in imports(path) if name.split(".")[0] == "secateur"} - {own}


def test_every_package_has_a_layer():
    assert {package(module) for module in MODULES} == LAYER.keys()


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_nothing_downstream_is_imported_upstream(path):
    own = package(dotted(path))
    for other in packages_imported(path):
        if other == "" and dotted(path) in VERSIONED:
            continue
        assert LAYER[other] <= LAYER[own], f"{dotted(path)} imports {other or 'secateur'}, of a later layer"


def test_packages_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {name: set() for name in LAYER if name}
    for path in FILES:
        if own := package(dotted(path)):
            graph[own] |= packages_imported(path) - {""}
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    assert not graph


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_no_name_hides_a_module(module):
    if module.endswith("triton_norm"):
        pytest.importorskip("triton")
    imported = importlib.import_module(module)
    assert reduce(getattr, module.split(".")[1:], secateur) is imported


@pytest.mark.parametrize("name", secateur.__all__)
def test_every_public_name_is_there(name):
    assert getattr(secateur, name) is getattr(secateur, name)
    assert name in dir(secateur)


def test_public_names_are_typed_as_they_are_imported():
    """What a type checker is told of a name is what is imported when it is used."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {a.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert told == secateur._HOMES
    assert {*told, "InputError", "__version__"} == set(secateur.__all__)


@pytest.mark.parametrize(
    "words",
    [["--version"], ["--help"], ["prune", "--help"], ["shrink", "--help"], ["prnue"], ["prune", "--scroe", "ria"], []],
    ids=" ".join,
)
def test_the_command_line_answers_without_torch(words):
    program = (
        "import sys; from secateur.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    bad = words in (["prnue"], ["prune", "--scroe", "ria"])
    assert done.stderr.splitlines()[-1] == f"{2 if bad else 0} set()"


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_nothing_reads_pickles_or_remote_code(path):
    assert "pickle" not in set(imports(path))
    text = path.read_text(encoding="utf-8")
    for word in ("torch.load", "torch.save", "trust_remote_code=True", "yaml.load(", "eval(", "exec("):
        assert word not in text.replace("_eval(", "").replace(".eval(", "")
