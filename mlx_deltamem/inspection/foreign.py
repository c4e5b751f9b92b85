"""The report of `inspect` on a chat that another implementation saved."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_deltamem.inspection.document import NOT_IN_DOCUMENT
from mlx_deltamem.inspection.states import StateReport, state_arrays, state_reports
from mlx_deltamem.sessions.foreign.folder import SESSION_FILE, STATE_FILE, foreign_format, read_foreign_session


@dataclass(frozen=True)
class ForeignReport:
    """The facts about a foreign chat that `inspect` shows.

    Attributes:
        kind: "foreign session".
        file, format, bytes: The folder or file, what it is, and the size of what was read of it.
        has_system_prompt: Whether there is one.
        turns: How many there are.
        tokens: Of the whole chat; None where the file does not tell.
        system, messages: The texts, where they were asked for.
        state_shape, state_bytes: `[H, r, r]` of one layer as float32, and the memory in all layers.
        states: The states.
        arrays: The same as arrays `[H, r, r]`, by layer; not in the document.
    """

    kind: str
    file: str
    format: str
    bytes: int
    has_system_prompt: bool
    turns: int
    tokens: int | None
    system: str | None
    messages: list[dict[str, str]] | None
    state_shape: list[int]
    state_bytes: int
    states: list[StateReport]
    arrays: dict[int, np.ndarray] = field(metadata=NOT_IN_DOCUMENT)


def foreign_report(path: Path, with_texts: bool = False) -> ForeignReport:
    """Measure a chat that another implementation saved.

    Args:
        path: A session folder of the reference, or an `.npz` file of the other MLX port.
        with_texts: Whether the messages' texts are wanted, which are private.

    Raises:
        As `read_foreign_session`.
    """
    chat = read_foreign_session(path)
    arrays = state_arrays(chat.states)
    files = [path / name for name in (SESSION_FILE, STATE_FILE)] if path.is_dir() else [path]
    return ForeignReport(
        kind="foreign session",
        file=str(path),
        format=foreign_format(path),
        bytes=sum(file.stat().st_size for file in files),
        has_system_prompt=chat.system is not None,
        turns=len(chat.messages) // 2,
        tokens=None if chat.ids is None else len(chat.ids),
        system=chat.system if with_texts else None,
        messages=chat.messages if with_texts else None,
        state_shape=list(next(iter(arrays.values())).shape) if arrays else [],
        state_bytes=sum(state.nbytes for state in arrays.values()),
        states=state_reports(arrays),
        arrays=arrays,
    )
