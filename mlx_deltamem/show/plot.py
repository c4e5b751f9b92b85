"""The option `--plot` of the commands, and the way to the figures, which need matplotlib."""

import argparse
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

from mlx_deltamem.files.atomic import user_path

ENDINGS = (".png", ".pdf", ".svg")


def add_plot_option(parser: argparse.ArgumentParser, what: str) -> None:
    """`--plot`; `what` says what is drawn."""
    parser.add_argument(
        "--plot",
        type=user_path,
        metavar="OUT.png",
        help=f"Draw {what} to this file (.png, .pdf or .svg); needs `pip install 'mlx-deltamem[plot]'`.",
    )


def check_plot(path: Path) -> None:
    """Check, before any work, that a figure can be drawn and written there.

    Raises:
        ValueError: The name ends otherwise, is a folder's, or matplotlib is not installed.
        FileNotFoundError, PermissionError: There is no such folder, or nothing can be written to it.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"--plot {path} does not end in {', '.join(ENDINGS)}; name the figure so")
    if path.is_dir():
        raise ValueError(f"--plot {path} is a folder; expected the file to draw to")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to draw {path.name} to")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} is read-only; draw elsewhere")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed: pip install 'mlx-deltamem[plot]'")


def load_figures(package: str, module: str = "figure") -> ModuleType:
    """Import `mlx_deltamem.PACKAGE.MODULE` when a figure is drawn: matplotlib may be absent, and is slow."""
    return importlib.import_module(f"mlx_deltamem.{package}.{module}")
