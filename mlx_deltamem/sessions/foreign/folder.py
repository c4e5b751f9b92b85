"""The PyTorch reference's session folder, and which of the foreign formats a path has.

The folder holds `session.json` (messages and tokens), `delta_state.pt` (the memory) and `past_key_values.pt` (keys and
values). The last one is a pickle of Python objects, and to read it is to run code from it. It is never opened here:
the text is run again instead.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_deltamem.adapters.folder import NPZ_FILE
from mlx_deltamem.adapters.torch.reader import load_torch
from mlx_deltamem.adapters.torch.writer import save_none, save_torch
from mlx_deltamem.core.adapter import dtype_name, layer_list
from mlx_deltamem.files.atomic import check_absent, new_file, new_folder, one_line
from mlx_deltamem.files.jsonl import parsed_json
from mlx_deltamem.files.regular import read_file
from mlx_deltamem.sessions.foreign.states import STATES_SUFFIX, checked_states, read_sidecar_states, states_by_layer
from mlx_deltamem.sessions.text.messages import Message, is_utf8

SESSION_FILE = "session.json"
STATE_FILE = "delta_state.pt"
_KEYS_FILE = "past_key_values.pt"

REFERENCE_FORMAT = "the PyTorch reference's session folder"
SIDECAR_FORMAT = "the other MLX port's file of states"

_MODULE = re.compile(r"(?:.*\.)?layers\.(?P<layer>[0-9]{1,4})\.[^.]+(?:\.[^.]+)*")
_EXPECTED_MODULES = "expected states named after attention modules, such as `model.layers.0.self_attn`,"
# The only attention module of the models that the reference knows.
_MODULE_PATH = "self_attn"
_MAX_TOKEN = 2**31 - 1
_MOST_SESSION_BYTES, _MOST_VALUES = 64 << 20, 5_000_000


@dataclass(frozen=True)
class ForeignSession:
    """A chat that another implementation saved.

    Attributes:
        system: The system prompt, or None.
        messages: The messages after it: user and assistant in turn, the assistant last.
        states: The memory after the last message, `[1, H, r, r]` float32 by layer index; empty if none was saved.
        ids: The tokens of the whole chat, those of the template included; None if they are not known.
    """

    system: str | None
    messages: list[Message]
    states: dict[int, mx.array]
    ids: list[int] | None


def foreign_format(path: Path) -> str | None:
    """The format of the foreign session at a path, in words; None if there is none (an adapter's folder is none)."""
    if path.is_dir():
        return REFERENCE_FORMAT if any((path / name).is_file() for name in (SESSION_FILE, STATE_FILE)) else None
    return SIDECAR_FORMAT if path.suffix == STATES_SUFFIX and path.name != NPZ_FILE else None


def read_foreign_session(path: Path) -> ForeignSession:
    """Read a chat that another implementation saved. Nothing in its files is executed.

    Args:
        path: A session folder of the reference; or an `.npz` file of the other MLX port, which holds no messages.

    Raises:
        FileNotFoundError: There is no such file or folder, or the folder lacks a file.
        ValueError: It is damaged, or something else.
    """
    if path.is_dir():
        return _read_reference(path)
    if path.suffix != STATES_SUFFIX:
        raise ValueError(f"{path} is neither {REFERENCE_FORMAT} nor {SIDECAR_FORMAT} (.npz)")
    return ForeignSession(None, [], read_sidecar_states(path), None)


def write_reference_session(
    folder: Path,
    messages: Sequence[Mapping[str, object]],
    states: Mapping[int, mx.array],
    module_paths: Mapping[int, str] | None = None,
    ids: Sequence[int] = (),
    dtype: mx.Dtype = mx.float32,
) -> None:
    """Write a session folder that the reference loads, whole or not at all. Only its owner may read it.

    Keys and values are not written. So the reference goes on from the memory and the new messages, and does not see
    the earlier text. It needs `ids`: without them it would read the earlier messages again, and write them into the
    memory a second time. If its tokenizer gives other tokens for the messages than `ids`, it makes the memory again
    from the text.

    Args:
        folder: The folder to make.
        messages: The chat: the system prompt, if there is one, then user and assistant in turn.
        states: The memory after the messages, `[1, H, r, r]` by layer index.
        module_paths: By layer index, the name of the attention module within the layer, as in
            `model.attachment.paths`; None: `self_attn` for all layers.
        ids: The tokens of the whole chat, those of the template included.
        dtype: float32, bfloat16 or float16. The reference reads all three.

    Raises:
        ValueError: The folder is there already, the messages are not a chat in this form, the states are not those of
            one chat, they are of an adapter with a key shift, or they have values too large for `dtype`.
        OSError: The folder cannot be written. Nothing is left of it.
    """
    check_absent(folder)
    chat = [dict(message) for message in messages]
    _split(folder, chat)
    _check_ids(folder, list(ids))
    # The reference's states have an axis of heads only if there is more than one head.
    tensors = {
        f"model.layers.{layer}.{(module_paths or {}).get(layer, _MODULE_PATH)}": state[:, 0]
        if state.shape[1] == 1
        else state
        for layer, state in _stored(folder, states, dtype).items()
    }
    # The reference computes the last two lists itself if they are empty.
    session = {
        "messages": chat,
        "processed_input_ids": list(ids),
        "write_message_ids": [],
        "write_sentence_ids": [],
    }
    with new_folder(folder) as temporary:
        temporary.chmod(0o700)
        with new_file(temporary / SESSION_FILE) as file:
            file.write_text(json.dumps(session, ensure_ascii=False, indent=2), encoding="utf-8")
        save_torch(temporary / STATE_FILE, tensors)
        save_none(temporary / _KEYS_FILE)


def _read_reference(folder: Path) -> ForeignSession:
    missing = [name for name in (SESSION_FILE, STATE_FILE) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a session folder of the reference: it lacks {' and '.join(missing)}; copy the whole "
            "folder"
        )
    path = folder / SESSION_FILE
    try:
        session, problem = parsed_json(read_file(path, _MOST_SESSION_BYTES), _MOST_VALUES)
    except OSError as error:
        problem = one_line(error)
    if problem:
        raise ValueError(f"{path} is damaged ({problem}); expected the JSON of a session")
    if not isinstance(session, dict):
        raise ValueError(f"{path} does not hold an object; expected one with messages and processed_input_ids")
    system, messages = _split(path, session.get("messages"))
    ids = _check_ids(path, session.get("processed_input_ids"))
    state_path = folder / STATE_FILE
    states = states_by_layer(state_path, load_torch(state_path), _MODULE, _EXPECTED_MODULES)
    return ForeignSession(system, messages, states, ids or None)


def _split(path: Path, messages: object) -> tuple[str | None, list[Message]]:
    """The system prompt, and the messages after it. These must be user and assistant in turn."""
    if not isinstance(messages, list):
        raise ValueError(f"{path} has no list of messages; expected one, with role and content in each message")
    found = [_message(path, index, message) for index, message in enumerate(messages)]
    leading = found[:1] if found and found[0]["role"] == "system" else []
    others = found[len(leading) :]
    for index, message in enumerate(others, len(leading)):
        expected = ("user", "assistant")[(index - len(leading)) % 2]
        if message["role"] != expected:
            raise ValueError(
                f"{path}: message {index} has the role {message['role'][:60]!r}, expected {expected!r}: after a system "
                "prompt, a chat is user and assistant in turn"
            )
    if len(others) % 2:
        raise ValueError(f"{path}: the last message has no reply; expected one, remove the message")
    return leading[0]["content"] if leading else None, others


def _message(path: Path, index: int, message: object) -> Message:
    match message:
        case {"role": str(role), "content": str(content)}:
            if not is_utf8(content):
                raise ValueError(f"{path}: message {index} is not Unicode text; expected text")
            return {"role": role, "content": content}
    raise ValueError(f"{path}: message {index} is not an object with a role and a content; expected both, as texts")


def _check_ids(path: Path, ids: object) -> list[int]:
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token <= _MAX_TOKEN for token in ids):
        raise ValueError(f"{path} has no list of tokens (processed_input_ids); expected whole numbers from 0")
    return ids


def _stored(folder: Path, states: Mapping[int, mx.array], dtype: mx.Dtype) -> dict[int, mx.array]:
    """The states in the type that is written."""
    stored = {layer: state.astype(dtype) for layer, state in checked_states(folder, states).items()}
    too_large = sorted(layer for layer, state in stored.items() if not mx.isfinite(state).all())
    if too_large:
        raise ValueError(
            f"{folder}: the memory has values too large for {dtype_name(dtype)} ({layer_list(too_large)}); use float32"
        )
    return stored
