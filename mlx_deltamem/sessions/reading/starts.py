"""The visible start of a new chat: the tokens before its first message, read with an empty memory.

They are read in a pass of their own. So chats with the same start can share it (`Starts`), and a chat that does so has
the same memory, bit for bit, as one that reads it alone.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions.reading.prefill import Progress, prefill, shifted
from mlx_deltamem.sessions.reading.together import memory_is_empty
from mlx_deltamem.sessions.text.segments import Segments, start_length
from mlx_deltamem.sessions.turns.drift import Drift, KeepGateMeans
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn

# The most starts that are kept, and the most tokens of all of them.
_MOST, _MOST_TOKENS = 4, 16_384


@dataclass(frozen=True)
class _Kept:
    """A start that has been read.

    Attributes:
        cache: The prompt cache after it.
        kept: By layer, the mean keep gate of its tokens, as `KeepGateMeans.means` returns it.
    """

    cache: PromptCache
    kept: dict[int, float]


class Starts:
    """The visible starts that a model has read lately, for new chats that begin with the same tokens.

    The adapter and the backbone must not change in the meantime.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[tuple[int, ...], tuple[bool, ...]], _Kept] = OrderedDict()

    def read(
        self,
        model: nn.Module,
        cache: PromptCache,
        start: Segments,
        written: Sequence[bool],
        step: int = DEFAULT_PREFILL_STEP_SIZE,
        progress: Progress | None = None,
    ) -> dict[int, float]:
        """As `read_start`, or copy what has been read for another chat."""
        key = tuple(start.ids), tuple(written)
        if key in self._kept:
            self._kept.move_to_end(key)
            # Copied arrays share their numbers until one side writes.
            cache[:] = copy.deepcopy(self._kept[key].cache)
            return self._kept[key].kept
        kept = read_start(model, cache, start, written, step, progress)
        if len(start.ids) <= _MOST_TOKENS:
            self._kept[key] = _Kept(copy.deepcopy(cache), kept)
            while len(self._kept) > _MOST or sum(len(ids) for ids, _ in self._kept) > _MOST_TOKENS:
                self._kept.popitem(last=False)
        return kept


def read_start(
    model: nn.Module,
    cache: PromptCache,
    start: Segments,
    written: Sequence[bool],
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
) -> dict[int, float]:
    """Read the visible start of a new chat.

    Args:
        model: An attached model.
        cache: A new prompt cache of it.
        start: The tokens of the start.
        written: For each token, whether it is written.
        step: The largest number of tokens in one call of the model.
        progress: Called as the start is read.

    Returns:
        By layer, the mean keep gate of the tokens that are written; empty if none is.
    """
    with observing(model, gates := KeepGateMeans()):
        prefill(model, cache, start, written, step, progress, want_logits=False)
    return gates.means()


def new_start(state: ChatState, turn: Turn) -> int:
    """The number of tokens at the beginning of a turn's opening that are the start of a new chat; else 0.

    An adapter that writes means sees each message as a whole, so its openings are not divided.
    """
    if state.turns or not state.writes_tokens or not memory_is_empty(state.states):
        return 0
    return start_length(turn.opening)


def read_new_start(
    state: ChatState,
    turn: Turn,
    cache: PromptCache,
    starts: Starts | None = None,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
) -> tuple[int, Drift | None]:
    """Read the visible start of a new chat. In a chat that goes on, nothing is read.

    Args:
        state: The chat.
        turn: The turn that is begun.
        cache: The prompt cache that the turn is read into.
        starts: Keeps the visible starts of new chats; None: they are read each time.
        step: The largest number of tokens in one call of the model.
        progress: Called as the start is read, with the number of tokens of the whole opening.

    Returns:
        The number of tokens that were read, and their drift; 0 and None if there are none.
    """
    length = new_start(state, turn)
    if not length:
        return 0, None
    start, written = turn.part_of_opening(slice(0, length))
    within = progress and shifted(progress, 0, len(turn.opening.ids))
    read = read_start if starts is None else starts.read
    return length, state.drift_so_far(read(state.model, cache, start, written, step, within))
