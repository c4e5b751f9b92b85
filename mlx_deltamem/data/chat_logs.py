"""Make training records of a chat log: `mlx_deltamem.data chat-logs LOG OUTPUT`.

The log has an object with `messages` in OpenAI's form for each chat, as JSON lines or a JSON list. A record trains on
the last answer of a chat. The message before it is the question, and earlier messages go into the memory.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.data.episode_files import BAD, Found, Unusable, add_file_options, write_episodes
from mlx_deltamem.files.fields import given_fields, given_items, is_absent
from mlx_deltamem.files.jsonl import Json, json_records
from mlx_deltamem.files.text import check_text
from mlx_deltamem.sessions.text.messages import Message

NOT_TEXT = "with content other than text"

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOOL_ROLES = ("tool", "function")
_TEXT_PARTS = ("text", "input_text", "output_text")


class NotTextError(Exception):
    """A message has content other than text, such as an image."""


@dataclass
class ToolMessages:
    """The number of messages that were left out of chats: tool calls, and the results of tools."""

    left_out: int = 0


def chats(path: Path, answers: str, tools: ToolMessages) -> Iterator[Found | Unusable]:
    """Yield the chats of a log.

    Args:
        path: A .json or .jsonl file.
        answers: "last", or "all" to train on each answer whose question is not the first message.
        tools: Counts the messages of tools.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is a single JSON text that is not valid.
    """
    for record in json_records(path):
        if record.problem:
            yield Unusable(record.place, BAD, record.problem)
            continue
        try:
            messages = _messages(record.value, tools)
        except NotTextError:
            yield Unusable(record.place, NOT_TEXT)
        except ValueError as error:
            yield Unusable(record.place, BAD, str(error))
        else:
            yield from _episodes(record.place, messages, answers)


def _episodes(place: str, messages: list[Message], answers: str) -> Iterator[Found]:
    if answers == "last" or not messages:
        # A chat may have been left before the reply to its last message.
        answered = any(message["role"] == "assistant" for message in messages)
        while answered and messages[-1]["role"] == "user":
            messages = messages[:-1]
        yield Found(place, messages)
        return
    last = len(messages)
    ends = [end for end, message in enumerate(messages, start=1) if message["role"] == "assistant" or end == last]
    # The first question has nothing before it.
    for end in ends[1:] or [last]:
        yield Found(f"{place}, message {end}", messages[:end])


def _messages(record: Json, tools: ToolMessages) -> list[Message]:
    """Return the messages of a record, without those of tools.

    Raises:
        NotTextError: A message has content other than text.
        ValueError: The record is not a chat.
    """
    entries = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not an object with a list of messages")
    messages: list[Message] = []
    after_tool = False
    for number, entry in enumerate(entries, start=1):
        if is_absent(entry):
            continue
        try:
            message = _message(entry)
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
        if message is None:
            tools.left_out += 1
        else:
            _append(messages, message, after_tool)
        after_tool = message is None
    return messages


def _message(entry: Json) -> Message | None:
    """Return a message with its content as text; None for a message of a tool."""
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    entry = given_fields(entry)
    role = entry.get("role")
    if role in _TOOL_ROLES:
        return None
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"its role is not one of {', '.join((*_ROLES, *_TOOL_ROLES))}")
    text = _text(entry.get("content"))
    if not text.strip() and (entry.get("tool_calls") or entry.get("function_call")):
        return None
    return {"role": _ROLES[role], "content": text}


def _text(content: Json) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return check_text(content, "a text")
    if not isinstance(content, list):
        raise ValueError("its content is neither a text nor a list of parts")
    return "".join(_part(part) for part in given_items(content))


def _part(part: Json) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError("a part of its content is not an object with a type")
    if part["type"] not in _TEXT_PARTS:
        raise NotTextError
    text = part.get("text")
    if not isinstance(text, str):
        raise ValueError("a part of its content is a text without text")
    return check_text(text, "a text")


def _append(messages: list[Message], message: Message, after_tool: bool) -> None:
    """Add a message to a chat.

    It is joined to the last message if both are system prompts, or if both have the same role and there are only
    messages of tools between them.
    """
    is_system = message["role"] == "system"
    if is_system and not message["content"].strip():
        return
    if messages and messages[-1]["role"] == message["role"] and (is_system or after_tool):
        messages[-1]["content"] += "\n\n" + message["content"]
    else:
        messages.append(message)


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="mlx_deltamem.data chat-logs", description=__doc__)
    add_file_options(parser, "A chat log: .jsonl with one chat per line, or .json with a list of chats.")
    parser.add_argument(
        "--answers",
        choices=("last", "all"),
        default="last",
        help="Train on the last answer of each chat, or on all whose question is not the first message "
        "(default: last).",
    )
    return parser


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    tools = ToolMessages()
    write_episodes(chats(args.input, args.answers, tools), args)
    if tools.left_out:
        print(f"{tools.left_out:,} messages of tools were left out of the chats.")


if __name__ == "__main__":
    main()
