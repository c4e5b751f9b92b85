"""Take turns and replies of a chat back, exactly."""

from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.turns.state import ChatState


def return_to_reply(state: ChatState, index: int) -> bool:
    """Take the reply of turn `index`, and all later turns, back.

    Returns:
        False if that is not possible without running tokens again; the chat is then unchanged.
    """
    turn = state.turns[index]
    state.enter(turn.conversation)
    # With another history than `full`, the cache is that of the last turn. A file does not keep the drift of a turn
    # whose memory was not finite: it is measured again.
    is_known = not turn.remembered and turn.drift is not None
    reachable = is_known and (state.keeps_text or index == len(state.turns) - 1)
    if not reachable or not state.go_to(turn.between):
        return False
    state.take_off(index)
    return True


def return_to(state: ChatState, index: int) -> None:
    """Take turn `index` and all later turns back."""
    turns, conversation = state.turns, state.conversation
    # A session file does not keep all places. The turns after the nearest one that was kept are run again.
    kept = next(i for i in range(index, -1, -1) if i == 0 or turns[i].before is not None)
    place = turns[kept].before
    state.enter(turns[kept].conversation)
    state.take_off(kept)
    state.states = state.no_memory() if place is None else list(place.states)
    if place is None or not (state.keeps_text and state.go_to(place)):
        state.cache = None
    for turn in turns[kept:index]:
        running.run_again(state, turn)
    if kept < index and state.starts:
        # The turns were read with the visible start that they began with.
        state.drop_caches()
    state.enter(conversation)
