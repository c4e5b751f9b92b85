"""The text of earlier turns that is seen before a turn. A chat without its whole text reads it again."""

from collections.abc import Sequence

from mlx_deltamem.sessions.text.segments import NO_SEGMENTS, Segments, start_length
from mlx_deltamem.sessions.turns.history import History
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn, said_turns


def seen_before(turn: Turn, earlier: Sequence[Turn], history: History, start: Sequence[int] | None = None) -> Segments:
    """The tokens of earlier turns that are read again before a turn, in a chat that does not keep its whole text.

    These are the visible start and the last tokens of the text. The first turn has the visible start in its opening,
    so nothing is read before it. Before the results of tools, the turns with the calls are read, whatever the history.

    Args:
        turn: The turn.
        earlier: All turns before it. Those that were remembered, and those of other conversations, are not part of
            the text.
        history: `none` or a number of tokens.
        start: The tokens of the visible start; None: those that the conversation began with.
    """
    said = said_turns(earlier, turn.conversation)
    if not said:
        return NO_SEGMENTS
    length = start_length(said[0].opening)
    wanted = max(history if isinstance(history, int) else 0, _tokens_of_tool_loop(said, turn))
    begun_with = said[0].opening.ids[:length] if start is None else start
    return Segments.without_spans([*begun_with, *_last_tokens(said, wanted, length)])


def seen_tokens(state: ChatState, turn: Turn, earlier: Sequence[Turn]) -> int:
    """The number of tokens that are seen before a turn, whatever the history, the visible start among them.

    Args:
        state: The chat.
        turn: The turn. The first one of a conversation has the visible start in its opening.
        earlier: All turns before it.
    """
    if not said_turns(earlier, turn.conversation):
        return 0
    return _start_tokens(state, turn, earlier) + seen_text(state, turn, earlier)


def seen_text(state: ChatState, turn: Turn, earlier: Sequence[Turn]) -> int:
    """As `seen_tokens`, without the visible start."""
    said = said_turns(earlier, turn.conversation)
    if not said:
        return 0
    if state.keeps_text:
        return sum(each.length for each in said) - start_length(said[0].opening)
    seen = seen_before(turn, earlier, state.history, state.starts.get(turn.conversation))
    return len(seen.ids) - _start_tokens(state, turn, earlier)


def read_tokens(state: ChatState, turn: Turn) -> int:
    """The number of tokens that are seen before a new turn and run for it: 0 if the cache has the text of the chat."""
    return 0 if state.has_text else seen_tokens(state, turn, state.turns)


def _start_tokens(state: ChatState, turn: Turn, earlier: Sequence[Turn]) -> int:
    """The number of tokens of the visible start that a conversation with earlier turns sees now."""
    start = state.starts.get(turn.conversation)
    return start_length(said_turns(earlier, turn.conversation)[0].opening) if start is None else len(start)


def _last_tokens(said: Sequence[Turn], wanted: int, start: int) -> list[int]:
    """The last `wanted` tokens of some turns, without the visible start: the first `start` tokens of the first turn."""
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
    """The number of tokens in the turns that a turn's tool results answer; 0 if it has no tool results."""
    tokens = 0
    for earlier in reversed(said):
        if turn.messages[0]["role"] != "tool":
            break
        tokens, turn = tokens + earlier.length, earlier
    return tokens
