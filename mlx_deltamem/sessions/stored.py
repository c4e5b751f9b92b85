"""A chat as the cache entries and the texts that a session file holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.models.cache import ArraysCache

from mlx_deltamem._version import __version__
from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.core.cache import MemoryLayout, PromptCache
from mlx_deltamem.sessions.drift import Drift
from mlx_deltamem.sessions.history import FULL, History, can_be_cut, mark_at, parse_history
from mlx_deltamem.sessions.messages import Message, json_text, parse_messages
from mlx_deltamem.sessions.template import Segments
from mlx_deltamem.sessions.text import parse_tools, said_messages
from mlx_deltamem.sessions.turn import Border, States, Turn, part
from mlx_deltamem.sessions.writing import ALL, NONE, parse_write

# Version 1 had one message and one reply in each turn, of which all or nothing was written.
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
# The borders that a file keeps: those of the last turns, and the first ones of some turns before.
_LAST_TURNS = 24
_EARLIER_TURNS = 16
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class StoredChat:
    """What a session file holds.

    Attributes:
        origin: What it was made with.
        system, history, write, template_options: As in `ChatSession`.
        turns: The turns; not all of them with their borders.
        states: The memory to go on from, by layer index.
        memory_set: Whether it was set after the last turn.
        text: The keys and values after the last turn, or None.
    """

    origin: Origin
    system: str | None
    history: History
    write: str
    template_options: dict[str, object]
    turns: list[Turn]
    states: States
    memory_set: bool
    text: PromptCache | None

    def check_fits(self, path: Path, layout: MemoryLayout) -> None:
        """Check that a model can go on with it.

        Raises:
            ValueError: Its memory, or its keys and values, are not those of such a model.
        """
        fits = [state.shape for state in self.states] == [(1, *shape) for shape in layout.shapes]
        if not fits or (self.text is not None and len(self.text) != layout.backbone_entries):
            raise ValueError(f"{path} was altered: its memory or its text is not of this model; use a copy of it")


def describe(chat: StoredChat, file_id: str) -> dict[str, object]:
    """The part of a chat that is stored as JSON in its file.

    Raises:
        ValueError: A template option is no JSON.
    """
    _check_options(chat.template_options)
    return {
        "format_version": FORMAT_VERSION,
        "file_id": file_id,
        "versions": {"mlx_deltamem": __version__, "mlx_lm": mlx_lm.__version__, "mlx": mx.__version__},
        "origin": vars(chat.origin),
        "system": chat.system,
        "history": chat.history,
        "write": chat.write,
        "memory_set": chat.memory_set,
        "template_options": chat.template_options,
        "turns": [_described(turn) for turn in chat.turns],
        "keeps_text": chat.text is not None,
    }


def cache_entries(chat: StoredChat) -> PromptCache:
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


def _described(turn: Turn) -> dict[str, object]:
    return {
        "messages": list(turn.messages),
        "reply": turn.reply,
        "tool_calls": list(turn.tool_calls),
        "write": turn.write,
        "remembered": turn.remembered,
        "memory_set": turn.memory_set,
    }


def _kept_borders(turns: Sequence[Turn]) -> dict[int, Border]:
    """The borders that the file keeps, by number: twice the turn, and one more for the border before the reply."""
    first_of_last = max(0, len(turns) - _LAST_TURNS)
    spread = {int(index) for index in np.linspace(0, first_of_last, _EARLIER_TURNS, endpoint=False)}
    borders = {}
    for index, turn in enumerate(turns):
        # A memory that was set cannot be made again.
        if turn.before is not None and (index >= first_of_last or index in spread or turn.memory_set):
            borders[2 * index] = turn.before
        if turn.between is not None and index >= first_of_last:
            borders[2 * index + 1] = turn.between
    return borders


def _drift_rows(drift: Drift | None, layers: list[int]) -> list[list[float]]:
    if drift is None:
        return [[float("nan")] * len(layers)] * 2
    return [[values[layer] for layer in layers] for values in (drift.kept, drift.changed)]


def stored_chat(description: dict, entries: PromptCache) -> StoredChat:
    """The chat in a file whose checksum is right.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: It is not what a chat writes.
    """
    *text, memory, arrays = entries
    tokens, lengths, numbers, stacked, drift = arrays.cache
    states = list(memory.cache)
    if any(state.ndim != 4 or state.dtype != mx.float32 for state in states):
        raise ValueError("its memory is no memory")
    said = [_checked(turn) for turn in _list(description["turns"])]
    segments = _segments(tokens.tolist(), lengths.tolist(), len(said))
    history = parse_history(description["history"])
    counted = _visible_lengths(said, lengths.tolist())
    # Version 1 kept a window of the text as well, which is read anew now.
    kept = [*text, memory] if _boolean(description["keeps_text"]) and history == FULL else None
    if kept and any(can_be_cut(entry) and entry.offset != sum(counted) for entry in text):
        raise ValueError("its keys and values are not those of its text")
    borders = {
        number: Border(_by_layer(state, states), kept and mark_at(kept, _tokens_before(number, counted)))
        for number, state in zip(numbers.tolist(), stacked, strict=True)
    }
    layers = [layer for layer, state in enumerate(states) if state.size]
    turns = []
    for index, (each, rows) in enumerate(zip(said, drift.tolist(), strict=True)):
        opening, reply, ending = segments[3 * index : 3 * index + 3]
        before, between = borders.get(2 * index), borders.get(2 * index + 1)
        if each["memory_set"] and before is None:
            raise ValueError(f"the memory that turn {index} began from is missing")
        turn = Turn(**each, opening=opening, before=before, between=between, reply_ids=tuple(reply.ids), ending=ending)
        _check_tokens(turn)
        turns.append(_with_drift(turn, rows, layers))
    return StoredChat(
        origin=Origin(**{name: _text(value) for name, value in _mapping(description["origin"]).items()}),
        system=None if description["system"] is None else _text(description["system"]),
        history=history,
        write=parse_write(description.get("write", ALL)),
        template_options=_check_options(_mapping(description["template_options"])),
        turns=turns,
        states=states,
        memory_set=_boolean(description.get("memory_set", False)),
        text=None if kept is None else text,
    )


def _checked(turn: dict[str, object]) -> dict[str, object]:
    """The fields of a `Turn` that JSON holds, from either version.

    Raises:
        ValueError: One is not what a chat writes.
    """
    if "user" in turn:
        writing = _boolean(turn["writing"])
        said = [{"role": "user", "content": _text(turn["user"])}]
        turn = {"messages": said, "write": ALL if writing else NONE, "reply": turn["reply"]}
    remembered = _boolean(turn.get("remembered", False))
    messages = _list(turn["messages"])
    reply: Message = {"role": "assistant", "content": _text(turn["reply"])}
    reply["tool_calls"] = _list(turn.get("tool_calls", []))
    # Only checked: the arguments of calls stay the JSON text that they are.
    parse_messages(reply)
    return {
        "messages": parse_messages(messages) if remembered else said_messages(messages),
        "reply": reply["content"],
        "tool_calls": tuple(reply["tool_calls"]),
        "write": parse_write(turn["write"]),
        "remembered": remembered,
        "memory_set": _boolean(turn.get("memory_set", False)),
    }


def _check_tokens(turn: Turn) -> None:
    """Check that a turn's tokens can be those of its texts.

    Raises:
        ValueError: They cannot.
    """
    # Raises it where a token is of a message that is not there.
    written = turn.opening_written
    if not written or (turn.remembered and (turn.reply or turn.tool_calls or turn.reply_ids or turn.ending.ids)):
        raise ValueError("a turn has other tokens than its messages")


def _check_options(options: dict[str, object]) -> dict[str, object]:
    """Check that the options for the chat template are JSON.

    Raises:
        ValueError: One is not.
    """
    for name, value in options.items():
        if name == "tools":
            parse_tools(value)
        try:
            json_text([name, value])
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"the template option {name!r} is no JSON ({error}); a session file holds none") from None
    return options


def _text(value: object) -> str:
    _typed(value, str, "a text").encode()
    return value


def _list(value: object) -> list[object]:
    return _typed(value, list, "a list")


def _boolean(value: object) -> bool:
    return _typed(value, bool, "true or false")


def _mapping(value: object) -> dict[str, object]:
    return _typed(value, dict, "an object")


def _typed(value: object, kind: type[_Kind], expected: str) -> _Kind:
    if not isinstance(value, kind):
        raise ValueError(f"there is a {type(value).__name__} where {expected} is expected")
    return value


def _segments(tokens: list[list[int]], lengths: list[int], turns: int) -> list[Segments]:
    if len(lengths) != 3 * turns or min(lengths, default=0) < 0 or {sum(lengths)} != set(map(len, tokens)):
        raise ValueError(f"its tokens are not those of {turns} turns")
    borders = np.cumsum([0, *lengths]).tolist()
    return [part(Segments(*tokens), slice(begin, end)) for begin, end in pairwise(borders)]


def _visible_lengths(said: list[dict[str, object]], lengths: list[int]) -> list[int]:
    """Three lengths a turn: the tokens that are in the chat's text, which those that were remembered are not."""
    return [0 if said[place // 3]["remembered"] else length for place, length in enumerate(lengths)]


def _tokens_before(border: int, lengths: list[int]) -> int:
    # Three lengths a turn, of which the first is before the border in its middle.
    return sum(lengths[: 3 * (border // 2) + border % 2])


def _by_layer(stacked: mx.array, like: States) -> States:
    kept = [state for state in like if state.size]
    if stacked.shape != (len(kept), *kept[0].shape):
        raise ValueError(f"the memory of a turn has shape {stacked.shape}")
    found = iter(stacked)
    return [next(found) if state.size else state for state in like]


def _with_drift(turn: Turn, rows: list[list[float]], layers: list[int]) -> Turn:
    kept, changed = (dict(zip(layers, row, strict=True)) for row in rows)
    known = not any(math.isnan(value) for value in kept.values())
    return replace(turn, drift=Drift(kept, changed) if known else None)
