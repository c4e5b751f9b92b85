"""A chat as a dict that JSON can hold, and back. The memory is not in it: reading the chat again makes it."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.files.jsonl import kind_of
from mlx_deltamem.files.text import check_text
from mlx_deltamem.sessions.export.reply_rest import are_tokens_of, rest_of_reply
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.reading.fitting import check_fits_with_reply
from mlx_deltamem.sessions.reading.prefill import Progress
from mlx_deltamem.sessions.template.options import Tools, check_storable
from mlx_deltamem.sessions.text.messages import (
    Message,
    ToolCall,
    as_generated,
    is_utf8,
    parse_messages,
    said_messages,
    system_prompt,
)
from mlx_deltamem.sessions.turns.history import FULL, History, parse_history
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn
from mlx_deltamem.sessions.turns.writing import ALL, parse_remembered_write, parse_write

FORMAT, VERSION = "mlx_deltamem chat", 1
_LONGEST_TITLE = 200


@dataclass(frozen=True)
class ExportedTurn:
    """One turn of an exported chat. The attributes are those of `Turn`; `reply_ids` may be empty or wrong.

    `reply_rest` is the text that the tokens of the reply go on with, as from `rest_of_reply`.
    """

    messages: tuple[Message, ...]
    reply: str = ""
    reply_ids: tuple[int, ...] = ()
    reply_rest: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    write: str = ALL
    remembered: bool = False
    conversation: str = ""


@dataclass(frozen=True)
class ExportedChat:
    """An exported chat that was checked. The attributes are those of `ChatSession`."""

    turns: tuple[ExportedTurn, ...]
    title: str = ""
    system: str | None = None
    history: History = FULL
    write: str = ALL
    template_options: Mapping[str, object] = field(default_factory=dict)
    conversation: str = ""


def chat_title(title: object) -> str:
    """Check the title of a chat.

    Raises:
        ValueError: It is not text, or has several lines or more than 200 characters.
    """
    if not isinstance(title, str):
        raise ValueError(f"the title is of type {type(title).__name__}; expected text")
    title = check_text(title, "the title").strip()
    if len(title.splitlines()) > 1 or len(title) > _LONGEST_TITLE:
        raise ValueError(
            f"the title has {len(title):,} characters in {len(title.splitlines())} lines; expected one line of at most "
            f"{_LONGEST_TITLE} characters"
        )
    return title


def exported_chat(state: ChatState, tokenizer: TokenizerWrapper, title: str, write: str) -> dict[str, object]:
    """The dict of a chat; `ChatSession.to_dict` describes it.

    Raises:
        ValueError: A memory was set, or a template option is not JSON.
    """
    for index, turn in enumerate(state.turns):
        if turn.memory_set:
            raise ValueError(
                f"a memory was set before turn {index + 1}, and an export has no memory; save a session file instead"
            )
    if state.memory_set:
        raise ValueError("a memory was set, and an export has no memory; save a session file instead")
    check_storable(state.template.options)
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "system": state.system,
        "history": state.history,
        "write": write,
        "template_options": copy.deepcopy(state.template.options),
        "conversation": state.conversation,
        "turns": [_exported(turn, tokenizer, state.template.tools) for turn in state.turns],
    }


def parse_export(content: object) -> ExportedChat:
    """Check the dict of a chat, or messages in OpenAI's form.

    Args:
        content: A dict of `exported_chat`; a list of messages; or a dict with `messages`, which may have `title`,
            `history`, `write`, `template_options` and, as in Anthropic's form, `system` too.

    Raises:
        ValueError: It is something else, of another version, or a message has no reply.
    """
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        return _parse_own(content)
    given: Mapping[str, object] = content if isinstance(content, Mapping) else {"messages": content}
    messages = given.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes | bytearray):
        raise ValueError(
            f"the chat is {kind_of(content)} without messages; expected an exported chat, or messages in OpenAI's form"
        )
    settings = _parse_settings(given)
    system, turns = _exchanges(parse_messages(messages), settings.write)
    if (beside := given.get("system")) is not None:
        if system is not None:
            raise ValueError(
                "the chat has a system prompt beside its messages and another as the first of them; expected one"
            )
        system = parse_messages({"role": "system", "content": beside})[0]["content"]
    return replace(settings, system=system, turns=turns)


def read_export(
    state: ChatState, tokenizer: TokenizerWrapper, chat: ExportedChat, progress: Progress | None = None
) -> None:
    """Read the turns of an exported chat into a chat that is empty.

    Args:
        state: The chat, with its settings.
        tokenizer: The model's tokenizer.
        chat: The exported chat.
        progress: Called with the number of turns that have been read, and of all.

    Raises:
        ValueError: The chat template refuses a message, or a turn does not fit into the model's window.
    """
    for number, given in enumerate(chat.turns, start=1):
        state.enter(given.conversation)
        running.run_again(state, _turn_of(state, tokenizer, given))
        if progress is not None:
            progress(number, len(chat.turns))
    state.enter(chat.conversation)


def _exported(turn: Turn, tokenizer: TokenizerWrapper, tools: Tools | None) -> dict[str, object]:
    return {
        "messages": copy.deepcopy(list(turn.messages)),
        "reply": turn.reply,
        "reply_ids": list(turn.reply_ids),
        "reply_rest": rest_of_reply(tokenizer, turn.reply, turn.reply_ids, turn.tool_calls, tools),
        "tool_calls": copy.deepcopy(list(turn.tool_calls)),
        "write": turn.write,
        "remembered": turn.remembered,
        "conversation": turn.conversation,
    }


def _turn_of(state: ChatState, tokenizer: TokenizerWrapper, given: ExportedTurn) -> Turn:
    """The turn as the present model reads it.

    Raises:
        ValueError: The chat template refuses a message, or the turn does not fit into the model's window.
    """
    if given.remembered:
        opening = state.text.remembered(given.messages)
        return Turn(given.messages, opening, given.write, given.conversation, remembered=True)
    turn = Turn(
        given.messages,
        state.text.opening(state.turns, given.messages),
        given.write,
        given.conversation,
        reply=given.reply,
        reply_ids=_reply_ids(state, tokenizer, given),
        ending=state.text.ending(state.turns, given.messages, given.reply),
        tool_calls=given.tool_calls,
    )
    check_fits_with_reply(state, len(state.turns), turn)
    return turn


def _reply_ids(state: ChatState, tokenizer: TokenizerWrapper, given: ExportedTurn) -> tuple[int, ...]:
    """The tokens of a reply: those that were generated, if this tokenizer reads the same text and calls from them."""
    largest = max(tokenizer.get_vocab().values())
    ids, calls = given.reply_ids, given.tool_calls
    known = bool(ids) and all(0 <= token <= largest for token in ids)
    if known and are_tokens_of(tokenizer, given.reply, given.reply_rest, ids, calls, state.template.tools):
        return ids
    reply = {"role": "assistant", "content": given.reply, "tool_calls": given.tool_calls}
    return tuple(state.text.reply_ids(state.turns, given.messages, parse_messages(reply)[0]))


def _parse_own(content: Mapping[str, object]) -> ExportedChat:
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(f"the chat is of export version {version!r}; expected {VERSION}: use a newer mlx_deltamem")
    system, turns = content.get("system"), content.get("turns")
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise ValueError(f"the turns of the chat are {kind_of(turns)}; expected a list")
    settings = _parse_settings(content)
    return replace(
        settings,
        turns=tuple(
            _parse_turn(f"turn {index} of the chat", turn, settings.write) for index, turn in enumerate(turns, start=1)
        ),
        system=None if system is None else system_prompt(system),
        conversation=_text("the conversation of the chat", content.get("conversation", "")),
    )


def _parse_settings(content: Mapping[str, object]) -> ExportedChat:
    """A chat without turns that has the settings of a dict.

    Raises:
        ValueError: A setting is not valid.
    """
    options = content.get("template_options", {})
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"the template_options of the chat are {kind_of(options)}; expected an object")
    check_storable(dict(options))
    return ExportedChat(
        turns=(),
        title=chat_title(content.get("title", "")),
        history=parse_history(content.get("history", FULL)),
        write=parse_write(content.get("write", ALL)),
        template_options=dict(options),
    )


def _parse_turn(place: str, turn: object, usual: str) -> ExportedTurn:
    """Check one turn. `place` names it in errors, and `usual` is what is written where the turn does not say it."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"{place} is {kind_of(turn)}; expected an object")
    remembered, ids = turn.get("remembered", False), turn.get("reply_ids", [])
    # OpenAI's form may have null there.
    calls = turn.get("tool_calls") or []
    if not isinstance(remembered, bool):
        raise ValueError(f"remembered of {place} is {kind_of(remembered)}; expected true or false")
    if not isinstance(ids, Sequence) or not all(type(token) is int for token in ids):
        raise ValueError(f"reply_ids of {place} are not a list of whole numbers; leave them out")
    reply = _text(f"the reply of {place}", turn.get("reply", ""))
    rest = _text(f"reply_rest of {place}", turn.get("reply_rest", ""))
    try:
        messages = (parse_messages if remembered else said_messages)(turn.get("messages"))
        # This is a check only: in a reply, the arguments of calls stay JSON text.
        parse_messages({"role": "assistant", "content": reply, "tool_calls": calls})
        write = (parse_remembered_write if remembered else parse_write)(turn.get("write", ALL if remembered else usual))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if remembered and (reply or ids or rest or calls):
        raise ValueError(f"{place} was remembered and has a reply; expected one of the two: leave the reply out")
    return ExportedTurn(
        messages,
        reply,
        tuple(ids),
        rest,
        tuple(cast(list[ToolCall], copy.deepcopy(calls))),
        write,
        remembered,
        _text(f"the conversation of {place}", turn.get("conversation", "")),
    )


def _exchanges(messages: Sequence[Message], write: str) -> tuple[str | None, tuple[ExportedTurn, ...]]:
    """The system prompt and the turns of messages in OpenAI's form.

    Raises:
        ValueError: A message has no reply, a reply has no message, or a system message comes later.
    """
    system: str | None = None
    turns: list[ExportedTurn] = []
    new: list[Message] = []
    for index, message in enumerate(messages):
        if message["role"] == "system" and index == 0:
            system = message["content"]
        elif message["role"] != "assistant":
            new.append(message)
        elif not new:
            raise ValueError(f"messages[{index}] is a reply without a message before it; expected one: take it out")
        else:
            turns.append(ExportedTurn(tuple(new), message["content"], tool_calls=as_generated(message), write=write))
            new = []
    if new:
        raise ValueError(
            "the messages end without a reply; expected one: take the last message out, and send it in the chat"
        )
    return system, tuple(turns)


def _text(place: str, value: object) -> str:
    """Check a text as messages are checked: what a chat takes may have a NUL character or a byte order mark."""
    if not isinstance(value, str):
        raise ValueError(f"{place} is {kind_of(value)}; expected text")
    if not is_utf8(value):
        raise ValueError(f"{place} has half a character (a lone surrogate); expected text: write the whole character")
    return value
