"""Read the messages of turns of several chats in one pass, as `running.begin` does for one chat."""

from collections.abc import Sequence

from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions import running
from mlx_deltamem.sessions.drift import KeepGateMeans
from mlx_deltamem.sessions.fitting import check_fits
from mlx_deltamem.sessions.starts import Starts, read_new_start
from mlx_deltamem.sessions.state import ChatState
from mlx_deltamem.sessions.together import can_run_together, run_together
from mlx_deltamem.sessions.turn import Turn, said_turns


def can_begin_together(state: ChatState, turn: Turn, longest: int) -> bool:
    """Whether `begin_together` can read the messages of a turn.

    Args:
        state: The chat. New prompt caches of its model can be merged.
        turn: The turn.
        longest: The largest number of tokens of the messages.
    """
    # If the text that is kept has to run again, there is no cache yet.
    is_ready = state.cache is not None or not state.keeps_text or not said_turns(state.turns, turn.conversation)
    is_mergeable = state.cache is None or can_run_together(state.cache)
    return is_ready and is_mergeable and state.writes_tokens and len(turn.opening.ids) <= longest


def begin_together(asked: Sequence[tuple[ChatState, Turn]], starts: Starts, whole: bool = True) -> list[Turn]:
    """Read the messages of turns of several chats with one model in one pass, as `running.begin` does for one.

    Args:
        asked: Chats, each with a turn that `can_begin_together`.
        starts: Keeps the visible starts of new chats.
        whole: As for `running.begin`.

    Returns:
        The turns, as `running.begin` returns them.

    Raises:
        ValueError: Messages do not fit into the model's window.
    """
    for state, turn in asked:
        check_fits(state, turn)
    states, model = [state for state, _ in asked], asked[0][0].model
    ready = [running.placed(state, turn) for state, turn in asked]
    read = [read_new_start(state, *each, starts) for state, each in zip(states, ready, strict=True)]
    end = None if whole else -1
    rests = [turn.part_of_opening(slice(start, end)) for (turn, _), (start, _) in zip(ready, read, strict=True)]
    with observing(model, gates := KeepGateMeans()):
        logits = run_together(
            model,
            [cache for _, cache in ready],
            [rest.ids for rest, _ in rests],
            [written for _, written in rests],
            want_logits=whole,
        )
    return [
        running.begun(state, turn, None if logits is None else logits[row : row + 1], gates.means(row), of_start)
        for row, (state, (turn, _), (_, of_start)) in enumerate(zip(states, ready, read, strict=True))
    ]
