"""The text of a chat: its messages, and the tokens that the chat template makes of them turn by turn."""

import copy
from collections.abc import Sequence

from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.text.segments import Segments, part, start_length
from mlx_deltamem.sessions.turns.history import NONE, History
from mlx_deltamem.sessions.turns.turn import Turn, said_turns

_RECENT_TURNS = 2


class ChatText:
    """The messages of one conversation, and their tokens.

    Args:
        template: The chat template.
        system: The system prompt, or None.
        history: How much of the earlier turns the model sees. With `none` the template sees no earlier turn either:
            each turn is written as the first turn of a chat. A turn with a system message of its own is not: there,
            that message would be part of the visible start.
        conversation: The conversation. Turns of others are not part of the text.
    """

    def __init__(self, template: ChatTemplate, system: str | None, history: History, conversation: str = ""):
        self._template = template
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._history = history
        self._conversation = conversation

    def messages(self, turns: Sequence[Turn]) -> list[Message]:
        """The system prompt and the messages of some turns, without remembered texts. They are copies."""
        messages = copy.deepcopy(self._system)
        for turn in said_turns(turns, self._conversation):
            messages += copy.deepcopy(turn.messages)
            messages.append(_reply(turn))
        return messages

    def place_of(self, turns: Sequence[Turn], index: int) -> tuple[int, int] | None:
        """The place of one of the messages.

        Args:
            turns: All turns.
            index: The place of the message in `messages`. It may be negative, as for a list.

        Returns:
            The index of its turn, and its place in the turn, where the reply comes last; None for the system prompt.

        Raises:
            ValueError: There is no such message.
        """
        places: list[tuple[int, int] | None] = [None for _ in self._system]
        for number, turn in enumerate(turns):
            if not turn.remembered and turn.conversation == self._conversation:
                places += [(number, inner) for inner in range(len(turn.messages) + 1)]
        if type(index) is not int or not -len(places) <= index < len(places):
            raise ValueError(f"there is no message {index!r}; the chat has {len(places)}")
        return places[index]

    def turns_up_to(self, turns: Sequence[Turn], index: int) -> int:
        """The number of turns up to the one with a reply.

        Args:
            turns: All turns.
            index: The place of the reply in `messages`. It may be negative, as for a list.

        Raises:
            ValueError: There is no reply at that place.
        """
        place = self.place_of(turns, index)
        if place is None or place[1] < len(turns[place[0]].messages):
            raise ValueError(f"message {index} is not a reply; expected the number of a message of the assistant")
        return place[0] + 1

    def opening(self, turns: Sequence[Turn], messages: Sequence[Message]) -> Segments:
        """The tokens of new messages after some turns. The opening of the first turn begins with the visible start.

        Args:
            turns: The turns before the messages.
            messages: The new messages.

        Raises:
            ValueError: The template refuses the messages.
        """
        before, earlier = self._before(turns, messages)
        said = said_turns(turns, self._conversation)
        first_sentence = said[-1].reply_sentence + 1 if said else 0
        opening = self._template.opening([*before, *messages], first_sentence, new=len(messages)).later(earlier)
        if said and len(before) == len(self._system):
            # The template has written the messages as the first ones of a chat.
            return part(opening, slice(start_length(opening), None))
        return opening

    def ending(self, turns: Sequence[Turn], messages: Sequence[Message], reply: str) -> Segments:
        """The tokens that the template writes after a reply.

        Args:
            turns: The turns before.
            messages: The messages that the model replied to.
            reply: The text of the reply.
        """
        before, earlier = self._before(turns, messages)
        return self._template.ending([*before, *messages, {"role": "assistant", "content": reply}]).later(earlier)

    def reply_ids(self, turns: Sequence[Turn], messages: Sequence[Message], reply: Message) -> list[int]:
        """The token ids of a reply that was not generated, with its tool calls.

        Args:
            turns: The turns before.
            messages: The messages that the model replied to.
            reply: The reply.
        """
        before, _ = self._before(turns, messages)
        return self._template.reply_ids([*before, *messages, reply])

    def remembered(self, messages: Sequence[Message]) -> Segments:
        """The tokens of messages that are to be remembered, behind a visible start.

        The visible start has the system prompt of the messages themselves, or else the chat's.

        Raises:
            ValueError: There are only system messages, or the template refuses the messages.
        """
        if all(message["role"] == "system" for message in messages):
            raise ValueError("there are only system messages to remember; expected messages of a chat, or a text")
        has_system = messages[0]["role"] == "system"
        return self._template.whole(messages if has_system else [*self._system, *messages])

    def _before(self, turns: Sequence[Turn], messages: Sequence[Message]) -> tuple[list[Message], int]:
        """The messages before new ones that the template sees, and the number of earlier messages that it does not see.

        What the template writes for new messages can depend on the messages before. Only a few of them are given, so
        that the cost of a turn does not grow with the chat.
        """
        said = said_turns(turns, self._conversation)
        has_system = any(message["role"] == "system" for message in messages)
        count = 0 if self._history == NONE and not has_system else min(_RECENT_TURNS, len(said))
        # A template writes the results of tools together with the calls, and with the messages before the calls.
        first = said[-count].messages if count else messages
        while count < len(said) and first[0]["role"] == "tool":
            count += 1
            first = said[-count].messages
        split = len(said) - count
        return self.messages(said[split:]), sum(map(_message_count, said[:split]))


def _reply(turn: Turn) -> Message:
    message: Message = {"role": "assistant", "content": turn.reply}
    if turn.tool_calls:
        message["tool_calls"] = copy.deepcopy(list(turn.tool_calls))
    return message


def _message_count(turn: Turn) -> int:
    """The number of messages in a turn, the reply included. System messages have no index and are not counted."""
    return 1 + sum(message["role"] != "system" for message in turn.messages)
