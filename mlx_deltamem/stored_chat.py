"""A chat as the cache entries and the texts that a session file holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.models.cache import ArraysCache

from mlx_deltamem._version import __version__
from mlx_deltamem.cache import PromptCache
from mlx_deltamem.drift import Drift
from mlx_deltamem.fingerprint import Origin
from mlx_deltamem.history import History, mark_at, with_exact_windows
from mlx_deltamem.segments import Segments
from mlx_deltamem.turn import Border, States, Turn, part

FORMAT_VERSION = 1
# The borders that a file keeps: those of the last turns, and the first ones of some turns before.
_LAST_TURNS = 24
_EARLIER_TURNS = 16


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


def describe(chat: StoredChat, file_id: str) -> dict[str, object]:
    """What of a chat is JSON in its file."""
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


def stored_chat(description: dict, entries: PromptCache) -> StoredChat:
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
    return replace(turn, drift=Drift(kept, changed) if known else None)
