"""Convert chats to the formats of other implementations. No model is needed for it."""

from pathlib import Path

import mlx.core as mx

from mlx_deltamem.files.atomic import check_absent, user_path
from mlx_deltamem.inspection.session import read_session
from mlx_deltamem.sessions.foreign.folder import (
    REFERENCE_FORMAT,
    SIDECAR_FORMAT,
    ForeignSession,
    foreign_format,
    read_foreign_session,
    write_reference_session,
)
from mlx_deltamem.sessions.foreign.states import write_sidecar_states
from mlx_deltamem.sessions.stored.chat import StoredChat
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.turns.turn import said_turns, segments_of
from mlx_deltamem.show.tables import count


def convert_session(source: str | Path, target: Path, to: str, dtype: mx.Dtype | None = None) -> str:
    """Read a chat and write it for another implementation.

    Args:
        source: A session file, a session folder of the reference, or an `.npz` file of the other MLX port.
        target: The folder or file to make.
        to: `torch` for a session folder of the reference; `npz` for a file of the other MLX port, which holds only the
            memory.
        dtype: The type of the states in a session folder of the reference; None: float32.

    Returns:
        Two lines for the user about what was read and what was written.

    Raises:
        FileNotFoundError: There is no such chat, or no folder for the target.
        ValueError: The chat is damaged, the target exists, or the target's format cannot hold the chat. Or `to` is
            `mlx`: a session file names the model of its chat, and there is no model here.
    """
    if to == "mlx":
        raise ValueError(
            f"{source} cannot become a session file without its model, because the file holds its fingerprints: use "
            f"ChatSession.load(model, tokenizer, {str(source)!r}).save(FILE), or convert it --to torch or --to npz"
        )
    if to == "npz" and dtype is not None and dtype != mx.float32:
        raise ValueError("--dtype goes with --to torch; the states in an npz file are float32")
    check_absent(target)
    path = user_path(source)
    kind = foreign_format(path)
    if kind is None:
        stored, _ = read_session(path)
        # A file of states has no messages, so the chat may have any.
        messages = _messages(path, stored) if to == "torch" else []
        states = {layer: state for layer, state in enumerate(stored.states) if state.size}
        chat = ForeignSession(stored.system, messages, states, segments_of(stored.turns).ids)
        number = len(said_turns(stored.turns))
    else:
        chat = read_foreign_session(path)
        number = len(chat.messages) // 2
    if to == "npz":
        write_sidecar_states(target, chat.states)
    else:
        system: list[Message] = [] if chat.system is None else [{"role": "system", "content": chat.system}]
        write_reference_session(
            target, [*system, *chat.messages], chat.states, ids=chat.ids or (), dtype=dtype or mx.float32
        )
    turns, layers = count(number, "turns"), count(len(chat.states), "layers")
    written = f"{turns} and a memory" if to == "torch" else "a memory"
    return (
        f"Read {source}: {turns} ({kind or 'a session file of mlx_deltamem'})\n"
        f"Wrote {target}: {written} of {layers} ({REFERENCE_FORMAT if to == 'torch' else SIDECAR_FORMAT})"
    )


def _messages(path: Path, stored: StoredChat) -> list[Message]:
    """The messages and replies of a chat, for a session folder of the reference.

    Raises:
        ValueError: It has several conversations, tools, or several messages in a turn, which that format cannot hold.
    """
    turns, advice = said_turns(stored.turns), "--to npz writes the memory alone"
    if len({turn.conversation for turn in turns}) > 1:
        raise ValueError(f"{path} has several conversations, and {REFERENCE_FORMAT} has one; {advice}")
    messages: list[Message] = []
    for turn in turns:
        if [message["role"] for message in turn.messages] != ["user"]:
            roles = ", ".join(message["role"] for message in turn.messages)
            raise ValueError(
                f"{path} has a turn of {roles}; {REFERENCE_FORMAT} holds one message of the user in each turn: {advice}"
            )
        if turn.tool_calls:
            raise ValueError(f"{path} has a reply with tool calls, and {REFERENCE_FORMAT} has texts only; {advice}")
        messages += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": turn.reply}]
    return messages
