"""Change a message of a chat, and run again what follows from it."""

from dataclasses import replace

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.changing.going_back import return_to, return_to_reply
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.reading.fitting import check_fits_with_reply
from mlx_deltamem.sessions.text.messages import said_messages, system_prompt
from mlx_deltamem.sessions.text.segments import Segments, is_beginning, part, start_length
from mlx_deltamem.sessions.text.token_ids import token_ids
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import said_turns


def edit_message(state: ChatState, tokenizer: TokenizerWrapper, index: int, text: str) -> None:
    """Change a message and run again what follows from it. A memory that was set after the last turn stays.

    Args:
        state: The chat.
        tokenizer: The model's tokenizer.
        index: The place of the message in `ChatText.messages`. It may be negative, as for a list.
        text: The new content.

    Raises:
        ValueError: There is no such message, or the text is empty, does not fit into the model's window, or is refused
            by the template. The chat is unchanged.
    """
    place = state.text.place_of(state.turns, index)
    text = system_prompt(text) if place is None else said_messages(text)[0]["content"]
    set_memory = state.states if state.memory_set else None
    with state.all_or_nothing():
        if place is None:
            _edit_system(state, text)
        else:
            _edit_turn(state, tokenizer, place, text)
    if set_memory is not None:
        state.set_memory(set_memory)


def _edit_system(state: ChatState, text: str) -> None:
    """Change the system prompt, and run again all turns: all of them were read with it."""
    turns, conversation = state.turns, state.conversation
    before = state.text
    state.system, state.starts = text, {}
    if turns:
        return_to(state, 0)
    for turn in turns:
        opening = turn.opening
        state.enter(turn.conversation)
        if turn.remembered:
            opening = _as_far_as(turn.opening, before.remembered(turn.messages), state.text.remembered(turn.messages))
        elif not said_turns(state.turns, turn.conversation):
            # Only the first opening of a conversation begins with the visible start.
            opening = state.text.opening(state.turns, turn.messages)
        running.run_again(state, replace(turn, opening=opening))
    state.enter(conversation)


def _as_far_as(read: Segments, whole: Segments, again: Segments) -> Segments:
    """The part of a text to remember that was read, behind another visible start.

    Args:
        read: The tokens of the text that were read: a part of it, if the user has interrupted it.
        whole: All tokens of the text, behind the start that it had.
        again: All tokens of the text, behind the start that it has now.
    """
    text, whole_text = (part(each, slice(start_length(each), None)) for each in (read, whole))
    if not is_beginning(text, whole_text):
        return again
    return part(again, slice(0, start_length(again) + len(text.ids)))


def _edit_turn(state: ChatState, tokenizer: TokenizerWrapper, place: tuple[int, int], text: str) -> None:
    """Change a message, and run again the rest of its turn and the later turns. All replies stay as they are.

    Args:
        state: The chat.
        tokenizer: The model's tokenizer.
        place: The message, as from `ChatText.place_of`.
        text: The new content.
    """
    index, inner = place
    turn, *later = state.turns[index:]
    if inner == len(turn.messages):
        reply_ids = tuple(token_ids(tokenizer, text))
        changed = replace(turn, reply=text, reply_ids=reply_ids, tool_calls=())
        check_fits_with_reply(state, index, changed)
        if return_to_reply(state, index):
            running.finish_again(state, changed)
        else:
            return_to(state, index)
            running.run_again(state, changed)
    else:
        return_to(state, index)
        message = turn.messages[inner].copy()
        message["content"] = text
        messages = (*turn.messages[:inner], message, *turn.messages[inner + 1 :])
        opening = state.text.opening(state.turns, messages)
        running.run_again(state, replace(turn, messages=messages, opening=opening))
    for each in later:
        running.run_again(state, each)
    state.enter(turn.conversation)
