"""The order of the package: what may import what, and that the map of it in CONTRIBUTING.md is complete."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mlx_deltamem
from tests.conftest import REPO

PACKAGE = REPO / "mlx_deltamem"
# From the lowest floor to the highest. A module imports from lower floors and from its own package only.
FLOORS = (
    ("_version",),
    ("files",),
    ("options",),
    ("ranks",),
    ("recurrence",),
    ("core",),
    ("adapters",),
    ("sessions",),
    ("show",),
    ("recall",),
    ("speech",),
    ("evaluation",),
    ("training", "benchmarking", "inspection", "serving"),
    ("cli",),
    ("commands",),
    ("doors",),  # The commands: mlx_deltamem/*.py and mlx_deltamem/data.
)
FLOOR_OF = {place: number for number, places in enumerate(FLOORS) for place in places}

# What mlx-lm documents; everything else can change from one release to the next.
MLX_LM_PUBLIC = re.compile(
    r"mlx_lm(\.(load|batch_generate|__version__))?"
    r"|mlx_lm\.(generate|sample_utils|utils)(\.[A-Za-z]\w*)?"
    r"|mlx_lm\.tokenizer_utils\.TokenizerWrapper"  # The type of what `mlx_lm.load` returns.
)
# The modules that may use the rest: look at these first when a new release of mlx-lm breaks something.
MLX_LM_INTERNALS = {
    "benchmarking.random_models",
    "core.cache",
    "core.drafting",
    "core.entry",
    "evaluation.decoding",
    "evaluation.tasks.harness_model",
    "sessions.replies.drafted_reply",
    "sessions.stored.file",
    "sessions.turns.restore",
    "sessions.stored.chat",
    "commands.train",
    "training.monitor",
    "training.optimizer",
    "training.run",
    "training.services",
    "training.options_file",
    "training.segments.cache",
    "training.segments.write_pass",
}
NOT_FOR_COMPUTING = {"huggingface_hub", "yaml", "rich", "matplotlib"}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Each imported name in full: `from a.b import c` gives a.b.c."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from .c import d` in a/b.py: level 1 is the folder a.
            folder = path.relative_to(REPO).parts[: -node.level] if node.level else ()
            module = ".".join((*folder, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


# Module to imported names; the module's name is without `mlx_deltamem.`.
IMPORTS = {_name(path): set(_imports(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def _own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    own = {name.removeprefix("mlx_deltamem").lstrip(".") for name in IMPORTS[module] if name.startswith("mlx_deltamem")}
    return {name if name in IMPORTS else name.rpartition(".")[0] for name in own}


def _place(module: str) -> str:
    first = module.partition(".")[0]
    return first if first in FLOOR_OF else "doors"


def test_imports_run_downwards():
    wrong = [
        f"{module} imports {'the public names' if other == '' else other}"
        for module in IMPORTS
        if module
        for other in _own_imports(module)
        if not other or (_place(module) != _place(other) and FLOOR_OF[_place(module)] <= FLOOR_OF[_place(other)])
    ]
    assert not wrong


def test_imports_have_no_circles():
    # Raises CycleError, which names the circle.
    list(TopologicalSorter({module: _own_imports(module) for module in IMPORTS}).static_order())


def test_the_packages_of_sessions_have_no_circles():
    inside = [module for module in IMPORTS if module.startswith("sessions.")]
    graph: dict[str, set[str]] = {module.rpartition(".")[0]: set() for module in inside}
    for module in inside:
        package = module.rpartition(".")[0]
        others = {other.rpartition(".")[0] for other in _own_imports(module) if other.startswith("sessions.")}
        graph[package] |= others - {package}
    # Raises CycleError, which names the circle.
    list(TopologicalSorter(graph).static_order())


def test_internals_of_mlx_lm_are_used_in_few_modules():
    using = {
        module
        for module, names in IMPORTS.items()
        if any(name.split(".")[0] == "mlx_lm" and not MLX_LM_PUBLIC.fullmatch(name) for name in names)
    }
    assert using == MLX_LM_INTERNALS


@pytest.mark.parametrize("package", ["recurrence", "core", "sessions"])
def test_computing_needs_no_terminal_and_no_network(package):
    wrong = {
        module: found
        for module, names in IMPORTS.items()
        if _place(module) == package and (found := {name.split(".")[0] for name in names} & NOT_FOR_COMPUTING)
    }
    assert not wrong


def test_no_public_name_is_the_name_of_a_module():
    modules = {module.partition(".")[0] for module in IMPORTS} - {"_version"}
    assert not modules & set(mlx_deltamem.__all__)


def test_the_map_lists_every_package():
    text = (REPO / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    packages = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*/__init__.py")}
    assert set(re.findall(r"^- `([\w/]+)/`: ", text, re.M)) == packages
