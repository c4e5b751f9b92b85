"""Run the turns of a chat: for the first time, again after a change, and back.

`read` in these descriptions means: run through the model. Whether tokens are also written into the memory depends on
the turn (`Turn.write`).
"""

from collections.abc import Sequence
from dataclasses import replace

from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.core.spread import whole_numbers
from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions.drift import Drift, KeepGateMeans, joined_drift
from mlx_deltamem.sessions.prefill import Borders, Progress, prefill, shifted, stretch_ends, window, write_text
from mlx_deltamem.sessions.restore import RestorePoint, States, mark
from mlx_deltamem.sessions.seen import seen_before
from mlx_deltamem.sessions.segments import NO_SEGMENTS, Segments, joined, part, start_length
from mlx_deltamem.sessions.starts import Starts, new_start, read_start
from mlx_deltamem.sessions.state import ChatState
from mlx_deltamem.sessions.together import can_run_together, run_together
from mlx_deltamem.sessions.turn import Turn, said_turns


def check_fits(state: ChatState, turn: Turn) -> None:
    """Check that a turn's messages, and the text that is seen before them, fit into the model's window.

    Raises:
        ValueError: They do not.
    """
    _check_fits(state, "message", len(turn.opening.ids), turn, state.turns)


def check_fits_edited(state: ChatState, index: int, turn: Turn) -> None:
    """Check that turn `index` with another reply, and the text that is seen before it, fit into the model's window.

    Raises:
        ValueError: They do not.
    """
    _check_fits(state, "message with its reply", turn.length, turn, state.turns[:index])


def begin(
    state: ChatState,
    turn: Turn,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
    starts: Starts | None = None,
) -> Turn:
    """Read the messages of a turn.

    Args:
        state: The chat.
        turn: The turn.
        step: The largest number of tokens in one call of the model.
        progress: Called as the messages are read.
        starts: Keeps the visible starts of new chats; None: they are read each time.

    Returns:
        The turn with the places before its messages and before its reply, the logits, and a drift in which `changed`
        is empty.

    Raises:
        ValueError: The messages do not fit into the model's window.
    """
    check_fits(state, turn)
    turn, cache = _placed(state, turn, step)
    start, of_start = _read_start(state, turn, cache, starts, step, progress)
    rest, written = _opening(turn, slice(start, None))
    with observing(state.model, gates := KeepGateMeans()):
        within = progress and shifted(progress, start, len(turn.opening.ids))
        logits = prefill(state.model, cache, rest, written, step, within)
    return replace(turn, between=state.here(), logits=logits, drift=_of_opening(state, turn, gates.means(), of_start))


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


def begin_together(begun: Sequence[tuple[ChatState, Turn]], starts: Starts) -> list[Turn]:
    """Read the messages of turns of several chats with one model in one pass, as `begin` does for one.

    Args:
        begun: Chats, each with a turn that `can_begin_together`.
        starts: Keeps the visible starts of new chats.

    Returns:
        The turns, as `begin` returns them.

    Raises:
        ValueError: Messages do not fit into the model's window.
    """
    for state, turn in begun:
        check_fits(state, turn)
    states, model = [state for state, _ in begun], begun[0][0].model
    placed = [_placed(state, turn) for state, turn in begun]
    read = [_read_start(state, *each, starts) for state, each in zip(states, placed, strict=True)]
    openings = [_opening(turn, slice(start, None)) for (turn, _), (start, _) in zip(placed, read, strict=True)]
    with observing(model, gates := KeepGateMeans()):
        logits = run_together(
            model,
            [cache for _, cache in placed],
            [opening.ids for opening, _ in openings],
            [written for _, written in openings],
        )
    return [
        replace(
            turn,
            between=state.here(),
            logits=logits[row : row + 1],
            drift=_of_opening(state, turn, gates.means(row), of_start),
        )
        for row, (state, (turn, _), (_, of_start)) in enumerate(zip(states, placed, read, strict=True))
    ]


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
    turn = (
        _with_place(state, turn) if begun is None else replace(turn, before=begun.before, memory_set=begun.memory_set)
    )
    gates = KeepGateMeans()

    def goes_on(done: int, total: int) -> None:
        gates.evaluate()
        if progress is not None:
            progress(done, total)

    def reached(end: int, states: States) -> None:
        nonlocal read
        read = end, states, _drift(state, gates.means())

    flags = turn.opening_written
    with observing(state.model, gates):
        try:
            borders = Borders(reached, done)
            states = write_text(state.model, state.states, turn.opening, flags, None, step, goes_on, borders)
            end, drift = len(flags), _drift(state, gates.means())
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
    count = len(last.opening.ids)
    is_beginning = count < len(turn.opening.ids) and last.opening.ids == turn.opening.ids[:count]
    return last if same and is_beginning and count in stretch_ends(state.model, turn.opening) else None


def run_again(state: ChatState, turn: Turn) -> None:
    """Run a turn with the reply that it has, after the turns that the chat has now, and add it to the chat."""
    state.enter(turn.conversation)
    if turn.memory_set and turn.before is not None:
        state.set_memory(turn.before.states)
    if turn.remembered:
        remember(state, turn)
    elif turn.is_written_when_ended:
        check_fits(state, turn)
        _write_ended(state, _placed(state, turn)[0])
    else:
        finish_again(state, begin(state, turn))


def finish_again(state: ChatState, turn: Turn) -> None:
    """Run the reply of a turn whose messages have just been read, and add the turn to the chat."""
    finish(state, turn, reply=Segments.without_spans(turn.reply_ids))


def run_reply_again(state: ChatState, turn: Turn) -> None:
    """Take a turn that was begun back to the beginning of its reply, run its reply again, and add the turn."""
    state.go_to(turn.between)
    finish_again(state, turn)


def return_to_reply(state: ChatState, index: int) -> bool:
    """Take the reply of turn `index`, and all later turns, back.

    Returns:
        False if that is not possible without running tokens again; the chat is then unchanged.
    """
    turn = state.turns[index]
    state.enter(turn.conversation)
    # With another history than `full`, the cache is that of the last turn.
    reachable = not turn.remembered and (state.keeps_text or index == len(state.turns) - 1)
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
        run_again(state, turn)
    if kept < index and state.starts:
        # The turns were read with the visible start that they began with.
        state.drop_caches()
    state.enter(conversation)


def _check_fits(state: ChatState, what: str, tokens: int, turn: Turn, earlier: Sequence[Turn]) -> None:
    longest = window(state.model)
    if state.keeps_text:
        seen = sum(each.length for each in said_turns(earlier, turn.conversation))
    else:
        seen = len(seen_before(turn, earlier, state.history, state.starts.get(turn.conversation)).ids)
    if longest is not None and seen + tokens > longest:
        raise ValueError(
            f"the {what} is {tokens} tokens on top of {seen} in view; the model's window is {longest}: "
            "shorten it, or use a history of fewer tokens"
        )


def _placed(state: ChatState, turn: Turn, step: int = DEFAULT_PREFILL_STEP_SIZE) -> tuple[Turn, PromptCache]:
    """The turn with the place before it, and a cache in which the text that it sees has been read."""
    cache = state.cache if state.keeps_text else None
    if cache is None:
        cache = _run_all(state) if state.keeps_text else make_prompt_cache(state.model)
        cache[-1].cache = list(state.states)
    state.cache = cache
    turn = _with_place(state, turn)
    state.begun_at = turn.before
    start = state.starts.get(turn.conversation)
    seen = NO_SEGMENTS if state.keeps_text else seen_before(turn, state.turns, state.history, start)
    if seen.ids:
        prefill(state.model, cache, seen, False, step, want_logits=False)
    return turn, cache


def _read_start(
    state: ChatState,
    turn: Turn,
    cache: PromptCache,
    starts: Starts | None,
    step: int = DEFAULT_PREFILL_STEP_SIZE,
    progress: Progress | None = None,
) -> tuple[int, Drift | None]:
    """Read the visible start of a new chat.

    Returns:
        The number of its tokens, and their drift. In a chat that goes on, nothing is read.
    """
    start = new_start(state, turn)
    if not start:
        return 0, None
    within = progress and shifted(progress, 0, len(turn.opening.ids))
    read = read_start if starts is None else starts.read
    return start, _drift(state, read(state.model, cache, *_opening(turn, slice(0, start)), step, within))


def _opening(turn: Turn, where: slice) -> tuple[Segments, list[bool]]:
    """A part of a turn's opening, and for each token whether it is written."""
    return part(turn.opening, where), turn.opening_written[where]


def _with_place(state: ChatState, turn: Turn) -> Turn:
    """The turn with the present place of the chat as the place before it."""
    text = mark(state.cache) if state.cache is not None and state.keeps_text else None
    return replace(turn, before=RestorePoint(list(state.states), text), memory_set=state.memory_set)


def _write_ended(state: ChatState, turn: Turn) -> None:
    """Write a whole turn as one text, and add it to the chat. It may have been read before, without writing."""
    if not (state.keeps_text and state.go_to(turn.before)):
        state.cache = None
        turn, _ = _placed(state, turn)
    cache = state.filled_cache
    with observing(state.model, gates := KeepGateMeans()):
        prefill(state.model, cache, turn.segments, want_logits=False)
    # The place before the reply is gone: the cache holds the text as it was written.
    state.add(replace(turn, between=None, logits=None, drift=_drift(state, gates.means())), list(cache[-1].cache))


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


def _drift(state: ChatState, kept: dict[int, float]) -> Drift:
    """The drift of a turn, as far as it is known before the turn has ended, from `KeepGateMeans.means`."""
    kept_all = {layer: 1.0 for layer, array in enumerate(state.states) if array.size}
    return Drift(whole_numbers(state.model, kept) or kept_all, {})


def _of_opening(state: ChatState, turn: Turn, kept: dict[int, float], of_start: Drift | None) -> Drift:
    """The drift of a turn whose messages have been read.

    Args:
        state: The chat.
        turn: The turn.
        kept: The mean keep gates of its tokens, without those of a visible start that was read before.
        of_start: The drift of that start; None if there is none.
    """
    rest = _drift(state, kept)
    if of_start is None:
        return rest
    start, written = start_length(turn.opening), turn.opening_written
    return joined_drift((of_start, sum(written[:start])), (rest, sum(written[start:])))
