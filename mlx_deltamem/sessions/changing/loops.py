"""Tool loops: the turns that a user sees as one, because the later ones answer the tool calls of the first one.

A chat runs such a loop in several turns: a message and a reply that calls tools, then the results and the next reply.
"""

from collections.abc import Sequence

from mlx_deltamem.sessions.changing.going_back import return_to
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.turns.drift import changes, joined_drift
from mlx_deltamem.sessions.turns.restore import States
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn


def tool_loops(turns: Sequence[Turn]) -> list[tuple[int, ...]]:
    """Group turns: each turn with the later ones of its conversation that bring results of tools.

    Args:
        turns: All turns of a chat.

    Returns:
        The indices of the turns of each group, in order. The groups are in the order of their last turns, because
        turns of other conversations may be between the turns of a loop.
    """
    open_loops: dict[str, list[int]] = {}
    groups: list[list[int]] = []
    for index, turn in enumerate(turns):
        loop = open_loops.get(turn.conversation)
        if turn.remembered:
            groups.append([index])
        elif loop is not None and turn.messages[0]["role"] == "tool":
            loop.append(index)
        else:
            open_loops[turn.conversation] = [index]
            groups.append(open_loops[turn.conversation])
    return sorted(map(tuple, groups), key=lambda group: group[-1])


def loop_messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages and replies of the turns of a loop, in OpenAI's form. A remembered text has no reply."""
    messages: list[Message] = []
    for turn in turns:
        messages += turn.messages
        if not turn.remembered:
            reply: Message = {"role": "assistant", "content": turn.reply}
            messages.append({**reply, "tool_calls": list(turn.tool_calls)} if turn.tool_calls else reply)
    return tuple(messages)


def loop_changes(state: ChatState, group: Sequence[int]) -> dict[int, float]:
    """The change of the memory by the turns of a loop, by layer index, as in `Drift.changed`.

    It is empty if it is not known: if turns of other conversations are between them, or if the chat comes from a
    session file, which does not keep the memory before each turn.

    Args:
        state: The chat.
        group: The indices of the turns.
    """
    first, last = group[0], group[-1]
    if first == last:
        drift = state.turns[first].drift
        return {} if drift is None else dict(drift.changed)
    before, after = _states_before(state, first), _states_before(state, last + 1)
    if before is None or after is None or last - first >= len(group):
        return {}
    return changes(before, after)


def loop_kept(turns: Sequence[Turn]) -> dict[int, float]:
    """The mean keep gate of the turns of a loop, by layer index, as in `Drift.kept`. It is empty if it is not known."""
    weights = [sum(turn.opening_written) for turn in turns]
    if not sum(weights):
        weights = [1] * len(turns)
    drifts = [turn.drift for turn in turns]
    return {} if None in drifts else joined_drift(*zip(drifts, weights, strict=True)).kept


def _states_before(state: ChatState, index: int) -> States | None:
    if index == len(state.turns):
        return state.states
    place = state.turns[index].before
    return None if place is None else place.states


def later_turns(turns: Sequence[Turn], dropped: Sequence[int]) -> list[Turn]:
    """The turns that have to run again when others are taken back.

    Args:
        turns: All turns of a chat.
        dropped: The indices of the turns that are taken back.
    """
    return [turn for index, turn in enumerate(turns) if index > min(dropped) and index not in dropped]


def take_back(state: ChatState, dropped: Sequence[int]) -> None:
    """Take turns back exactly, and run again the later turns that stay. The conversation that goes on stays.

    Args:
        state: The chat.
        dropped: The indices of the turns that are taken back.
    """
    conversation, others = state.conversation, later_turns(state.turns, dropped)
    with state.under_way():
        return_to(state, min(dropped))
        for turn in others:
            running.run_again(state, turn)
        state.enter(conversation)
