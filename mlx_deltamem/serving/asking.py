"""Prepare the turn that a request asks for: the place in its memory, what is new, and what has to run first."""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.serving.exchange import TOO_LONG, Mode, RefusedError, ReplyRequest
from mlx_deltamem.serving.shortened import shortened_note, within_window
from mlx_deltamem.sessions.changing.loops import later_turns, take_back
from mlx_deltamem.sessions.reading.prefill import window
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.template.options import DEFAULTS, parse_tools
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.sessions.text.token_ids import token_ids
from mlx_deltamem.sessions.turns.place import (
    Asked,
    Exchange,
    Place,
    are_same_calls,
    are_same_messages,
    asked,
    find_other_reply,
    find_place,
    place_of_turn,
)
from mlx_deltamem.sessions.turns.seen import seen_tokens
from mlx_deltamem.sessions.turns.trimmed import find_trimmed
from mlx_deltamem.sessions.turns.turn import Turn, said_turns
from mlx_deltamem.sessions.turns.writing import NONE

# A text with more characters for each token of the window is refused before its tokens are counted, which takes seconds
# for some megabytes, and all others wait. Ordinary text has about 4.
_MOST_CHARACTERS = 32
# A plain text is one turn of a conversation of this name, in a copy of the memory.
_PLAIN_TEXT = "\x00text"
# The length of the random name of a conversation without an id.
_NAME_BYTES = 6


@dataclass(frozen=True)
class Prepared:
    """A turn that can begin.

    Attributes:
        turn: The turn.
        tokens: The number of tokens of earlier messages that ran.
        note: A remark for the client, or None.
        begun: The beginning of the reply, which the client has given; else empty.
    """

    turn: Turn
    tokens: int
    note: str | None = None
    begun: str = ""


def text_turn(model: nn.Module, tokenizer: TokenizerWrapper, text: str) -> Turn:
    """The turn that continues a plain text. Nothing is written.

    Raises:
        RefusedError: The text has no tokens, or far more than fit into the model's window.
    """
    _check_length(model, [text])
    ids = token_ids(tokenizer, text, special=True)
    if not ids:
        raise RefusedError(400, "empty_prompt", "the prompt has no tokens; expected some text")
    opening = Segments(ids, [0] * len(ids), [-1] * len(ids))
    return Turn(({"role": "user", "content": text},), opening, NONE, _PLAIN_TEXT)


def prepare(
    chat: ChatSession,
    request: ReplyRequest,
    replay_limit: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Prepared:
    """Bring a chat to the place that a request goes on from.

    What the client edited or asks for again is taken back exactly. Exchanges that the chat does not know are run. The
    caller restores the chat if an error comes.

    Args:
        chat: The chat.
        request: The request.
        replay_limit: The largest number of tokens of other conversations that run again after an edit.
        progress: Called before each exchange that is run, with the number of those before it, and of all.

    Raises:
        RefusedError: The messages cannot be replied to or are far too long, or the edit is below too much text.
        ValueError: The template refuses the messages, or they do not fit into the model's window.
    """
    think_end: str | None = chat.tokenizer.think_end
    question = asked(request.messages)
    earlier, start = _go_on_from(chat, request, question, think_end, replay_limit)
    template = _template(chat.tokenizer, request.tools, request.template_options)
    chat.state.set_start(start, template)
    write = NONE if request.mode is not Mode.WRITE else None
    tokens, history = 0, chat.history
    _check_length(chat.model, [message["content"] for message in question.new])
    for done, exchange in enumerate(earlier):
        # The exchanges of a long chat take long. Meanwhile other replies go on.
        progress(done, len(earlier))
        if exchange.messages:
            said = [*exchange.messages, exchange.reply]
            _check_length(chat.model, [message["content"] for message in said])
            tokens += within_window(chat, history, partial(_read, chat, exchange, write))
    turn = within_window(chat, history, partial(chat.new_turn, question.new, write))
    return Prepared(turn, tokens, shortened_note(chat, history, turn), question.begun)


def _read(chat: ChatSession, exchange: Exchange, write: str | None) -> int:
    """Read an exchange; returns the number of tokens that ran for it, those of earlier text among them.

    Raises:
        ValueError: As from `ChatSession.read_exchange`. The chat is unchanged.
    """
    before, has_text = chat.turns, chat.state.has_text
    chat.read_exchange(exchange.messages, exchange.reply["content"], write, exchange.reply.get("tool_calls", []))
    turn = chat.turns[-1]
    return turn.length + (0 if has_text else seen_tokens(chat.state, turn, before))


def _check_length(model: nn.Module, texts: Sequence[str]) -> None:
    """Check that texts are not far longer than the model's window.

    Raises:
        RefusedError: They are.
    """
    longest, characters = window(model), sum(map(len, texts))
    if longest is not None and characters > longest * _MOST_CHARACTERS:
        raise RefusedError(
            400,
            TOO_LONG,
            f"the text has {characters:,} characters, and the model's window is {longest:,} tokens: shorten the text, "
            "or write it into a memory by .../remember",
        )


def _go_on_from(
    chat: ChatSession, request: ReplyRequest, question: Asked, think_end: str | None, replay_limit: int
) -> tuple[Sequence[Exchange], str | None]:
    """Bring a chat to the place that a request goes on from; returns the exchanges that are new, and the system prompt.

    Raises:
        RefusedError: The memory has no such turn, or the edit is below too much text.
    """
    turns, earlier = chat.turns, question.earlier
    if request.continues is not None:
        place = place_of_turn(turns, request.continues, think_end)
        if place is None:
            raise RefusedError(404, "turn_not_found", f"the memory has no turn {request.continues}")
        _check_beginning(question, said_turns(turns, place.conversation)[place.turns - 1])
        _go_to(chat, place, replay_limit)
        return earlier, question.system
    own = request.chat if request.chat is not None and said_turns(turns, request.chat) else None
    if request.chat is not None and own is None:
        # Another client's chat may have begun with the same words, as its copy or by chance.
        turns = tuple(turn for turn in turns if _is_unnamed(turn.conversation))

    def named(place: Place) -> Place:
        """Give the conversation the name of the client's chat. It has none yet, or this one."""
        if request.chat is None:
            return place
        chat.state.rename(place.conversation, request.chat)
        return Place(request.chat, place.turns)

    place = _place_of_begun(turns, question, think_end, own)
    place = place or find_place(turns, earlier, think_end, own, question.new)
    if place is not None:
        return earlier[_go_on(chat, named(place), question, replay_limit) :], question.start
    if (place := find_trimmed(turns, question, think_end, own)) is not None:
        _go_to(chat, named(place), replay_limit)
        return (), question.system
    place = find_other_reply(turns, earlier, think_end) if own is None else _edited_start(turns, own, question)
    if place is None:
        name = world_of(chat.model).share(secrets.token_hex(_NAME_BYTES))
        if own is not None:
            # The client shows something else now, for example a summary. What was said stays in the memory.
            chat.state.rename(own, name)
        chat.conversation = request.chat or name
    else:
        _go_to(chat, named(place), replay_limit)
    return earlier, question.start


def _check_beginning(question: Asked, turn: Turn) -> None:
    """Check that messages which go on from a turn do not begin with another reply. Clients may repeat its calls.

    Raises:
        RefusedError: They do.
    """
    shown = question.greeting
    if shown is not None and not are_same_calls(turn, shown):
        raise RefusedError(
            400,
            "invalid_request_error",
            "the input goes on from a reply and begins with another one; expected a message of the user, or the "
            "results of the calls in that reply",
        )


def _is_unnamed(conversation: str) -> bool:
    """Whether no client gave a conversation its name: it is a random one, or empty as in a session file."""
    return conversation == "" or re.fullmatch(rf"[0-9a-f]{{{2 * _NAME_BYTES}}}", conversation) is not None


def _place_of_begun(
    turns: Sequence[Turn], question: Asked, think_end: str | None, conversation: str | None
) -> Place | None:
    """The place before a turn whose reply is to go on; None if no turn has it as the client shows it."""
    if not question.begun:
        return None
    shown = (*question.earlier, Exchange(question.new, {"role": "assistant", "content": question.begun}))
    after = find_place(turns, shown, think_end, conversation)
    return Place(after.conversation, after.turns - 1) if after is not None and after.turns == len(shown) else None


def _edited_start(turns: Sequence[Turn], conversation: str, question: Asked) -> Place | None:
    """The beginning of a conversation if the client has edited its first message or the reply to it; else None."""
    first = said_turns(turns, conversation)[0]
    if not question.earlier:
        is_edit = question.greeting is None
    else:
        is_edit = are_same_messages(first.messages, question.earlier[0].messages)
    return Place(conversation, 0) if is_edit else None


def _go_on(chat: ChatSession, place: Place, question: Asked, replay_limit: int) -> int:
    """Bring a chat to the place after the known exchanges; returns the number of exchanges that the chat then has.

    A client that stopped the last reply may show less of it than was sent. If too much would have to run again to
    shorten it, it stays as it is.
    """
    try:
        _go_to(chat, place, replay_limit)
    except RefusedError:
        if not _is_stopped(said_turns(chat.turns, place.conversation)[place.turns :], question.earlier[place.turns :]):
            raise
        chat.state.enter(place.conversation)
        return place.turns + 1
    return place.turns


def _is_stopped(dropped: Sequence[Turn], shown: Sequence[Exchange]) -> bool:
    """Whether the turns after a place are one, and the client shows it with a part of its reply."""
    if not len(dropped) == len(shown) == 1:
        return False
    [turn], [exchange] = dropped, shown
    part = exchange.reply["content"].strip()
    is_part = bool(part) and turn.reply.strip().startswith(part)
    return is_part and are_same_messages(turn.messages, exchange.messages)


def _go_to(chat: ChatSession, place: Place, replay_limit: int) -> None:
    """Take back the turns of a conversation after a place. Later turns of other conversations run again."""
    state = chat.state
    state.enter(place.conversation)
    said = [
        index
        for index, turn in enumerate(state.turns)
        if turn.conversation == place.conversation and not turn.remembered
    ]
    if dropped := said[place.turns :]:
        take_back_up_to(chat, dropped, replay_limit)


def take_back_up_to(chat: ChatSession, dropped: Sequence[int], replay_limit: int) -> None:
    """Take turns back exactly, if not too many tokens have to run again for it.

    Args:
        chat: The chat.
        dropped: The indices of the turns.
        replay_limit: The largest number of tokens of later turns that run again.

    Raises:
        RefusedError: There are more.
    """
    tokens = sum(turn.length for turn in later_turns(chat.turns, dropped))
    if tokens > replay_limit:
        raise RefusedError(
            409,
            "edit_too_deep",
            f"{tokens:,} tokens of later turns would have to run again, and at most {replay_limit:,} may; "
            "send the message as a new one, or fork the memory",
        )
    take_back(chat.state, dropped)


def _template(
    tokenizer: TokenizerWrapper, tools: Sequence[Mapping[str, object]] | None, options: Mapping[str, object]
) -> ChatTemplate:
    if "chat_template" in options:
        raise RefusedError(
            400, "template_refused", "a request brings a chat template; expected the model's: leave it out"
        )
    return ChatTemplate(tokenizer, None if tools is None else parse_tools(tools), **{**DEFAULTS, **options})
