"""Run a turn of a chat: read its messages, generate the reply, and add both to the chat."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from mlx_lm.generate import GenerationResponse
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.sessions.changing.going_back import return_to, return_to_reply
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.replies.drafted_reply import DraftedReply
from mlx_deltamem.sessions.replies.reply import Reply, ReplySettings, ReplyTokens
from mlx_deltamem.sessions.replies.tool_calls import find_tool_calls
from mlx_deltamem.sessions.text.messages import ToolCall
from mlx_deltamem.sessions.text.segments import Segments, joined, part
from mlx_deltamem.sessions.turns.restore import take_back_token
from mlx_deltamem.sessions.turns.seen import seen_before
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn, said_turns


class ReplyEndedError(Exception):
    """Thrown into a reply that is to end where it is."""


def end_reply(responses: Generator[GenerationResponse, None, None]) -> None:
    """End a reply that is being generated. The turn is kept, with the reply so far.

    If several ranks hold the model, all of them must end it after the same token.
    """
    with suppress(StopIteration):
        responses.throw(ReplyEndedError)


def reply_to(
    state: ChatState, tokenizer: TokenizerWrapper, turn: Turn, settings: ReplySettings
) -> Iterator[GenerationResponse]:
    """Read the messages of a new turn and generate the reply.

    If the iterator is closed early, or by `end_reply`, the reply ends there. If an error comes, the chat is unchanged.
    In one of several ranks that hold the model, it is also unchanged after closing: that rank perhaps fails alone, and
    the end of a turn would wait for the others for good.

    Yields:
        mlx-lm's responses.
    """
    start = time.perf_counter()
    with state.turn_or_nothing():
        turn = running.begin(state, turn, settings.prefill_step_size, settings.progress)
        yield from _generate(state, tokenizer, turn, settings, time.perf_counter() - start)


def reply_again(
    state: ChatState, tokenizer: TokenizerWrapper, write: str, settings: ReplySettings
) -> Iterator[GenerationResponse]:
    """Take the last reply back and generate another one. If an error comes, the chat is unchanged.

    The last turn may be of another conversation than the one that goes on, which stays.

    Args:
        state: The chat. Its last turn has a reply.
        tokenizer: The model's tokenizer.
        write: Which part of the turn is written, one of `WRITES`.
        settings: How to generate.

    Yields:
        mlx-lm's responses.
    """
    index = len(state.turns) - 1
    last, conversation = state.turns[index], state.conversation
    with state.all_or_nothing():
        try:
            if last.logits is not None and write == last.write and return_to_reply(state, index):
                yield from _generate(state, tokenizer, last, settings, 0.0)
            else:
                return_to(state, index)
                state.enter(last.conversation)
                again = Turn(last.messages, last.opening, write, last.conversation)
                yield from reply_to(state, tokenizer, again, settings)
        finally:
            state.enter(conversation)


def _generate(
    state: ChatState, tokenizer: TokenizerWrapper, turn: Turn, settings: ReplySettings, seconds: float
) -> Iterator[GenerationResponse]:
    """Generate the reply to messages that have been read, which took `seconds`."""
    parts = state.model, tokenizer, state.filled_cache, turn, settings
    reply = Reply(*parts) if settings.draft_model is None else DraftedReply(*parts, _tokens_in_view(state, turn))
    state.replying = True
    try:
        yield from reply.stream(seconds)
        end_turn(state, tokenizer, turn, reply)
    except ReplyEndedError:
        end_turn(state, tokenizer, turn, reply)
    except GeneratorExit:
        if world_of(state.model).is_alone:
            end_turn(state, tokenizer, turn, reply)
        raise
    finally:
        state.replying = False


def _tokens_in_view(state: ChatState, turn: Turn) -> Sequence[int]:
    """The tokens of the text that a turn sees before its own messages."""
    if state.keeps_text:
        return [token for said in said_turns(state.turns, turn.conversation) for token in said.segments.ids]
    return seen_before(turn, state.turns, state.history, state.starts.get(turn.conversation)).ids


def end_turn(state: ChatState, tokenizer: TokenizerWrapper, turn: Turn, reply: ReplyTokens) -> None:
    """Run the rest of a turn after its reply, with the tokens that the template writes, and add it to the chat.

    Args:
        state: The chat.
        tokenizer: The model's tokenizer.
        turn: The turn, with its messages read.
        reply: Its reply.
    """
    turn = with_reply(state, tokenizer, turn, reply)
    if reply.end_id is None or turn.is_written_when_ended:
        unread = Segments.without_spans(reply.ids[len(reply.ids) - reply.unread :])
        running.finish(state, turn, reply=unread)
    elif (rest := tokens_after(state, turn, reply)) is not None:
        running.finish(state, turn, ending=rest)
    elif reply.states_before_last is not None and take_back_token(state.filled_cache, reply.states_before_last):
        running.finish(state, turn)
    else:
        running.run_reply_again(state, turn)


def with_reply(state: ChatState, tokenizer: TokenizerWrapper, turn: Turn, reply: ReplyTokens) -> Turn:
    """A turn with its reply, and with the tokens that the template writes after it."""
    text = reply.text
    calls: list[ToolCall] = []
    if tools := state.template.tools:
        # Special tokens may mark the calls. The text of the reply does not have them.
        # A call without an id gets a random one, which must be the same in all ranks.
        found = find_tool_calls(tokenizer, text if reply.is_stopped else reply.ids, tools)
        text, calls = world_of(state.model).share(found)
    ending = state.text.ending(state.turns, turn.messages, text)
    return replace(turn, reply=text, reply_ids=tuple(reply.ids), tool_calls=tuple(calls), ending=ending)


def tokens_after(state: ChatState, turn: Turn, reply: ReplyTokens) -> Segments | None:
    """The tokens of a turn that follow those that have run for its reply, if they can run one by one.

    Returns:
        The tokens. None: the adapter writes spans of them, or the turn is written as a whole, or a token has run that
        is not part of the turn.
    """
    if turn.is_written_when_ended or not state.writes_tokens:
        return None
    if reply.end_id is None:
        return joined([Segments.without_spans(reply.ids[len(reply.ids) - reply.unread :]), turn.ending])
    # The token that ended the reply has run, and is not part of it. It may be the first one of the ending.
    return part(turn.ending, slice(1, None)) if turn.ending.ids[:1] == [reply.end_id] else None
