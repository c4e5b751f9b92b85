"""Find the place in a chat from which a list of messages goes on.

Clients of OpenAI's API send the whole chat with each request. A message that the chat knows is not run again.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from mlx_deltamem.sessions.text.messages import Message, call_arguments
from mlx_deltamem.sessions.turns.turn import Turn, said_turns, turns_by_conversation

# Open WebUI puts files, knowledge and pages of the web before the last message, and shows it without them later.
_SOURCES = re.compile(r"\A### Task:\s*Respond to the user query.*</context>\s*", re.DOTALL)


@dataclass(frozen=True)
class Exchange:
    """Messages and the reply to them."""

    messages: tuple[Message, ...]
    reply: Message


@dataclass(frozen=True)
class Asked:
    """A list of messages in parts.

    Attributes:
        system: The system prompt, or None. Several are joined by an empty line.
        greeting: A reply before any message; None if there is none. It is a greeting, or the rest of an exchange of
            which the client has left out the beginning.
        earlier: The exchanges before the new messages, without the greeting.
        new: The messages that a reply is asked for.
        begun: The beginning of the reply, if the messages end with one; else empty.
    """

    system: str | None
    greeting: Message | None
    earlier: tuple[Exchange, ...]
    new: tuple[Message, ...]
    begun: str = ""

    @property
    def start(self) -> str | None:
        """The system prompt, which also tells of the greeting."""
        greeted = None if self.greeting is None else f"You have greeted the user: {self.greeting['content']}"
        return "\n\n".join(filter(None, (self.system, greeted))) or self.system


@dataclass(frozen=True)
class Place:
    """A place in a chat.

    Attributes:
        conversation: The conversation.
        turns: The number of its turns before the place.
    """

    conversation: str
    turns: int


def asked(messages: Sequence[Message]) -> Asked:
    """Split a list of messages. A reply at their end is the beginning of the one that is asked for.

    Raises:
        ValueError: There is no message to reply to, or the messages end with tool calls.
    """
    system = [message["content"] for message in messages if message["role"] == "system"]
    earlier: list[Exchange] = []
    new: list[Message] = []
    for given in messages:
        message = given
        if message["role"] == "assistant" and not new and earlier:
            # Two replies in a row: some clients split a reply at its tool calls.
            last = earlier.pop()
            new, message = list(last.messages), _joined(last.reply, message)
        if message["role"] == "assistant":
            earlier.append(Exchange(tuple(new), message))
            new = []
        elif message["role"] != "system":
            new.append(message)
    greeting: Message | None = None
    if earlier and not earlier[0].messages:
        greeting = earlier.pop(0).reply
    begun = ""
    if not new and earlier:
        last = earlier.pop()
        if last.reply.get("tool_calls"):
            raise ValueError("the messages end with tool calls; expected their results, as messages of the role tool")
        new, begun = list(last.messages), last.reply["content"]
    if not new:
        found = "have a reply only" if greeting else "are a system prompt only"
        raise ValueError(f"the messages {found}; expected a message to reply to")
    return Asked("\n\n".join(system) if system else None, greeting, tuple(earlier), tuple(new), begun)


def turn_ids(turns: Iterable[Turn], think_end: str | None = None) -> list[str]:
    """The id of each turn, which depends on the messages and replies of its conversation up to it.

    Args:
        turns: All turns of a chat.
        think_end: The text that ends the reasoning in a reply. Clients leave the reasoning out.
    """
    latest: dict[str, str] = {}
    ids: list[str] = []
    for turn in turns:
        if turn.remembered:
            ids.append(_id("", turn.messages, None, None) + f"-{len(ids)}")
            continue
        before = latest.get(turn.conversation, "")
        latest[turn.conversation] = _id(before, turn.messages, _reply_of(turn), think_end)
        ids.append(latest[turn.conversation])
    return ids


def place_of_turn(turns: Sequence[Turn], name: str, think_end: str | None = None) -> Place | None:
    """The place after the turn with an id; None if there is no such turn.

    Args:
        turns: All turns of a chat.
        name: The id.
        think_end: As for `turn_ids`.
    """
    return places(turns, think_end).get(name)


def places(turns: Sequence[Turn], think_end: str | None = None, following: Sequence[Message] = ()) -> dict[str, Place]:
    """The place after each turn of a chat, by the id of the turn. Remembered texts are not part of a conversation.

    Several conversations may have the same turns up to a place. Then it is one in which the messages `following` are
    the only turn after it, whose reply is asked for again; else one that ends there, so that nothing is taken back;
    else one in which these messages come next; else the newest.

    Args:
        turns: All turns of the chat.
        think_end: As for `turn_ids`.
        following: The messages that a reply is asked for.
    """
    known: dict[str, Place] = {}
    conversations = turns_by_conversation(turns)

    def fitness(place: Place) -> int:
        rest = conversations[place.conversation][place.turns :]
        if not rest:
            return 2
        if not following or not are_same_messages(rest[0].messages, following):
            return 0
        return 3 if len(rest) == 1 else 1

    counts = Counter[str]()
    for turn, name in zip(turns, turn_ids(turns, think_end), strict=True):
        if not turn.remembered:
            counts[turn.conversation] += 1
            place = Place(turn.conversation, counts[turn.conversation])
            if name not in known or fitness(place) >= fitness(known[name]):
                known[name] = place
    return known


def path_ids(earlier: Iterable[Exchange], think_end: str | None = None) -> list[str]:
    """The ids that the turns of some exchanges have, if they begin a conversation."""
    ids, name = [], ""
    for exchange in earlier:
        name = _id(name, exchange.messages, exchange.reply, think_end)
        ids.append(name)
    return ids


def find_place(
    turns: Sequence[Turn],
    earlier: Sequence[Exchange],
    think_end: str | None = None,
    conversation: str | None = None,
    following: Sequence[Message] = (),
) -> Place | None:
    """The place in a chat with the longest part of some exchanges before it.

    Args:
        turns: All turns of the chat.
        earlier: The exchanges.
        think_end: As for `turn_ids`.
        conversation: The only conversation to look at; None: all of them.
        following: As for `places`.

    Returns:
        None if no exchange is known.
    """
    if conversation is not None:
        # Another conversation may have the same words, and so the same ids.
        turns = said_turns(turns, conversation)
    return deepest(places(turns, think_end, following), path_ids(earlier, think_end))


def find_other_reply(turns: Sequence[Turn], earlier: Sequence[Exchange], think_end: str | None = None) -> Place | None:
    """The beginning of a conversation that the client shows with another first reply; None if there is none.

    A client that stops a reply may show less of it than was sent, and some clients let their users edit replies. So a
    conversation of one turn is taken for the client's if its messages are the same, and one of the replies begins with
    the other one, or nothing has been said since.

    Args:
        turns: All turns of a chat, of which no conversation begins with `earlier`.
        earlier: The exchanges that the client shows.
        think_end: As for `turn_ids`.
    """
    if not earlier:
        return None
    reply = _without_reasoning(earlier[0].reply["content"], think_end).strip()
    # The newest one first.
    for name, said in reversed(turns_by_conversation(turns).items()):
        known = _without_reasoning(said[0].reply, think_end).strip()
        is_part = known.startswith(reply) or reply.startswith(known)
        is_last = said[0] is turns[-1]
        if len(said) == 1 and (is_part or is_last) and are_same_messages(said[0].messages, earlier[0].messages):
            return Place(name, 0)
    return None


def deepest(known: Mapping[str, Place], path: Iterable[str]) -> Place | None:
    """The place at the end of the longest known part of a path.

    Args:
        known: As from `places`.
        path: As from `path_ids`.
    """
    found = [known[name] for name in takewhile(known.__contains__, path)]
    return found[-1] if found else None


def are_same_messages(known: Sequence[Message], shown: Sequence[Message]) -> bool:
    """Whether messages are those that a client shows, which may have lost white space and the ids of calls."""
    return list(map(_plain, known)) == list(map(_plain, shown))


def are_same_calls(turn: Turn, shown: Message) -> bool:
    """Whether a message of the assistant shows the tool calls of a turn's reply, with a part of its text or none."""
    return _calls(_reply_of(turn)) == _calls(shown) and shown["content"].strip() in turn.reply


def is_same_reply(turn: Turn, shown: Message, think_end: str | None = None) -> bool:
    """Whether the reply of a turn is the one that a client shows."""
    return _id("", (), _reply_of(turn), think_end) == _id("", (), shown, think_end)


def _id(parent: str, messages: Sequence[Message], reply: Message | None, think_end: str | None) -> str:
    said = [_plain(message) for message in messages]
    if reply is not None:
        said.append(_plain({**reply, "content": _without_reasoning(reply["content"], think_end)}))
    return hashlib.sha256(json.dumps([parent, said]).encode()).hexdigest()[:24]


def _plain(message: Message) -> list[object]:
    """The part of a message that clients send back unchanged. They drop white space, sources and the ids of calls."""
    content = message["content"]
    if message["role"] == "user":
        content = _SOURCES.sub("", content, count=1) or content
    return [message["role"], content.strip(), _calls(message)]


def _calls(message: Message) -> list[list[str]]:
    """The tool calls of a message, without their ids."""
    calls = message.get("tool_calls") or []
    return [[call["function"]["name"], json.dumps(call_arguments(call), sort_keys=True)] for call in calls]


def _reply_of(turn: Turn) -> Message:
    return {"role": "assistant", "content": turn.reply, "tool_calls": list(turn.tool_calls)}


def _without_reasoning(text: str, think_end: str | None) -> str:
    return text.rpartition(think_end)[2] if think_end else text


def _joined(first: Message, second: Message) -> Message:
    both: Message = {**first, "content": "\n".join(filter(None, (first["content"], second["content"])))}
    if calls := [*(first.get("tool_calls") or []), *(second.get("tool_calls") or [])]:
        both["tool_calls"] = calls
    return both
