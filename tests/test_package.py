"""The wheel and the source archive as PyPI would have them, and the commands of an installed wheel."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mlx_deltamem.cli.main import COMMANDS
from mlx_deltamem.demo.model import ADAPTER
from tests.conftest import REPO

pytestmark = pytest.mark.slow

SUFFIXES = {
    ".safetensors",
    ".json",
    ".py",
    ".yaml",
    ".h",
    ".txt",
    ".typed",
    ".html",
    ".css",
    ".js",
    ".md",
    ".ipynb",
    ".png",
}

# What the installed scripts do, in one process. Importing the package takes most of the time of each.
HELP = """
import sys
from importlib.metadata import distribution
import mlx_deltamem
print(mlx_deltamem.__file__)
for entry in distribution("mlx-deltamem").entry_points:
    sys.argv = [entry.name, "--help"]
    try:
        entry.load()()
    except SystemExit as ended:
        assert not ended.code, entry
"""


def run(*arguments: object, **options: object) -> str:
    result = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built from a copy of what a release is built from."""
    source, archives = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("archives")
    shutil.copytree(REPO / "mlx_deltamem", source / "mlx_deltamem", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    for kind in ("sdist", "wheel"):
        build = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        run(sys.executable, "-c", build, archives, cwd=source)
    return archives


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed; its dependencies are those of this environment."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-index", "--target", target, *built.glob("*.whl"))
    return target


def packaged(names: list[str]) -> set[str]:
    return {name for name in names if name.startswith("mlx_deltamem/") and Path(name).suffix in SUFFIXES}


def test_every_file_of_the_package_is_in_both_archives(built: Path) -> None:
    files = (path for path in (REPO / "mlx_deltamem").rglob("*.*") if "__pycache__" not in path.parts)
    expected = {path.relative_to(REPO).as_posix() for path in files if path.is_file() and path.name[0] != "."}
    # The adapter of the demo is behind a link. Its results are for those who work on the project.
    adapter = [path.name for path in ADAPTER.iterdir() if path.name.startswith("delta_mem_")]
    expected |= {f"mlx_deltamem/demo/adapter/{name}" for name in ("README.md", "recall-bytes.png", *adapter)}
    assert len(adapter) == 2
    assert {Path(name).suffix for name in expected} == SUFFIXES
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        assert packaged(opened.namelist()) == expected
    with tarfile.open(archive) as opened:
        assert packaged([name.partition("/")[2] for name in opened.getnames()]) == expected


def test_an_installed_wheel_has_every_command(installed: Path, tmp_path: Path) -> None:
    scripts = {f"mlx_deltamem.{command}" for command in COMMANDS} | {"mlx_deltamem"}
    assert {path.name for path in (installed / "bin").glob("mlx_deltamem*")} == scripts
    printed = run(sys.executable, "-c", HELP, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)})
    package, *answers = printed.split("usage: ")
    assert Path(package.strip()).is_relative_to(installed)
    assert {answer.split()[0] for answer in answers} == scripts
