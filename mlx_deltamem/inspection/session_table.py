"""A chat as tables."""

import math

from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from mlx_deltamem.inspection.session import SessionReport, TurnReport
from mlx_deltamem.sessions.writing import ALL, NONE
from mlx_deltamem.show.tables import columns, count, facts, number, span

_MOST_TURNS = 20


def session_tables(report: SessionReport) -> list[RenderableType]:
    """What is to be known of a chat."""
    shape = "x".join(map(str, report.state_shape))
    rows = {
        "file": f"{report.file}, {count(report.bytes, 'bytes')}",
        "turns": f"{len(report.turns):,}, in all {count(report.tokens, 'tokens')}",
        "history": f"{report.history}" + (", keys and values in the file" if report.keeps_text else ""),
        "written": report.write,
        "system prompt": "yes" if report.has_system_prompt else "none",
        "template": ", ".join(f"{name}={value}" for name, value in report.template_options.items()) or "no options",
        "memory": f"{shape} float32 in {count(len(report.states), 'layers')}: {report.state_bytes:,} bytes",
        "backbone": f"{report.origin.name} ({report.origin.backbone})",
        "adapter": report.origin.adapter,
        "tokenizer": report.origin.tokenizer,
    }
    return [facts("Session", rows), _memory(report), _turns(report), *_texts(report)]


def _memory(report: SessionReport) -> RenderableType:
    last = report.turns[-1] if report.turns else None
    title = "The memory by layer, and what the last turn did to it"
    table = columns(title, "layer", "norm", "largest", "kept", "changed", "effective rank")
    for state in report.states:
        kept, changed = (None if drift is None else drift[state.layer] for drift in _drift(last))
        table.add_row(
            str(state.layer),
            number(state.norm),
            number(state.largest),
            number(kept),
            number(changed),
            span(state.effective_rank),
        )
    return table


def _drift(turn: TurnReport | None) -> tuple[dict[int, float] | None, dict[int, float] | None]:
    return (None, None) if turn is None else (turn.kept, turn.changed)


def _turns(report: SessionReport) -> RenderableType:
    first = max(0, len(report.turns) - _MOST_TURNS)
    title = f"The last {_MOST_TURNS} of {len(report.turns)} turns" if first else "The turns"
    headings = ("turn", "message\ntokens", "reply\ntokens", "kept", "half-life\n(tokens)", "changed")
    table = columns(f"{title} (kept, changed: means over the layers)", *headings)
    for index, turn in enumerate(report.turns[first:], first + 1):
        forgets = turn.half_life is None or math.isfinite(turn.half_life)
        table.add_row(
            f"{index}{_manner(turn)}",
            str(turn.message_tokens),
            str(turn.reply_tokens),
            number(turn.kept_mean),
            number(turn.half_life) if forgets else "forever",
            number(turn.changed_mean),
        )
    return table


def _manner(turn: TurnReport) -> str:
    """What is special about a turn: nothing where all of it was said and written."""
    if turn.remembered:
        return " (remembered)"
    return "" if turn.write == ALL else " (read only)" if turn.write == NONE else f" (write {turn.write})"


def _texts(report: SessionReport) -> list[RenderableType]:
    """The messages, where they were asked for."""
    said = [("system", report.system)]
    said += [(f"{i} {role}", text) for i, t in enumerate(report.turns, 1) for role, text in _messages(t)]
    return [Text.from_markup(f"[bold]{who}:[/] {escape(text)}") for who, text in said if text is not None]


def _messages(turn: TurnReport) -> list[tuple[str, str | None]]:
    if turn.remembered:
        return [("remembered", turn.user)]
    return [("user", turn.user), ("assistant", turn.reply)]
