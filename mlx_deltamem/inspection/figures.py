"""The figure of each kind of report. This module loads matplotlib."""

from pathlib import Path

from matplotlib.figure import Figure

from mlx_deltamem.inspection.foreign import ForeignReport
from mlx_deltamem.inspection.model import ModelReport
from mlx_deltamem.inspection.report import Report
from mlx_deltamem.inspection.session import SessionReport
from mlx_deltamem.inspection.session_figure import memory_figure, session_figure
from mlx_deltamem.inspection.trace_figure import trace_figure
from mlx_deltamem.show.layers import layer_figure
from mlx_deltamem.show.style import save_figure


def draw(report: Report, path: Path) -> None:
    """Draw a report to a file.

    Raises:
        ValueError: There is nothing to draw.
        OSError: The file cannot be written; its old content is still there.
    """
    save_figure(figure_of(report), path)


def figure_of(report: Report) -> Figure:
    """The figure of a report."""
    match report:
        case SessionReport():
            return session_figure(report)
        case ForeignReport():
            return memory_figure(report)
        case ModelReport() if report.trace is not None:
            return trace_figure(report.trace, report.trace_title)
        case _:
            return layer_figure(report.charts())
