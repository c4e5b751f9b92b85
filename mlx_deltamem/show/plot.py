"""The option `--plot`, and what commands need of figures before matplotlib is loaded."""

import argparse
import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mlx_deltamem.files.atomic import user_path

ENDINGS = (".png", ".pdf", ".svg")
# The ending of a page that a browser shows.
PAGE = ".html"
# How each kind of file begins, and what is in each file of the kind that this project writes.
_MARKS = {
    ".png": (b"\x89PNG", b"Software\0Matplotlib"),
    ".pdf": (b"%PDF", b"/Creator (Matplotlib"),
    ".svg": (b"<?xml", b"<dc:title>Matplotlib"),
    PAGE: (b"<!doctype html>", b"<title>What a text does to a memory"),
}


@dataclass(frozen=True)
class LayerCharts:
    """The content of a figure that has one bar chart for each kind of number, with a bar for each layer.

    `show/layers.py` draws it. A report can make it without matplotlib.

    Attributes:
        title: The title of the figure.
        unit: The label of the vertical axes.
        charts: The numbers, by the title of their chart and by layer. A number that is not finite has no bar.
        nothing: The text of the figure if `charts` is empty.
        one_scale: Whether all charts have the same scale.
    """

    title: str
    unit: str
    charts: Mapping[str, Mapping[int, float]]
    nothing: str = ""
    one_scale: bool = False


def add_plot_option(parser: argparse.ArgumentParser, what: str, more: str = "") -> None:
    """Add `--plot` to a command.

    Args:
        parser: The command's parser.
        what: The figure, a few words for the help text ("Draw WHAT to this file").
        more: More sentences for the help text, each with a space before it.
    """
    parser.add_argument(
        "--plot",
        type=user_path,
        metavar="OUT.png",
        help=f"Draw {what} to this file (.png, .pdf or .svg); needs `pip install 'mlx-deltamem[plot]'`.{more} A "
        "file that is there already is replaced if --plot, or else matplotlib, made it; other files are not.",
    )
    parser.add_argument("--dark", action="store_true", help="With --plot: draw on a dark ground.")


def check_plot(path: Path, endings: tuple[str, ...] = ENDINGS) -> None:
    """Check that a figure can be drawn and written to a file, before the work that the figure shows.

    Args:
        path: The file.
        endings: The endings that it may have. Those that are not in `ENDINGS` need no matplotlib.

    Raises:
        ValueError: The file has another ending, is a folder, or is there already and not made by `--plot` or
            matplotlib; or matplotlib is not installed.
        FileNotFoundError: The folder of the file does not exist.
        PermissionError: The folder is read-only.
    """
    if path.suffix.lower() not in endings:
        raise ValueError(f"--plot {path} does not end in {', '.join(endings)}; give the file one of these endings")
    if path.is_dir():
        raise ValueError(f"--plot {path} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for --plot {path.name}; name another one")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} is read-only; name a file in another folder after --plot")
    if path.is_file() and not _is_drawn(path):
        raise ValueError(f"--plot {path} exists already, and --plot has not made it; delete it or name another file")
    if path.suffix.lower() in ENDINGS and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed: pip install 'mlx-deltamem[plot]'")


def check_dark(dark: bool, path: Path | None) -> None:
    """Check that `--dark` comes with a figure.

    Raises:
        ValueError: There is no figure, or it is a page.
    """
    if not dark:
        return
    if path is None:
        raise ValueError("--dark is for the figure of --plot; add --plot, or leave --dark out")
    if path.suffix.lower() == PAGE:
        raise ValueError("--dark is for figures, and a page is dark where its browser is; leave --dark out")


def _is_drawn(path: Path) -> bool:
    """Whether a file is a picture that matplotlib drew, or a page of ours; or empty, so that nothing is lost."""
    content = path.read_bytes()
    begin, mark = _MARKS[path.suffix.lower()]
    return not content or (content.startswith(begin) and mark in content)


def load_figures(package: str, module: str = "figure", dark: bool = False) -> ModuleType:
    """Import `mlx_deltamem.PACKAGE.MODULE`, which imports matplotlib.

    Args:
        package: The package.
        module: The module.
        dark: Whether figures are drawn on a dark ground from here on.

    Commands call this only when they draw, because matplotlib may be missing and takes long to load.
    """
    if dark:
        importlib.import_module("mlx_deltamem.show.style").use_dark()
    return importlib.import_module(f"mlx_deltamem.{package}.{module}")
