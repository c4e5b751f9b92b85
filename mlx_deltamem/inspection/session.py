"""The facts about a chat, from its session file alone."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import RenderableType

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.inspection.document import NOT_IN_DOCUMENT
from mlx_deltamem.inspection.file_kind import check_session
from mlx_deltamem.inspection.states import (
    StateReport,
    bytes_held,
    memory_size,
    shape_held,
    squares,
    state_arrays,
    state_reports,
)
from mlx_deltamem.inspection.turns import TurnReport, turn_report, turn_table
from mlx_deltamem.sessions.stored.chat import StoredChat
from mlx_deltamem.sessions.stored.file import read_chat
from mlx_deltamem.sessions.turns.history import History
from mlx_deltamem.show.tables import columns, count, facts, message, number, span


@dataclass(frozen=True)
class SessionReport:
    """The facts about a chat.

    Attributes:
        kind: "session".
        file, file_id, bytes: The file, the id that it got when it was saved, and its size.
        origin: The name of the backbone, and the fingerprints of the backbone, the adapter and the tokenizer.
        history: The part of earlier turns that the model sees: full, none, or a number of tokens.
        write: The part of the next turn that is written.
        template_options: The options of the chat template.
        keeps_text: Whether the file holds the keys and values.
        has_system_prompt: Whether the chat has a system prompt.
        system: The system prompt; None unless the texts were asked for.
        tokens: The number of tokens of all turns.
        turns: The reports on the turns.
        state_shape: The shape of one layer's state, float32: `[H, r, r]`, with a key shift `[H, r + 1, r]`.
        state_bytes: The size of the states of all layers.
        states: The reports on the states after the last turn.
        arrays: The states after the last turn as matrices `[H, r, r]` by layer; not in the document.
    """

    kind: str
    file: str
    file_id: str
    bytes: int
    origin: Origin
    history: History
    write: str
    template_options: dict[str, object]
    keeps_text: bool
    has_system_prompt: bool
    system: str | None
    tokens: int
    turns: list[TurnReport]
    state_shape: list[int]
    state_bytes: int
    states: list[StateReport]
    arrays: dict[int, np.ndarray] = field(metadata=NOT_IN_DOCUMENT)

    def tables(self) -> list[RenderableType]:
        """The report as tables, and the messages if they were asked for."""
        options = self.template_options.items()
        rows = {
            "file": f"{self.file}, {count(self.bytes, 'bytes')}",
            "turns": f"{len(self.turns):,}, in all {count(self.tokens, 'tokens')}",
            "history": f"{self.history}" + (", keys and values in the file" if self.keeps_text else ""),
            "written": self.write,
            "system prompt": "yes" if self.has_system_prompt else "none",
            "template": ", ".join(f"{name}={value}" for name, value in options) or "no options",
            "memory": memory_size(self.state_shape, count(len(self.states), "layers"), self.state_bytes),
            "backbone": f"{self.origin.name} ({self.origin.backbone})",
            "adapter": self.origin.adapter,
            "tokenizer": self.origin.tokenizer,
        }
        said = [("system", self.system)]
        said += [(f"{index} {who}", text) for index, turn in enumerate(self.turns, 1) for who, text in turn.said]
        messages = [message(who, text) for who, text in said if text is not None]
        return [facts("Session", rows), _state_table(self), turn_table(self.turns), *messages]


def read_session(path: Path) -> tuple[StoredChat, str]:
    """Read the file of a chat as `read_chat` does, with an error that names the kind of any other file.

    Returns:
        The chat, and the id of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a session file, or it is damaged, altered, or of a newer format.
    """
    check_session(path)
    return read_chat(path)


def session_report(path: Path, with_texts: bool = False) -> SessionReport:
    """Measure a chat.

    Args:
        path: Its file.
        with_texts: Whether the report has the texts of the messages, which are private.

    Raises:
        FileNotFoundError, ValueError: As in `read_session`.
    """
    chat, file_id = read_session(path)
    arrays = chat_memory(chat)
    turns = [turn_report(turn, with_texts) for turn in chat.turns]
    return SessionReport(
        kind="session",
        file=str(path),
        file_id=file_id,
        bytes=path.stat().st_size,
        origin=chat.origin,
        history=chat.history,
        write=chat.write,
        template_options=chat.template_options,
        keeps_text=chat.text is not None,
        has_system_prompt=chat.system is not None,
        system=chat.system if with_texts else None,
        tokens=sum(turn.message_tokens + turn.reply_tokens + turn.ending_tokens for turn in turns),
        turns=turns,
        state_shape=shape_held(arrays),
        state_bytes=bytes_held(arrays),
        states=state_reports(arrays),
        arrays=squares(arrays),
    )


def chat_memory(chat: StoredChat) -> dict[int, np.ndarray]:
    """The states after a chat's last turn, by layer index: `[H, r, r]`, with a key shift `[H, r + 1, r]`."""
    return state_arrays({layer: state for layer, state in enumerate(chat.states) if state.size})


def _state_table(report: SessionReport) -> RenderableType:
    last = report.turns[-1] if report.turns else None
    kept = (last and last.kept) or {}
    changed = (last and last.changed) or {}
    title = "The memory by layer, and what the last turn did to it"
    table = columns(title, "layer", "norm", "largest", "kept", "changed", "effective rank")
    for state in report.states:
        table.add_row(
            str(state.layer),
            number(state.norm),
            number(state.largest),
            number(kept.get(state.layer)),
            number(changed.get(state.layer)),
            span(state.effective_rank),
        )
    return table
