"""A chat that another implementation saved, as tables."""

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from mlx_deltamem.inspection.foreign import ForeignReport
from mlx_deltamem.show.tables import columns, count, facts, number, span


def foreign_tables(report: ForeignReport) -> list[RenderableType]:
    """The tables that `inspect` prints for a foreign chat."""
    shape = "x".join(map(str, report.state_shape))
    tokens = "" if report.tokens is None else f", in all {count(report.tokens, 'tokens')}"
    memory = f"{shape} float32 in {count(len(report.states), 'layers')}: {report.state_bytes:,} bytes"
    rows = {
        "file": f"{report.file}, {count(report.bytes, 'bytes')}",
        "format": report.format,
        "turns": f"{report.turns:,}{tokens}" if report.turns else "none in it",
        "system prompt": "yes" if report.has_system_prompt else "none",
        "memory": memory if report.states else "empty",
    }
    return [facts("Session", rows), _memory(report), *_texts(report)]


def _memory(report: ForeignReport) -> RenderableType:
    table = columns("The memory by layer", "layer", "norm", "largest", "effective rank")
    for state in report.states:
        table.add_row(str(state.layer), number(state.norm), number(state.largest), span(state.effective_rank))
    return table


def _texts(report: ForeignReport) -> list[RenderableType]:
    """The messages, where they were asked for."""
    said = [("system", report.system)] if report.system is not None else []
    said += [(f"{i // 2 + 1} {each['role']}", each["content"]) for i, each in enumerate(report.messages or [])]
    return [Text.from_markup(f"[bold]{who}:[/] {escape(text)}") for who, text in said]
