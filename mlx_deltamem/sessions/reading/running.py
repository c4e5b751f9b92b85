"""Run the turns of a chat: read their messages, finish them after the reply, and run them again.

`read` in these descriptions means: run through the model. Whether tokens are also written into the memory depends on
the turn (`Turn.write`).

To read a turn, the text that it sees may first have to run again, which is to run earlier turns. So all of this is one
module.
"""

from dataclasses import replace

import mlx.core as mx
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.core.spread import whole_states
from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions.reading.fitting import check_fits
from mlx_deltamem.sessions.reading.prefill import Progress, prefill, shifted
from mlx_deltamem.sessions.reading.remembering import remember
from mlx_deltamem.sessions.reading.starts import Starts, read_new_start
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS, Segments, joined, part, start_length
from mlx_deltamem.sessions.turns.drift import Drift, KeepGateMeans, joined_drift
from mlx_deltamem.sessions.turns.restore import RestorePoint, States, mark
from mlx_deltamem.sessions.turns.seen import seen_before
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn, said_turns


def begin(
    state: ChatState,
    turn: Turn,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
    starts: Starts | None = None,
    whole: bool = True,
) -> Turn:
    """Read the messages of a turn.

    Args:
        state: The chat.
        turn: The turn.
        step: The largest number of tokens in one call of the model.
        progress: Called as the messages are read.
        starts: Keeps the visible starts of new chats; None: they are read each time.
        whole: Whether the last token runs too. If not, `opened` follows when it has run.

    Returns:
        The turn with the places before its messages and before its reply, the logits, and a drift in which `changed`
        is empty. If not `whole`, the place before the reply and the logits are missing.

    Raises:
        ValueError: The messages do not fit into the model's window.
    """
    check_fits(state, turn)
    turn, cache = placed(state, turn, step)
    start, of_start = read_new_start(state, turn, cache, starts, step, progress)
    rest, written = turn.part_of_opening(slice(start, None if whole else -1))
    with observing(state.model, gates := KeepGateMeans()):
        within = progress and shifted(progress, start, len(turn.opening.ids))
        logits = None
        if whole:
            logits = prefill(state.model, cache, rest, written, step, within)
        elif rest.ids:
            prefill(state.model, cache, rest, written, step, within, want_logits=False)
    return begun(state, turn, logits, gates.means(), of_start)


def placed(state: ChatState, turn: Turn, step: int = DEFAULT_PREFILL_STEP_SIZE) -> tuple[Turn, PromptCache]:
    """The turn with the place before it, and a cache in which the text that it sees has been read."""
    cache = state.cache if state.keeps_text else None
    if cache is None:
        cache = _run_all(state) if state.keeps_text else make_prompt_cache(state.model)
        cache[-1].cache = list(state.states)
    state.cache = cache
    turn = state.with_place(turn)
    state.begun_at = turn.before
    start = state.starts.get(turn.conversation)
    seen = NO_SEGMENTS if state.keeps_text else seen_before(turn, state.turns, state.history, start)
    if seen.ids:
        prefill(state.model, cache, seen, False, step, want_logits=False)
    return turn, cache


def begun(
    state: ChatState, turn: Turn, logits: mx.array | None, kept: dict[int, float], of_start: Drift | None
) -> Turn:
    """A turn whose messages have just been read, as `begin` returns it.

    Args:
        state: The chat.
        turn: The turn, with the place before its messages.
        logits: The logits after its messages, `[1, V]`; None: their last token has not run.
        kept: The mean keep gates of its tokens, without those of a visible start that was read before.
        of_start: The drift of that start; None if there is none.
    """
    drift = state.drift_so_far(kept)
    if of_start is not None:
        start, written = start_length(turn.opening), turn.opening_written
        end = None if logits is not None else -1
        drift = joined_drift((of_start, sum(written[:start])), (drift, sum(written[start:end])))
    return replace(turn, between=None if logits is None else state.here(), logits=logits, drift=drift)


def opened(state: ChatState, turn: Turn, after: States, kept: dict[int, float]) -> Turn:
    """A turn whose messages were read without their last token, now that this token has run in another prompt cache.

    Args:
        state: The chat. The entries of its prompt cache can be cut.
        turn: The turn, as from `begin` with `whole=False`.
        after: The memory after the last token.
        kept: The keep gates of that token.
    """
    before = mark(state.filled_cache)
    offsets = [None if offset is None else offset + 1 for offset in before.offsets]
    between = RestorePoint(whole_states(state.model, after), replace(before, offsets=offsets))
    *earlier, last = turn.opening_written
    drift = joined_drift((turn.drift, sum(earlier)), (state.drift_so_far(kept), int(last)))
    return replace(turn, between=between, drift=drift)


def open_again(state: ChatState, turn: Turn) -> Turn:
    """Run the last token of the messages of a turn in the chat's own prompt cache, which does not hold it.

    Args:
        state: The chat.
        turn: The turn, as from `begin` with `whole=False`, or from `opened`.

    Returns:
        The turn as from `begin`.
    """
    last, written = turn.part_of_opening(slice(-1, None))
    with observing(state.model, gates := KeepGateMeans()):
        logits = prefill(state.model, state.filled_cache, last, written)
    if turn.between is None:
        turn = opened(state, turn, list(state.filled_cache[-1].cache), gates.means())
    return replace(turn, between=state.here(), logits=logits)


def finish(state: ChatState, turn: Turn, reply: Segments | None = None, ending: Segments | None = None) -> None:
    """Run the rest of a turn and add the turn to the chat.

    Args:
        state: The chat, in which the turn was begun.
        turn: The turn, with its reply and ending.
        reply: The tokens of the reply that have not run yet; None: all have run.
        ending: The tokens of the ending that have not run yet; None: none has run.
    """
    if turn.is_written_when_ended:
        _write_ended(state, turn)
        return
    cache = state.filled_cache
    parts = [reply or NO_SEGMENTS, turn.ending if ending is None else ending]
    # A pass of several spans would not write the tokens of the reply, which are in no span.
    for segments in [joined(parts)] if state.writes_tokens else parts:
        if segments.ids:
            prefill(state.model, cache, segments, turn.reply_written, want_logits=False)
    state.add(turn, list(cache[-1].cache))


def run_again(state: ChatState, turn: Turn) -> None:
    """Run a turn with the reply that it has, after the turns that the chat has now, and add it to the chat."""
    state.enter(turn.conversation)
    if turn.memory_set and turn.before is not None:
        state.set_memory(turn.before.states)
    if turn.remembered:
        remember(state, turn)
    elif turn.is_written_when_ended:
        check_fits(state, turn)
        _write_ended(state, placed(state, turn)[0])
    else:
        finish_again(state, begin(state, turn))


def finish_again(state: ChatState, turn: Turn) -> None:
    """Run the reply of a turn whose messages have just been read, and add the turn to the chat."""
    finish(state, turn, reply=Segments.without_spans(turn.reply_ids))


def run_reply_again(state: ChatState, turn: Turn) -> None:
    """Take a turn that was begun back to the beginning of its reply, run its reply again, and add the turn."""
    state.go_to(turn.between, exactly=False)
    finish_again(state, turn)


def _write_ended(state: ChatState, turn: Turn) -> None:
    """Write a whole turn as one text, and add it to the chat. It may have been read before, without writing."""
    if not (state.keeps_text and state.go_to(turn.before, exactly=False)):
        state.cache = None
        turn, _ = placed(state, turn)
    cache = state.filled_cache
    with observing(state.model, gates := KeepGateMeans()):
        prefill(state.model, cache, turn.segments, want_logits=False)
    # The place before the reply is gone: the cache holds the text as it was written.
    state.add(replace(turn, between=None, logits=None, drift=state.drift_so_far(gates.means())), list(cache[-1].cache))


def _run_all(state: ChatState) -> PromptCache:
    """Make a cache with the text of the conversation that goes on. The memory is not changed: it is known.

    The turns of other conversations only run where the memory after them is not known.
    """
    turns, states, memory_set = state.turns, state.states, state.memory_set
    state.cache = make_prompt_cache(state.model)
    conversation = state.conversation

    def is_seen(turn: Turn) -> bool:
        return not turn.remembered and turn.conversation == conversation

    seen = [index for index, turn in enumerate(turns) if is_seen(turn)]
    if not seen:
        return state.cache
    with state.all_or_nothing():
        first = next(index for index in range(seen[0], -1, -1) if index == 0 or turns[index].before is not None)
        state.turns = turns[:first]
        _know_memory(state, turns[first].before or RestorePoint(state.no_memory(), None))
        state.memory_set = False
        for index in range(first, seen[-1] + 1):
            turn = turns[index]
            after = turns[index + 1].before if index + 1 < len(turns) else RestorePoint(states, None)
            if not is_seen(turn) and after is not None:
                # Its text is not seen, so nothing has to run. The memory before it is kept, so that nothing has to run
                # for it again: each turn could otherwise run all others that come before it.
                state.turns.append(replace(turn, before=turn.before or RestorePoint(list(state.states), None)))
            else:
                run_again(state, _with_start(state, turn))
                again = state.turns[-1]
                state.turns[-1] = replace(again, opening=turn.opening, drift=turn.drift or again.drift)
            if after is not None:
                # The next turn is read with the known memory. The cache may hold another one: a remembered text did
                # not run, and a turn may have run with another history before.
                _know_memory(state, after)
        state.turns += turns[seen[-1] + 1 :]
        state.states, state.memory_set = states, memory_set
    return state.filled_cache


def _know_memory(state: ChatState, place: RestorePoint) -> None:
    state.states = list(place.states)
    state.filled_cache[-1].cache = list(place.states)


def _with_start(state: ChatState, turn: Turn) -> Turn:
    """The turn, with the visible start that its conversation sees now if it is the first turn."""
    start = state.starts.get(turn.conversation)
    if start is None or turn.remembered or said_turns(state.turns, turn.conversation):
        return turn
    rest = part(turn.opening, slice(start_length(turn.opening), None))
    return replace(turn, opening=joined([Segments.without_spans(start), rest]))
