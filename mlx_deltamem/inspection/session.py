"""What is to be known of a chat, from its file alone."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.inspection.document import NOT_IN_DOCUMENT
from mlx_deltamem.inspection.file_kind import check_session
from mlx_deltamem.inspection.states import StateReport, state_arrays, state_reports
from mlx_deltamem.sessions.drift import half_life
from mlx_deltamem.sessions.file import read_chat
from mlx_deltamem.sessions.history import History
from mlx_deltamem.sessions.stored import StoredChat
from mlx_deltamem.sessions.turn import Turn


@dataclass(frozen=True)
class TurnReport:
    """One turn of a chat.

    Attributes:
        message_tokens, reply_tokens, ending_tokens: Run for the message in its template, the reply, and what the
            template ends it with.
        write: What of the turn was written into the memory, one of `mlx_deltamem.sessions.writing.WRITES`.
        remembered: Whether a text was written into the memory without a reply.
        kept, changed: By layer, the mean share of the state that a token of the message kept, and how far the turn
            moved the state relative to its norm (`drift.Drift`); None where the file does not tell.
        kept_mean, changed_mean: Their means over the layers.
        half_life: The number of tokens after which half of the state is left, at `kept_mean`; infinite (null in a
            document) where everything was kept.
        user, reply: The texts, where they were asked for.
    """

    message_tokens: int
    reply_tokens: int
    ending_tokens: int
    write: str
    remembered: bool
    kept: dict[int, float] | None
    changed: dict[int, float] | None
    kept_mean: float | None
    changed_mean: float | None
    half_life: float | None
    user: str | None
    reply: str | None


@dataclass(frozen=True)
class SessionReport:
    """What is to be known of a chat.

    Attributes:
        kind: "session".
        file, file_id, bytes: The file, the id it got when it was saved, and its size.
        origin: The backbone's name, and the fingerprints of the backbone, the adapter and the tokenizer.
        history: What the model sees of earlier turns: full, none, or a number of tokens.
        write: What of a turn is written from now on.
        template_options: What else the chat template was given.
        keeps_text: Whether the keys and values are in the file.
        has_system_prompt: Whether there is one.
        system: Its text, where the texts were asked for.
        tokens: Of all turns.
        turns: The turns.
        state_shape, state_bytes: `[H, r, r]` of one layer, float32, and the memory in all layers.
        states: The states after the last turn.
        arrays: The same as arrays `[H, r, r]`, by layer; not in the document.
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


def read_session(path: Path) -> tuple[StoredChat, str]:
    """Read a chat's file, as `read_chat` does.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no session, and what it is instead; or it is damaged, altered, or of a newer format.
    """
    check_session(path)
    return read_chat(path)


def session_report(path: Path, with_texts: bool = False) -> SessionReport:
    """Measure a chat.

    Args:
        path: Its file.
        with_texts: Whether the messages' texts are wanted, which are private.

    Raises:
        As `read_session`.
    """
    chat, file_id = read_session(path)
    arrays = chat_memory(chat)
    turns = [_turn_report(turn, with_texts) for turn in chat.turns]
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
        state_shape=list(next(iter(arrays.values())).shape) if arrays else [],
        state_bytes=sum(state.nbytes for state in arrays.values()),
        states=state_reports(arrays),
        arrays=arrays,
    )


def chat_memory(chat: StoredChat) -> dict[int, np.ndarray]:
    """The states `[H, r, r]` after a chat's last turn, by layer index."""
    return state_arrays({layer: state for layer, state in enumerate(chat.states) if state.size})


def _turn_report(turn: Turn, with_texts: bool) -> TurnReport:
    drift = turn.drift
    kept_mean = None if drift is None else fmean(drift.kept.values())
    return TurnReport(
        message_tokens=len(turn.opening.ids),
        reply_tokens=len(turn.reply_ids),
        ending_tokens=len(turn.ending.ids),
        write=turn.write,
        remembered=turn.remembered,
        kept=None if drift is None else drift.kept,
        changed=None if drift is None else drift.changed,
        kept_mean=kept_mean,
        changed_mean=None if drift is None else fmean(drift.changed.values()),
        half_life=None if kept_mean is None else half_life(kept_mean),
        user=turn.text if with_texts else None,
        reply=turn.reply if with_texts else None,
    )
