"""Build the archives for PyPI and check them: `python -m tools.release --output dist` (or `make release-check`).

The archives are built from a copy of the project, in which the links of the README and of the guides are absolute. The
wheel is installed in a new virtual environment, and every command is run there: its help, and a small piece of work
with a tiny model, in an empty folder and without the Hub.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path, PurePosixPath

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.main import COMMANDS
from mlx_deltamem.cli.parser import Parser

REPO = Path(__file__).parents[1]
_SOURCES = ("mlx_deltamem", "pyproject.toml", "README.md", "LICENSE")
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_PICTURES = (".png", ".svg")
_GOLDENS = REPO / "tests" / "goldens"
_MODEL, _ADAPTER = _GOLDENS / "backbones" / "qwen3-tiny", _GOLDENS / "adapters" / "qwen3_tsw_qo"
_PAIR = ("--model", str(_MODEL), "--adapter", str(_ADAPTER))
# A small piece of work for each command, in this order, and a part of what it prints. `demo` and `server` need packages
# that the wheel alone does not bring, and say so.
WORK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("generate", *_PAIR, "--prompt", "Hello", "--max-tokens", "3", "--session", "chat.safetensors"), ""),
    (("chat", *_PAIR, "--max-tokens", "3", "--chats", "chats"), "chat"),
    (("inspect", "chat.safetensors"), "turns"),
    (("convert", "--torch-path", str(_ADAPTER), "--mlx-path", "converted"), "Wrote converted"),
    (("grow", "converted", "grown", "--rank", "16"), "grown"),
    (
        ("upload", "--path", "grown", "--upload-repo", "a/b", "--base-model", "a/c", "--license", "mit", "--dry-run"),
        "sent",
    ),
    (("data", "recall", "recall", "--train", "4", "--valid", "2"), "recall"),
    (
        (
            "train",
            "--model",
            str(_MODEL),
            "--data",
            "recall",
            "--adapter-path",
            "run",
            "--iters",
            "1",
            "--batch-size",
            "2",
        ),
        "Trained",
    ),
    (
        (
            "evaluate",
            *_PAIR,
            "--tasks",
            "recall",
            "--recall-questions-each",
            "2",
            "--conditions",
            "state",
            "--output",
            "out",
        ),
        "Recall",
    ),
    (("benchmark", *_PAIR, "--prompt-tokens", "8", "--generation-tokens", "2", "--num-trials", "3"), "frozen"),
)
_FIRST_URL = re.compile(r"(https?:|#|mailto:)")


def absolute(text: str, place: PurePosixPath, repository: str, tag: str) -> str:
    """A page with absolute links.

    Args:
        text: The page, in Markdown.
        place: The path of the page in the project.
        repository: The address of the project on GitHub.
        tag: The branch or tag that the links lead to.
    """

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if _FIRST_URL.match(target):
            return match[0]
        name, hash_sign, anchor = target.partition("#")
        path = PurePosixPath(os.path.normpath(place.parent / name))
        if path.suffix in _PICTURES:
            return f"{match[1]}{repository}/raw/{tag}/{path})"
        kind = "blob" if path.suffix else "tree"
        return f"{match[1]}{repository}/{kind}/{tag}/{path}{hash_sign}{anchor})"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def copy_sources(target: Path, repository: str | None, tag: str) -> None:
    """Copy what a release is built from, with absolute links and the addresses of the project.

    Args:
        target: An empty folder.
        repository: The address of the project; None: links stay as they are, and the metadata have no addresses.
        tag: The branch or tag that the links lead to.
    """
    for name in _SOURCES:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    if repository is None:
        return
    pages = [target / "README.md", *(target / "mlx_deltamem").glob("*.md")]
    for page in pages:
        place = PurePosixPath(page.relative_to(target).as_posix())
        page.write_text(absolute(page.read_text(encoding="utf-8"), place, repository, tag), encoding="utf-8")
    urls = {
        "Repository": repository,
        "Documentation": f"{repository}/blob/{tag}/README.md",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = ["", "[project.urls]", *(f'{name} = "{url}"' for name, url in urls.items()), ""]
    with (target / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines))


def run(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program; returns its output.

    Raises:
        ValueError: It fails. The error has the last line that it printed.
    """
    result = subprocess.run(
        [*map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd, env=env, input=""
    )
    if result.returncode:
        last = (result.stderr.strip() or result.stdout.strip() or "nothing was printed").splitlines()[-1]
        raise ValueError(f"{' '.join(map(str, arguments))} failed ({last})")
    return result.stdout


def check_installed(wheel: Path, extra: str | None, folder: Path) -> None:
    """Install a wheel in a new virtual environment and run every command.

    Raises:
        ValueError: It cannot be installed, or a command fails.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]" if extra else wheel)
    run(python, "-m", "pip", "check")
    print(f"installed; version {run(folder / 'bin' / 'mlx_deltamem', '--version', cwd=folder).strip()}")
    for name in COMMANDS:
        for program in ((folder / "bin" / f"mlx_deltamem.{name}",), (folder / "bin" / "mlx_deltamem", name)):
            shown = run(*program, "--help", cwd=folder)
            if not shown.startswith("usage: "):
                raise ValueError(f"{program[-1]} --help printed {shown[:60]!r}; expected its usage")
    print(f"{len(COMMANDS)} commands print their help")
    # The Hub is not asked, and no chat of the user is touched.
    alone = os.environ | {"HF_HUB_OFFLINE": "1", "HOME": str(folder), "COLUMNS": "100"}
    # Else the commands may be those of a checkout.
    alone.pop("PYTHONPATH", None)
    place = folder / "work"
    place.mkdir()
    for arguments, part in WORK:
        shown = run(folder / "bin" / f"mlx_deltamem.{arguments[0]}", *arguments[1:], cwd=place, env=alone)
        if part not in shown:
            raise ValueError(f"{arguments[0]} printed {shown[-60:]!r}; expected {part!r} in it")
        print(f"{arguments[0]} works")


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the program."""
    parser = Parser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="Folder for the archives. Older ones are deleted.")
    parser.add_argument("--repository", help="Address of the project, such as https://github.com/USER/NAME.")
    parser.add_argument("--extra", help="Extra to install the wheel with, such as cpu.")
    return parser


@command
def main() -> None:
    """Build and check."""
    args = setup_arg_parser().parse_args()
    repository = None if args.repository is None else args.repository.rstrip("/")
    if repository is not None and not repository.startswith("https://"):
        raise ValueError(f"--repository is {repository}; expected an address that begins with https://")
    output = args.output.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        source, archives = Path(temporary, "source"), Path(temporary, "archives")
        source.mkdir()
        copy_sources(source, repository, "main")
        run(sys.executable, "-m", "build", "--outdir", archives, source)
        built = sorted(archives.iterdir())
        run(sys.executable, "-m", "twine", "check", "--strict", *built)
        print(f"built and read by twine: {', '.join(path.name for path in built)}")
        (wheel,) = archives.glob("*.whl")
        check_installed(wheel, args.extra, Path(temporary, "environment"))
        output.mkdir(parents=True, exist_ok=True)
        for old in [*output.glob("mlx_deltamem-*.whl"), *output.glob("mlx_deltamem-*.tar.gz")]:
            old.unlink()
        for path in built:
            shutil.copy(path, output)
    if repository is None:
        print("The links of the README are relative: give --repository for a release.")


if __name__ == "__main__":
    main()
