"""Remember a text: write it into the memory of a chat, whose text it does not become part of."""

from dataclasses import replace

from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE

from mlx_deltamem.core.use import is_writing, observing
from mlx_deltamem.sessions.reading.prefill import Borders, Progress, stretch_ends, write_text
from mlx_deltamem.sessions.text.messages import GivenMessages, parse_messages
from mlx_deltamem.sessions.text.segments import is_beginning, part
from mlx_deltamem.sessions.turns.drift import Drift, KeepGateMeans, joined_drift
from mlx_deltamem.sessions.turns.restore import States
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn
from mlx_deltamem.sessions.turns.writing import parse_remembered_write


def turn_to_remember(state: ChatState, text: GivenMessages, write: str) -> Turn:
    """The turn of a text that is to be remembered. The chat is not changed, and nothing runs.

    Args:
        state: The chat.
        text: A text, which becomes a message of the user; or messages in OpenAI's form.
        write: The messages that are written: `all`, `user` or `assistant`.

    Raises:
        ValueError: The text is empty or refused by the chat template, `write` is another one, or the model is read
            only.
    """
    if not is_writing(state.model):
        raise ValueError("nothing can be remembered while the model is read only; leave read_only(model) for it")
    write = parse_remembered_write(write)
    messages = parse_messages(text)
    return Turn(messages, state.text.remembered(messages), write, state.conversation, remembered=True)


def remember(
    state: ChatState,
    turn: Turn,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
    keep_read: bool = False,
) -> bool:
    """Write a text into the memory, and add it as a turn without a reply. The text that the model sees is unchanged.

    If the last turn is the beginning of this text, the text goes on there, and the turn is replaced.

    Args:
        state: The chat.
        turn: The turn.
        step, progress: As in `write_text`.
        keep_read: What to do after a KeyboardInterrupt: True adds a turn with the stretches that have been read, if
            there are any; False raises it.

    Returns:
        Whether the whole text was read.
    """
    state.enter(turn.conversation)
    begun = _begun(state, turn)
    read: tuple[int, States, Drift] | None = None
    done = 0 if begun is None else len(begun.opening.ids)
    turn = state.with_place(turn) if begun is None else replace(turn, before=begun.before, memory_set=begun.memory_set)
    gates = KeepGateMeans()

    def goes_on(done: int, total: int) -> None:
        gates.evaluate()
        if progress is not None:
            progress(done, total)

    def reached(end: int, states: States) -> None:
        nonlocal read
        read = end, states, state.drift_so_far(gates.means())

    flags = turn.opening_written
    with observing(state.model, gates):
        try:
            borders = Borders(reached, done)
            states = write_text(state.model, state.states, turn.opening, flags, None, step, goes_on, borders)
            end, drift = len(flags), state.drift_so_far(gates.means())
        except KeyboardInterrupt:
            if not keep_read or read is None:
                raise
            end, states, drift = read
    if begun is not None:
        drift = joined_drift((begun.drift, sum(flags[:done])), (drift, sum(flags[done:end])))
        state.turns.pop()
    opening = turn.opening if end == len(flags) else part(turn.opening, slice(0, end))
    state.add(replace(turn, opening=opening, drift=drift), states)
    if state.cache is not None:
        state.cache[-1].cache = list(states)
    return end == len(flags)


def _begun(state: ChatState, turn: Turn) -> Turn | None:
    """The last turn of the chat if it is the beginning of a text to remember that was interrupted; else None."""
    last = state.turns[-1] if state.turns else None
    if last is None or not last.remembered or last.before is None or state.memory_set:
        return None
    same = (last.messages, last.write, last.conversation) == (turn.messages, turn.write, turn.conversation)
    if not same or not is_beginning(last.opening, turn.opening):
        return None
    return last if len(last.opening.ids) in stretch_ends(state.model, turn.opening) else None
