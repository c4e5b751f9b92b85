"""How the messages of a chat become tokens: rendered by the chat template, behind the messages that came before."""

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.history import NONE, History
from mlx_deltamem.sessions.messages import Message, is_utf8, json_text, parse_messages
from mlx_deltamem.sessions.read import start_length
from mlx_deltamem.sessions.template import ChatTemplate, Segments
from mlx_deltamem.sessions.turn import Turn, part

_RECENT_TURNS = 2
# What is said to the model: a text of the user, or messages as OpenAI's API has them.
Said = str | Message | Sequence[Message]


class ChatText:
    """The tokens of one chat's messages.

    Args:
        template: The chat template.
        system: The system prompt.
        history: What the model sees of earlier turns. With `none` it sees no earlier turn, and neither does the
            template: each turn is written as the first one of a chat.
    """

    def __init__(self, template: ChatTemplate, system: str | None, history: History):
        self._template = template
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._history = history

    def messages(self, turns: Sequence[Turn]) -> list[Message]:
        """The system prompt and the messages of some turns; what was remembered is not among them. Copies."""
        messages = copy.deepcopy(self._system)
        for turn in said_turns(turns):
            messages += copy.deepcopy(turn.messages)
            messages.append(_reply(turn))
        return messages

    def opening(self, turns: Sequence[Turn], messages: Sequence[Message]) -> Segments:
        """The tokens of messages that are new after some turns; those of the first ones begin with the visible start.

        Raises:
            ValueError: The template refuses them.
        """
        before, earlier = self._before(turns, messages)
        said = said_turns(turns)
        sentences = said[-1].reply_sentence + 1 if said else 0
        opening = self._template.opening([*before, *messages], sentences, new=len(messages)).later(earlier)
        if said and len(before) == len(self._system):
            return part(opening, slice(start_length(opening), None))
        return opening

    def ending(self, turns: Sequence[Turn], messages: Sequence[Message], reply: str) -> Segments:
        """The tokens that the template ends a reply with.

        Args:
            turns: The turns before.
            messages: What was replied to.
            reply: The text of the reply.
        """
        before, earlier = self._before(turns, messages)
        return self._template.ending([*before, *messages, {"role": "assistant", "content": reply}]).later(earlier)

    def remembered(self, messages: Sequence[Message]) -> Segments:
        """The tokens of messages that are remembered, behind a visible start: their own system prompt, or the chat's.

        Raises:
            ValueError: There are system messages only, or the template refuses them.
        """
        own = messages[0]["role"] == "system"
        if all(message["role"] == "system" for message in messages):
            raise ValueError("there are only system messages to remember; expected messages of a chat, or a text")
        return self._template.whole(messages if own else [*self._system, *messages])

    def _before(self, turns: Sequence[Turn], messages: Sequence[Message]) -> tuple[list[Message], int]:
        """The messages before new ones that the template is to see, and how many more than these the chat has.

        What it writes next can depend on them. They are few, so that a turn costs the same however long the chat is.
        """
        said = said_turns(turns)
        count = 0 if self._history == NONE else min(_RECENT_TURNS, len(said))
        # The results of tools are written with the calls that asked for them, and with what these answered.
        first = said[-count].messages if count else messages
        while count < len(said) and first[0]["role"] == "tool":
            count += 1
            first = said[-count].messages
        split = len(said) - count
        return self.messages(said[split:]), sum(map(_message_count, said[:split]))


def said_turns(turns: Sequence[Turn]) -> list[Turn]:
    """The turns that are in the chat's text."""
    return [turn for turn in turns if not turn.remembered]


def said_messages(given: Said) -> tuple[Message, ...]:
    """Messages that a reply can follow.

    Raises:
        ValueError: They are not valid, or one is a message of the assistant.
    """
    messages = parse_messages(given)
    if any(message["role"] == "assistant" for message in messages):
        raise ValueError("there is a message of the assistant among those to reply to; remember() writes transcripts")
    return messages


def system_prompt(text: object) -> str:
    """A system prompt, checked; it may be empty.

    Raises:
        ValueError: It is not a text, or it is not UTF-8.
    """
    if not isinstance(text, str):
        raise ValueError(f"the system prompt is of type {type(text).__name__}; expected text")
    if not is_utf8(text):
        raise ValueError("the system prompt is not UTF-8 (it has half a character, a lone surrogate); expected text")
    return text


def parse_tools(given: object) -> list[dict[str, object]]:
    """Tools for a chat template, as OpenAI's API has them; copies.

    Raises:
        ValueError: They are no list of JSON objects.
    """
    try:
        if isinstance(given, Sequence) and all(isinstance(tool, Mapping) for tool in given):
            return [json.loads(json_text(dict(tool))) for tool in given]
        problem = f"they are of type {type(given).__name__}"
    except (ValueError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split())
    raise ValueError(f"the tools are no list of JSON objects ({problem}); expected them as OpenAI's API has them")


def check_options(
    path: Path, options: Mapping[str, object], tokenizer: TokenizerWrapper, taken: Collection[str]
) -> None:
    """Check the options for the chat template that a file brings.

    A chat template among them is refused, unless it is the tokenizer's: it would be run.

    Args:
        path: The file.
        options: The options, by name.
        tokenizer: The tokenizer.
        taken: Names that are no options of a template.

    Raises:
        ValueError: It brings another chat template, or options that have such names.
    """
    if clash := sorted(set(taken) & set(options)):
        raise ValueError(f"{path} was altered: its template options name {', '.join(clash)}; use a copy of it")
    brought = options.get("chat_template")
    if brought is not None and brought != tokenizer.chat_template:
        raise ValueError(
            f"{path} brings a chat template that is not the tokenizer's; expected none: set tokenizer.chat_template "
            "to it if you trust it"
        )


def _reply(turn: Turn) -> Message:
    message: Message = {"role": "assistant", "content": turn.reply}
    return message | {"tool_calls": copy.deepcopy(list(turn.tool_calls))} if turn.tool_calls else message


def _message_count(turn: Turn) -> int:
    """The messages of a turn and its reply; system messages have no number."""
    return 1 + sum(message["role"] != "system" for message in turn.messages)
