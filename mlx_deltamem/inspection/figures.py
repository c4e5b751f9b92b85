"""Which figure shows which report."""

from pathlib import Path

from matplotlib.figure import Figure

from mlx_deltamem.inspection.adapter import AdapterReport
from mlx_deltamem.inspection.diff import AdapterDiff, SessionDiff
from mlx_deltamem.inspection.distance import Comparison
from mlx_deltamem.inspection.foreign import ForeignReport
from mlx_deltamem.inspection.model import ModelReport
from mlx_deltamem.inspection.report import Report
from mlx_deltamem.inspection.session import SessionReport
from mlx_deltamem.inspection.session_figure import memory_figure, session_figure
from mlx_deltamem.inspection.trace_figure import trace_figure
from mlx_deltamem.show.layers import layer_charts
from mlx_deltamem.show.style import save_figure


def draw(report: Report, path: Path) -> None:
    """Draw a report to a file.

    Raises:
        OSError: The file cannot be written; what was there is still there.
    """
    save_figure(figure_of(report), path)


def figure_of(report: Report) -> Figure:
    """Draw a report: each kind has a figure of its own."""
    match report:
        case SessionReport() | ForeignReport():
            return session_figure(report) if isinstance(report, SessionReport) else memory_figure(report)
        case ModelReport(trace=None):
            return layer_charts(
                f"{_on(report)}: correction heads relative to the projections they correct",
                "relative norm",
                {f"delta_{head}": strengths for head, strengths in report.strengths.items()},
                nothing="It has no correction whose strength its weights tell.",
            )
        case ModelReport():
            return trace_figure(report.trace, f"{_on(report)}, reading {_name(report.text)}")
        case AdapterReport():
            return layer_charts(
                f"{_name(report.source)}: norms of its tensors by layer",
                "Frobenius norm",
                {tensor.short_name: tensor.norms for tensor in report.tensors if tensor.in_use},
            )
        case AdapterDiff():
            charts = {name.rpartition(".")[2]: _relative(each) for name, each in report.tensors.items()}
            return _distances(report, {name: distances for name, distances in charts.items() if distances})
        case SessionDiff():
            return _distances(report, {"states": _relative(report.states)})


def _distances(diff: AdapterDiff | SessionDiff, charts: dict[str, dict[int, float]]) -> Figure:
    title = f"A: {_name(diff.a)}, B: {_name(diff.b)}" + (", identical" if diff.identical else "")
    return layer_charts(title, "‖A − B‖ / larger norm", charts, "No two of a name have the same shape.", one_scale=True)


def _relative(comparison: Comparison) -> dict[int, float]:
    return {layer: distance.relative for layer, distance in comparison.distances.items()}


def _on(report: ModelReport) -> str:
    return f"{_name(report.adapter.source)} on {_name(report.model)}"


def _name(path: str) -> str:
    return Path(path).name
