"""The curves of a run: its losses, its held-out recall, gates, states and learning rate over its steps."""

import importlib.util
from pathlib import Path

from mlx_deltamem.core.adapter import CURVES_FILE
from mlx_deltamem.show.plot import load_figures
from mlx_deltamem.training.metrics import Metrics


def draw_curves(folder: Path) -> Path | None:
    """Draw the metrics of the run in a folder; returns the picture, or None where matplotlib is not installed.

    Raises:
        OSError: It cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    load_figures("training").draw(Metrics(folder).rows(), folder.absolute().name, folder / CURVES_FILE)
    return folder / CURVES_FILE
