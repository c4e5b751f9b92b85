"""The earlier text that is read again before a turn, in chats that do not keep their whole text in view."""

from collections.abc import Sequence

from mlx_deltamem.sessions.history import History
from mlx_deltamem.sessions.read import start_length
from mlx_deltamem.sessions.template import Segments
from mlx_deltamem.sessions.turn import NO_SEGMENTS, Turn


def seen_before(turn: Turn, earlier: Sequence[Turn], history: History) -> Segments:
    """The tokens that are read anew before a turn: the visible start, and the last tokens of the text.

    The first turn has the start in its own messages. Tool results see the turns that they belong to.

    Args:
        turn: The turn.
        earlier: All turns before it; those that were remembered are no text.
        history: `none` or a number of tokens.
    """
    said = [each for each in earlier if not each.remembered]
    if not said:
        return NO_SEGMENTS
    opening = said[0].opening.ids
    start = opening[: start_length(said[0].opening)]
    wanted = max(history if isinstance(history, int) else 0, _tokens_of_tool_loop(said, turn))
    ids = [*start, *_last_tokens(said, wanted, len(start))]
    return Segments(ids, [-1] * len(ids), [-1] * len(ids))


def _last_tokens(said: Sequence[Turn], wanted: int, start: int) -> list[int]:
    """The last tokens of some turns, the visible start left out, which is the first `start` tokens of the first."""
    parts: list[list[int]] = []
    missing = wanted
    for index in range(len(said) - 1, -1, -1):
        if missing <= 0:
            break
        ids = said[index].segments.ids[0 if index else start :]
        parts.append(ids[max(0, len(ids) - missing) :])
        missing -= len(ids)
    return [token for ids in reversed(parts) for token in ids]


def _tokens_of_tool_loop(said: Sequence[Turn], turn: Turn) -> int:
    """How many tokens the turns have that a turn's tool results belong to; 0 where it has none."""
    tokens = 0
    for earlier in reversed(said):
        if turn.messages[0]["role"] != "tool":
            break
        tokens, turn = tokens + earlier.length, earlier
    return tokens
