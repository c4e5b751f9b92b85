"""The content of a session file, and how a chat is turned into it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache

from mlx_deltamem._version import __version__
from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.core.cache import MemoryLayout, PromptCache
from mlx_deltamem.sessions.template.options import check_storable
from mlx_deltamem.sessions.turns.drift import Drift
from mlx_deltamem.sessions.turns.history import History
from mlx_deltamem.sessions.turns.restore import RestorePoint, States
from mlx_deltamem.sessions.turns.turn import Turn

# Version 1 had one message and one reply in each turn, and a turn was written as a whole or not at all. Version 3 has
# several conversations. A chat with one conversation is stored as version 2, which earlier releases read too.
FORMAT_VERSION, WITH_ONE_CONVERSATION = 3, 2
READABLE_VERSIONS = (1, 2, 3)
# The places that a file keeps: all of these last turns, and the beginnings of some turns before them.
_LAST_TURNS = 24
_EARLIER_TURNS = 16


@dataclass(frozen=True)
class StoredChat:
    """The content of a session file.

    Attributes:
        origin: The backbone, adapter and tokenizer that the chat was made with.
        system, history, write: As in `ChatSession`.
        template_options: The options for the chat template, the tools included.
        turns: The turns. Not all of them have the places before their messages and before their reply.
        states: The memory after the last turn.
        memory_set: Whether the user set the memory after the last turn.
        text: The keys and values after the last turn of the conversation that goes on, or None.
        conversation: The name of the conversation that goes on.
        title: The title that the user gave to the chat; empty for none.
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
    conversation: str = ""
    title: str = ""

    def check_fits(self, path: Path, layout: MemoryLayout) -> None:
        """Check that a model can go on with the chat.

        Raises:
            ValueError: The memory, or the keys and values, are not those of such a model.
        """
        fits = [state.shape for state in self.states] == [(1, *shape) for shape in layout.shapes]
        if not fits or (self.text is not None and len(self.text) != layout.backbone_entries):
            raise ValueError(f"{path} was altered: its memory or its text is not of this model; use a copy of it")


def description(chat: StoredChat, file_id: str) -> dict[str, object]:
    """The part of a chat that is stored as JSON in its file.

    Raises:
        ValueError: A template option is not JSON.
    """
    check_storable(chat.template_options)
    named = any((chat.conversation, *(turn.conversation for turn in chat.turns)))
    return {
        "format_version": FORMAT_VERSION if named else WITH_ONE_CONVERSATION,
        "file_id": file_id,
        "versions": {"mlx_deltamem": __version__, "mlx_lm": version("mlx-lm"), "mlx": version("mlx")},
        "origin": vars(chat.origin),
        "system": chat.system,
        "history": chat.history,
        "write": chat.write,
        "memory_set": chat.memory_set,
        "template_options": chat.template_options,
        "turns": [_described(turn) | ({"conversation": turn.conversation} if named else {}) for turn in chat.turns],
        "keeps_text": chat.text is not None,
        **({"conversation": chat.conversation} if named else {}),
        **({"title": chat.title} if chat.title else {}),
    }


def cache_entries(chat: StoredChat) -> PromptCache:
    """The cache entries of the file.

    The arrays of the last entry are, for T turns of N tokens and L layers with a memory:

    - `[3, N]` int32: token ids, message indices and sentence indices;
    - `[3 * T]` int32: the lengths of each turn's opening, reply and ending;
    - `[K]` int32: the places that are kept. Number 2 t is the place before turn t, 2 t + 1 the one before its reply;
    - `[K, L, 1, H, r, r]` float32 (with a key shift `[K, L, 1, H, r + 1, r]`): the states at these places;
    - `[T, 2, L]` float32: the drift of each turn, `kept` and `changed`; NaN if it is not known.
    """
    parts = [segments for turn in chat.turns for segments in (turn.opening, turn.reply_segments, turn.ending)]
    tokens = [
        [token for segments in parts for token in segments.ids],
        [index for segments in parts for index in segments.message_ids],
        [index for segments in parts for index in segments.sentence_ids],
    ]
    places = _kept_places(chat.turns)
    layers = [layer for layer, state in enumerate(chat.states) if state.size]
    states = [mx.stack([place.states[layer] for layer in layers]) for place in places.values()]
    arrays = [
        _int32(tokens).reshape(3, -1),
        _int32([len(segments.ids) for segments in parts]),
        _int32(list(places)),
        mx.stack(states) if states else mx.zeros(0),
        mx.array(np.array([_drift_rows(turn.drift, layers) for turn in chat.turns], np.float32)),
    ]
    return [*(chat.text or []), _entry(chat.states), _entry(arrays)]


def _described(turn: Turn) -> dict[str, object]:
    return {
        "messages": list(turn.messages),
        "reply": turn.reply,
        "tool_calls": list(turn.tool_calls),
        "write": turn.write,
        "remembered": turn.remembered,
        "memory_set": turn.memory_set,
    }


def _kept_places(turns: Sequence[Turn]) -> dict[int, RestorePoint]:
    """The places that the file keeps, by number: twice the turn, and one more for the place before the reply."""
    first_of_last = max(0, len(turns) - _LAST_TURNS)
    spread = {int(index) for index in np.linspace(0, first_of_last, _EARLIER_TURNS, endpoint=False)}
    places = {}
    for index, turn in enumerate(turns):
        # A memory that a user set cannot be computed from the turns before it.
        if turn.before is not None and (index >= first_of_last or index in spread or turn.memory_set):
            places[2 * index] = turn.before
        if turn.between is not None and index >= first_of_last:
            places[2 * index + 1] = turn.between
    return places


def _drift_rows(drift: Drift | None, layers: list[int]) -> list[list[float]]:
    if drift is None:
        return [[float("nan")] * len(layers)] * 2
    return [[values[layer] for layer in layers] for values in (drift.kept, drift.changed)]


def _int32(numbers: list[int] | list[list[int]]) -> mx.array:
    return mx.array(np.array(numbers, np.int32))


def _entry(arrays: Sequence[mx.array]) -> ArraysCache:
    entry = ArraysCache(0)
    entry.state = list(arrays), None, None
    return entry
