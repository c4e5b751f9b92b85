"""The modules that a command imports before it works: a help text must not wait for MLX, mlx-lm or transformers."""

import ast
import importlib
import subprocess
import sys

import pytest

import mlx_deltamem
from mlx_deltamem.cli.main import COMMANDS
from mlx_deltamem.data import MAKERS
from mlx_deltamem.options import mlx_lm_defaults
from tests.conftest import REPO

# Their imports take from a tenth of a second to a second each, or are needed for output only.
HEAVY = {
    "datasets",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "mlx",
    "mlx_lm",
    "numpy",
    "rich",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
}
# Python's own modules count too: `python -c pass` has some 60, and `mlx_lm.generate --help` more than 1,900.
MOST = {"--version": 150, "--help": 150}
MOST_OF_A_COMMAND = 290

# Runs a command as its script does, and prints the modules that are there when it ends.
RUN = """
import contextlib, io, sys
sys.argv = ["mlx_deltamem", *{arguments!r}]
nowhere = io.StringIO()
with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), contextlib.suppress(SystemExit):
    from mlx_deltamem.cli.main import main
    main()
print(sorted(sys.modules))
"""


def imported(code: str) -> set[str]:
    """The modules that a new process has imported when it has run a program."""
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True, text=True)
    found: list[str] = ast.literal_eval(ended.stdout)
    return set(found)


def heavy(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} & HEAVY


@pytest.mark.parametrize("option", MOST)
def test_the_version_and_the_help_import_next_to_nothing(option):
    modules = imported(RUN.format(arguments=[option]))
    assert heavy(modules) == set()
    assert len(modules) <= MOST[option]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [*([name] for name in COMMANDS), *(["data", name] for name in MAKERS)], ids=" ".join
)
def test_the_help_of_a_command_imports_no_library_for_models(command):
    modules = imported(RUN.format(arguments=[*command, "--help"]))
    assert heavy(modules) == set()
    assert len(modules) <= MOST_OF_A_COMMAND


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "--prompt", "x", "--temp", "-1"],
        ["generate", "--prompt", "x", "--read-only", "--write", "all"],
        ["chat", "--model", "a-model-without-an-adapter"],
        ["server", "--port", "-1"],
        ["inspect"],
        ["convert", "--torch-path", "a", "--to", "npz"],
        ["upload", "--path", "a"],
        ["train", "--iters", "0"],
        ["grow", "a", "b"],
        ["evaluate", "--output", "a"],
        ["benchmark", "--q-bits", "4"],
        ["data", "recall", "--facts", "a"],
    ],
    ids=" ".join,
)
def test_options_are_refused_before_a_library_is_imported(arguments):
    assert heavy(imported(RUN.format(arguments=arguments))) == set()


def test_the_import_of_the_package_imports_nothing_until_a_name_is_used():
    before = "import sys, mlx_deltamem; print(sorted(sys.modules))"
    assert heavy(imported(before)) == set()
    after = "import sys; from mlx_deltamem import DeltaMemConfig; print(sorted(sys.modules))"
    assert heavy(imported(after)) == set()
    assert "mlx_deltamem.core.config" in imported(after)


def test_every_public_name_is_there():
    assert set(mlx_deltamem.__all__) <= set(dir(mlx_deltamem))
    for name in mlx_deltamem.__all__:
        assert getattr(mlx_deltamem, name) is getattr(mlx_deltamem, name)
    with pytest.raises(AttributeError, match="has no attribute 'remember'"):
        _ = mlx_deltamem.remember


def test_the_defaults_are_those_of_the_installed_mlx_lm():
    ours = {name: value for name, value in vars(mlx_lm_defaults).items() if name.isupper()}
    assert ours
    # `mlx_lm.generate` is a function, and its module has the same name.
    theirs = importlib.import_module("mlx_lm.generate")
    assert ours == {name: getattr(theirs, f"DEFAULT_{name}") for name in ours}
