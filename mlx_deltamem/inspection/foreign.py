"""The facts about a chat that another implementation saved."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import RenderableType

from mlx_deltamem.inspection.document import NOT_IN_DOCUMENT
from mlx_deltamem.inspection.states import (
    StateReport,
    bytes_held,
    memory_size,
    shape_held,
    state_arrays,
    state_reports,
)
from mlx_deltamem.sessions.foreign.folder import SESSION_FILE, STATE_FILE, read_foreign_session
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.show.tables import columns, count, facts, message, number, span


@dataclass(frozen=True)
class ForeignReport:
    """The facts about a chat that another implementation saved.

    Attributes:
        kind: "foreign session".
        file, format, bytes: The folder or file, its format in words, and the size of the files that were read.
        has_system_prompt: Whether the chat has a system prompt.
        turns: The number of turns.
        tokens: The number of tokens of the whole chat; None if the format does not have it.
        system, messages: The texts; None unless they were asked for.
        state_shape, state_bytes: The shape of one layer's state, `[H, r, r]` float32, and the size of all states.
        states: The reports on the states.
        arrays: The states as arrays `[H, r, r]` by layer; not in the document.
    """

    kind: str
    file: str
    format: str
    bytes: int
    has_system_prompt: bool
    turns: int
    tokens: int | None
    system: str | None
    messages: list[Message] | None
    state_shape: list[int]
    state_bytes: int
    states: list[StateReport]
    arrays: dict[int, np.ndarray] = field(metadata=NOT_IN_DOCUMENT)

    def tables(self) -> list[RenderableType]:
        """The report as tables, and the messages if they were asked for."""
        tokens = "" if self.tokens is None else f", in all {count(self.tokens, 'tokens')}"
        memory = memory_size(self.state_shape, count(len(self.states), "layers"), self.state_bytes)
        rows = {
            "file": f"{self.file}, {count(self.bytes, 'bytes')}",
            "format": self.format,
            "turns": f"{self.turns:,}{tokens}" if self.turns else "none in it",
            "system prompt": "yes" if self.has_system_prompt else "none",
            "memory": memory if self.states else "empty",
        }
        table = columns("The memory by layer", "layer", "norm", "largest", "effective rank")
        for state in self.states:
            table.add_row(str(state.layer), number(state.norm), number(state.largest), span(state.effective_rank))
        said = [("system", self.system)] if self.system is not None else []
        said += [(f"{i // 2 + 1} {each['role']}", each["content"]) for i, each in enumerate(self.messages or [])]
        return [facts("Session", rows), table, *(message(who, text) for who, text in said)]


def foreign_report(path: Path, form: str, with_texts: bool = False) -> ForeignReport:
    """Measure a chat that another implementation saved.

    Args:
        path: A session folder of the reference, or an `.npz` file of the other MLX port.
        form: The format as `foreign_format` names it.
        with_texts: Whether the report has the texts of the messages, which are private.

    Raises:
        FileNotFoundError, ValueError: As in `read_foreign_session`.
    """
    chat = read_foreign_session(path)
    arrays = state_arrays(chat.states)
    files = [path / name for name in (SESSION_FILE, STATE_FILE)] if path.is_dir() else [path]
    return ForeignReport(
        kind="foreign session",
        file=str(path),
        format=form,
        bytes=sum(file.stat().st_size for file in files),
        has_system_prompt=chat.system is not None,
        turns=len(chat.messages) // 2,
        tokens=None if chat.ids is None else len(chat.ids),
        system=chat.system if with_texts else None,
        messages=chat.messages if with_texts else None,
        state_shape=shape_held(arrays),
        state_bytes=bytes_held(arrays),
        states=state_reports(arrays),
        arrays=arrays,
    )
