"""Chats as files: one `.safetensors`, which is a prompt cache file of mlx-lm with the chat in it.

Its cache entries are the keys and values (where they were asked for), the memory, and an `ArraysCache` of the chat's
own arrays; the texts are JSON in the metadata.
"""

import fcntl
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, load_prompt_cache, save_prompt_cache

from mlx_deltamem._version import __version__
from mlx_deltamem.cache import PromptCache
from mlx_deltamem.drift import Drift
from mlx_deltamem.files import new_file, remove_unfinished
from mlx_deltamem.fingerprint import array_bytes
from mlx_deltamem.history import History, mark_at, with_exact_windows
from mlx_deltamem.segments import Segments
from mlx_deltamem.turn import Border, States, Turn, part

FORMAT_VERSION = 1
SUFFIX = ".safetensors"
# The borders that a file keeps: those of the last turns, and the first ones of some turns before.
_LAST_TURNS = 24
_EARLIER_TURNS = 16


@dataclass(frozen=True)
class Origin:
    """What a chat was made with; the fingerprints must be the same to go on with it.

    Attributes:
        name: The backbone's name, for messages.
        backbone, adapter, tokenizer: Fingerprints.
    """

    name: str
    backbone: str
    adapter: str
    tokenizer: str

    def check(self, path: Path, found: "Origin") -> None:
        """Raise ValueError unless a file's chat was made with the same."""
        for kind in ("backbone", "adapter", "tokenizer"):
            theirs, ours = getattr(found, kind), getattr(self, kind)
            if theirs != ours:
                raise ValueError(
                    f"{path} was made with another {kind} ({theirs}, of {found.name}) than this one ({ours}, of "
                    f"{self.name}); load it with the one it was made with"
                )


@dataclass(frozen=True)
class StoredChat:
    """What a session file holds.

    Attributes:
        origin: What it was made with.
        system, history, template_options: As in `ChatSession`.
        turns: The turns; not all of them with their borders.
        states: The memory after the last turn, by layer index.
        text: The keys and values after it, or None.
    """

    origin: Origin
    system: str | None
    history: History
    template_options: dict[str, object]
    turns: list[Turn]
    states: States
    text: PromptCache | None


def write_chat(path: Path, chat: StoredChat, expected: str | None) -> str:
    """Write a chat, whole or not at all; only its owner may read the file.

    Args:
        path: The file to make or replace.
        chat: The chat.
        expected: The id of the file that may be replaced; None: there must be no file.

    Returns:
        The new file's id.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The file is not the expected one: someone else has saved there.
        OSError: It cannot be written; what was there is still there.
    """
    check_place(path)
    with _locked(path.parent):
        if path.exists() and (found := _file_id(path)) != expected:
            raise ValueError(
                f"{path} was saved by someone else ({found}, expected {expected or 'no file'}); "
                "save to another name, or load that file and go on from it"
            )
        remove_unfinished(path)
        file_id = uuid.uuid4().hex
        entries = _entries(chat)
        metadata = {"session": json.dumps(_description(chat, file_id), ensure_ascii=False)}
        metadata["checksum"] = _checksum(metadata["session"], entries)
        with new_file(path, mode=0o600) as temporary:
            try:
                save_prompt_cache(str(temporary), entries, metadata)
            except RuntimeError as error:
                raise OSError(f"{path} could not be written ({error}); is the disk full?") from None
    return file_id


def check_place(path: Path) -> None:
    """Raise FileNotFoundError, PermissionError or ValueError where no session can be saved."""
    if path.suffix != SUFFIX:
        raise ValueError(f"{path} does not end in {SUFFIX}; name a session file so")
    folder = path.expanduser().resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to save a session in")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder {folder} is read-only; name a session file elsewhere")


def read_chat(path: Path) -> tuple[StoredChat, str]:
    """Read a chat.

    Returns:
        The chat and the file's id.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no session, damaged, altered, or of a newer format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no session file {path}")
    try:
        metadata = _metadata(path)
        description = json.loads(metadata["session"])
        version = description["format_version"]
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no session ({_one_line(error)}); expected a file that a chat saved") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} is of session format {version}; this mlx_deltamem {__version__} reads {FORMAT_VERSION}"
        )
    try:
        entries = load_prompt_cache(str(path))
        if _checksum(metadata["session"], entries) != metadata["checksum"]:
            raise ValueError("its checksum is wrong")
        return _chat(description, entries), description["file_id"]
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or was altered ({_one_line(error)}); use a copy of it") from None


def _description(chat: StoredChat, file_id: str) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "file_id": file_id,
        "versions": {"mlx_deltamem": __version__, "mlx_lm": mlx_lm.__version__, "mlx": mx.__version__},
        "origin": vars(chat.origin),
        "system": chat.system,
        "history": chat.history,
        "template_options": chat.template_options,
        "turns": [{"user": t.user, "reply": t.reply, "writing": t.writing} for t in chat.turns],
        "keeps_text": chat.text is not None,
    }


def _entries(chat: StoredChat) -> PromptCache:
    """The cache entries of the file."""
    memory, arrays = ArraysCache(0), ArraysCache(0)
    memory.cache = list(chat.states)
    parts = [(turn.opening, turn.reply_segments, turn.ending) for turn in chat.turns]
    flat = [segments for turn in parts for segments in turn]
    tokens = [
        [x for segments in flat for x in getattr(segments, name)] for name in ("ids", "message_ids", "sentence_ids")
    ]
    borders = _kept_borders(chat.turns)
    layers = [layer for layer, state in enumerate(chat.states) if state.size]
    arrays.cache = [
        mx.array(np.array(tokens, np.int32).reshape(3, -1)),
        mx.array(np.array([len(segments.ids) for segments in flat], np.int32)),
        mx.array(np.array(list(borders), np.int32)),
        # [K, L, 1, H, r, r]
        mx.stack([mx.stack([border.states[layer] for layer in layers]) for border in borders.values()])
        if borders
        else mx.zeros(0),
        mx.array(np.array([_drift_rows(turn.drift, layers) for turn in chat.turns], np.float32)),
    ]
    return [*(chat.text or []), memory, arrays]


def _kept_borders(turns: Sequence[Turn]) -> dict[int, Border]:
    """The borders that the file keeps, by number: twice the turn, and one more for the border before the reply."""
    first_of_last = max(0, len(turns) - _LAST_TURNS)
    spread = {int(index) for index in np.linspace(0, first_of_last, _EARLIER_TURNS, endpoint=False)}
    borders = {}
    for index, turn in enumerate(turns):
        if turn.before is not None and (index >= first_of_last or index in spread):
            borders[2 * index] = turn.before
        if turn.between is not None and index >= first_of_last:
            borders[2 * index + 1] = turn.between
    return borders


def _drift_rows(drift: Drift | None, layers: list[int]) -> list[list[float]]:
    if drift is None:
        return [[float("nan")] * len(layers)] * 2
    return [[values[layer] for layer in layers] for values in (drift.kept, drift.changed)]


def _chat(description: dict, entries: PromptCache) -> StoredChat:
    """The chat in a file whose checksum is right."""
    *text, memory, arrays = entries
    tokens, lengths, numbers, stacked, drift = arrays.cache
    states = list(memory.cache)
    segments = _segments(tokens.tolist(), lengths.tolist())
    text = with_exact_windows([*text, memory]) if description["keeps_text"] else None
    borders = {
        number: Border(_by_layer(state, states), text and mark_at(text, _tokens_before(number, lengths.tolist())))
        for number, state in zip(numbers.tolist(), stacked, strict=True)
    }
    turns = []
    for index, said in enumerate(description["turns"]):
        opening, reply, ending = segments[3 * index : 3 * index + 3]
        ways_back = borders.get(2 * index), borders.get(2 * index + 1)
        turns.append(
            Turn(said["user"], opening, said["writing"], *ways_back, None, said["reply"], tuple(reply.ids), ending)
        )
    layers = [layer for layer, state in enumerate(states) if state.size]
    turns = [_with_drift(turn, rows, layers) for turn, rows in zip(turns, drift.tolist(), strict=True)]
    origin = Origin(**description["origin"])
    options = description["template_options"]
    return StoredChat(origin, description["system"], description["history"], options, turns, states, text)


def _segments(tokens: list[list[int]], lengths: list[int]) -> list[Segments]:
    borders = np.cumsum([0, *lengths]).tolist()
    return [part(Segments(*tokens), slice(begin, end)) for begin, end in pairwise(borders)]


def _tokens_before(border: int, lengths: list[int]) -> int:
    # Three lengths a turn, of which the first is before the border in its middle.
    return sum(lengths[: 3 * (border // 2) + border % 2])


def _by_layer(stacked: mx.array, like: States) -> States:
    found = iter(stacked)
    return [next(found) if state.size else state for state in like]


def _with_drift(turn: Turn, rows: list[list[float]], layers: list[int]) -> Turn:
    kept, changed = (dict(zip(layers, row, strict=True)) for row in rows)
    known = not any(math.isnan(value) for value in kept.values())
    return Turn(**{**vars(turn), "drift": Drift(kept, changed) if known else None})


def _checksum(session: str, entries: PromptCache) -> str:
    digest = hashlib.sha256(session.encode())
    for name, value in tree_flatten([entry.state for entry in entries]):
        if isinstance(value, mx.array):
            digest.update(f"{name} {value.shape} {value.dtype}".encode() + array_bytes(value))
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    """The texts of a session file, none of its arrays being read."""
    _, metadata = mx.load(str(path), return_metadata=True)
    # mlx-lm numbers what it writes: 0 is what it was given.
    return {name.removeprefix("0."): value for name, value in metadata.items() if name.startswith("0.")}


def _file_id(path: Path) -> str:
    try:
        return json.loads(_metadata(path)["session"])["file_id"]
    except (RuntimeError, ValueError, KeyError, TypeError):
        return "no session file"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time, for looking at a file and replacing it. The lock goes with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")
