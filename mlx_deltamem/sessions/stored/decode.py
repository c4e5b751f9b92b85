"""From the content of a session file to a chat, with all checks: anyone may have written the file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar, cast

import mlx.core as mx
import numpy as np

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.sessions.stored.chat import StoredChat
from mlx_deltamem.sessions.template.options import check_storable
from mlx_deltamem.sessions.text.messages import ToolCall, parse_messages, said_messages
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS, Segments, part
from mlx_deltamem.sessions.turns.drift import Drift
from mlx_deltamem.sessions.turns.history import FULL, parse_history
from mlx_deltamem.sessions.turns.restore import RestorePoint, States, TextMark, can_be_cut, mark_at, precision
from mlx_deltamem.sessions.turns.turn import Turn
from mlx_deltamem.sessions.turns.writing import ALL, NONE, parse_write

_Kind = TypeVar("_Kind")


def decode(description: Mapping[str, object], entries: PromptCache) -> StoredChat:
    """The chat in a session file, from its JSON and its cache entries.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: A chat does not write such a file.
    """
    *text, memory, arrays = entries
    tokens, lengths, numbers, stacked, drift = arrays.cache
    states: States = list(memory.cache)
    if any(state.ndim != 4 or state.dtype != mx.float32 for state in states):
        raise ValueError("its memory is not a memory")
    turns = [_turn(_mapping(turn)) for turn in _list(description["turns"])]
    segments = _segments(tokens.tolist(), lengths.tolist(), len(turns))
    history = parse_history(description["history"])
    conversation = _text(description.get("conversation", ""))
    visible = _visible_lengths(turns, lengths.tolist(), conversation)
    # A file of version 1 also has the text of a chat with another history. That text is read again anyway.
    kept = [*text, memory] if _boolean(description["keeps_text"]) and history == FULL else None
    if kept and any(can_be_cut(entry) and entry.offset != sum(visible) for entry in text):
        raise ValueError("its keys and values are not those of its text")
    before = _tokens_before(visible)
    if not all(0 <= number < len(before) for number in numbers.tolist()):
        raise ValueError(f"its places are not those of {len(turns)} turns")
    places = {
        number: RestorePoint(
            _by_layer(state, states),
            _mark(kept if turns[number // 2].conversation == conversation else None, before[number]),
        )
        for number, state in zip(numbers.tolist(), stacked, strict=True)
    }
    layers = [layer for layer, state in enumerate(states) if state.size]
    return StoredChat(
        origin=_origin(description),
        system=None if description["system"] is None else _text(description["system"]),
        history=history,
        write=parse_write(description.get("write", ALL)),
        template_options=_template_options(description["template_options"]),
        turns=[
            _completed(index, turn, segments[3 * index : 3 * index + 3], places, _drift(rows, layers))
            for index, (turn, rows) in enumerate(zip(turns, drift.tolist(), strict=True))
        ],
        states=states,
        memory_set=_boolean(description.get("memory_set", False)),
        text=None if kept is None else text,
        conversation=conversation,
        title=_text(description.get("title", "")),
    )


@dataclass(frozen=True)
class ChatTexts:
    """The part of a chat that a list of chats shows.

    Attributes:
        title: The title that the user gave to the chat; empty for none.
        origin: The backbone, adapter and tokenizer that the chat was made with.
        messages: The role and the text of the system prompt, of each message and of each reply, in order.
        turns: The number of turns.
    """

    title: str
    origin: Origin
    messages: tuple[tuple[str, str], ...]
    turns: int


def decode_texts(description: Mapping[str, object]) -> ChatTexts:
    """The texts of the chat in a session file, from its JSON alone.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: A chat does not write such JSON.
    """
    turns = [_turn(_mapping(turn)) for turn in _list(description["turns"])]
    said = [] if description["system"] is None else [("system", _text(description["system"]))]
    for turn in turns:
        said += [(message["role"], message["content"]) for message in turn.messages]
        if not turn.remembered:
            said.append(("assistant", turn.reply))
    return ChatTexts(_text(description.get("title", "")), _origin(description), tuple(said), len(turns))


def _origin(description: Mapping[str, object]) -> Origin:
    return Origin(**{name: _text(value) for name, value in _mapping(description["origin"]).items()})


def _turn(turn: Mapping[str, object]) -> Turn:
    """The part of a turn that is JSON in the file. Its tokens, places and drift are still missing.

    Raises:
        ValueError: A chat does not write such JSON.
    """
    if "user" in turn:
        return _turn_of_version_1(turn)
    remembered = _boolean(turn.get("remembered", False))
    messages = _list(turn["messages"])
    reply, calls = _text(turn["reply"]), _list(turn.get("tool_calls", []))
    # This is a check only: in a reply, the arguments of calls stay JSON text.
    parse_messages({"role": "assistant", "content": reply, "tool_calls": calls})
    return Turn(
        messages=parse_messages(messages) if remembered else said_messages(messages),
        opening=NO_SEGMENTS,
        write=parse_write(turn["write"]),
        conversation=_text(turn.get("conversation", "")),
        remembered=remembered,
        memory_set=_boolean(turn.get("memory_set", False)),
        reply=reply,
        tool_calls=tuple(cast(list[ToolCall], calls)),
    )


def _turn_of_version_1(turn: Mapping[str, object]) -> Turn:
    return Turn(
        messages=said_messages([{"role": "user", "content": _text(turn["user"])}]),
        opening=NO_SEGMENTS,
        write=ALL if _boolean(turn["writing"]) else NONE,
        reply=_text(turn["reply"]),
    )


def _completed(
    index: int, turn: Turn, segments: list[Segments], places: Mapping[int, RestorePoint], drift: Drift | None
) -> Turn:
    """Turn `index` with its tokens (of its opening, reply and ending), places and drift.

    Raises:
        ValueError: They do not belong to its texts.
    """
    opening, reply, ending = segments
    before, between = places.get(2 * index), places.get(2 * index + 1)
    if turn.memory_set and before is None:
        raise ValueError(f"the memory that turn {index} began from is missing")
    turn = replace(
        turn,
        opening=opening,
        before=before,
        between=between,
        reply_ids=tuple(reply.ids),
        ending=ending,
        drift=drift,
    )
    # Raises ValueError if a token belongs to a message that the turn does not have.
    written = turn.opening_written
    if not written or (turn.remembered and (turn.reply or turn.tool_calls or turn.reply_ids or turn.ending.ids)):
        raise ValueError("the tokens of a turn are not those of its messages")
    return turn


def _template_options(value: object) -> dict[str, object]:
    options = _mapping(value)
    check_storable(options)
    return options


def _segments(tokens: list[list[int]], lengths: list[int], turns: int) -> list[Segments]:
    """Three segments for each turn: its opening, reply and ending."""
    if len(lengths) != 3 * turns or min(lengths, default=0) < 0 or {sum(lengths)} != set(map(len, tokens)):
        raise ValueError(f"its tokens are not those of {turns} turns")
    borders = np.cumsum([0, *lengths]).tolist()
    return [part(Segments(*tokens), slice(begin, end)) for begin, end in pairwise(borders)]


def _visible_lengths(turns: list[Turn], lengths: list[int], conversation: str) -> list[int]:
    """The lengths of the parts of turns, three a turn, as they count in the text of a conversation.

    Remembered texts, and turns of other conversations, count 0.
    """
    seen = [not turn.remembered and turn.conversation == conversation for turn in turns]
    return [length if seen[place // 3] else 0 for place, length in enumerate(lengths)]


def _tokens_before(lengths: list[int]) -> list[int]:
    """For each place, the number of tokens before it: place 2 t is before turn t, and 2 t + 1 before its reply."""
    sums = list(accumulate(lengths, initial=0))
    return [sums[3 * (place // 2) + place % 2] for place in range(2 * (len(lengths) // 3))]


def _mark(kept: PromptCache | None, tokens: int) -> TextMark | None:
    # A file does not say since which turn the keys and values are quantised.
    is_exact = kept is not None and not any(map(precision, kept[:-1]))
    return mark_at(kept, tokens) if kept is not None and is_exact else None


def _by_layer(stacked: mx.array, like: States) -> States:
    """States `[L, 1, H, r, r]` of the layers that have a memory, by layer index."""
    kept = [state for state in like if state.size]
    if stacked.shape != (len(kept), *kept[0].shape):
        raise ValueError(f"the memory of a turn has shape {stacked.shape}")
    found = iter(stacked)
    return [next(found) if state.size else state for state in like]


def _drift(rows: list[list[float]], layers: list[int]) -> Drift | None:
    kept, changed = (dict(zip(layers, row, strict=True)) for row in rows)
    known = not any(math.isnan(value) for value in kept.values())
    return Drift(kept, changed) if known else None


def _text(value: object) -> str:
    text = _typed(value, str, "a text")
    # Raises UnicodeEncodeError, a ValueError, if it has lone surrogates.
    text.encode()
    return text


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
