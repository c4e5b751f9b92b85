"""A chat as Markdown, for people to read and to write. It has the texts only, not the settings.

Each text has a heading: `## System`, `## User`, `## Assistant`, or `## Remembered: user` for a text that was remembered
(`## Remembered too: ...` for its further messages). A line of a text that looks like such a heading has a backslash
before it, as Markdown writes it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mlx_deltamem.sessions.export.exported import FORMAT, VERSION

_LINE = r"## (?:System|User|Assistant|Remembered(?: too)?: (?:user|assistant|system|tool))[ \t]*\r?$"
_HEADING = re.compile(rf"^{_LINE}\n?", re.MULTILINE)
_TO_ESCAPE = re.compile(rf"^(?=\\*{_LINE})", re.MULTILINE)
_ESCAPED = re.compile(rf"^\\(?=\\*{_LINE})", re.MULTILINE)
# As a replacement of `re`, one backslash.
_BACKSLASH = r"\\"
_TITLE = re.compile(r"\A\ufeff?\s*# (.*)")


def to_markdown(content: Mapping[str, object]) -> str:
    """The Markdown of a dict of `ChatSession.to_dict`.

    Raises:
        ValueError: The chat has tool calls, results of tools, or several conversations, which Markdown cannot hold; or
            it has no text.
    """
    turns = cast(Sequence[Mapping[str, Any]], content["turns"])
    if len({turn["conversation"] for turn in turns if not turn["remembered"]}) > 1:
        raise ValueError("the chat has several conversations, and Markdown has one; export it to a .json file")
    blocks: list[tuple[str, str]] = []
    if content["system"] is not None:
        blocks.append(("System", str(content["system"])))
    for turn in turns:
        messages = turn["messages"]
        if turn["remembered"]:
            names = ["Remembered", *["Remembered too"] * (len(messages) - 1)]
            blocks += [
                (f"{name}: {message['role']}", message["content"])
                for name, message in zip(names, messages, strict=True)
            ]
            continue
        if turn["tool_calls"] or any(message["role"] != "user" for message in messages):
            raise ValueError("the chat has tools, and Markdown has texts only; export it to a .json file")
        blocks += [("User", message["content"]) for message in messages]
        blocks.append(("Assistant", turn["reply"]))
    if not blocks:
        raise ValueError("the chat has no text yet, and Markdown has nothing else; export it to a .json file")
    title = [f"# {content['title']}\n"] if content["title"] else []
    texts = [f"## {heading}\n\n{_TO_ESCAPE.sub(_BACKSLASH, text)}\n" for heading, text in blocks]
    return "\n".join([*title, *texts])


def from_markdown(text: str) -> dict[str, object]:
    """The dict, for `ChatSession.from_dict`, of a chat in Markdown.

    Raises:
        ValueError: There is no heading of a text, or a message has no reply, or a reply has no message.
    """
    if "\n" not in text.replace("\r\n", ""):
        # An editor on Windows has written all line ends so.
        text = text.replace("\r\n", "\n")
    headings = list(_HEADING.finditer(text))
    if not headings:
        raise ValueError("the Markdown has no heading such as `## User`; expected a chat as /export writes it")
    title = _TITLE.match(text[: headings[0].start()])
    reader = _Reader()
    ends = [heading.start() for heading in headings[1:]]
    for heading, end in zip(headings, [*ends, None], strict=True):
        said, _, role = heading[0].removeprefix("## ").strip().partition(": ")
        reader.add(said, role, _body(text[heading.end() : end], is_last=end is None))
    if reader.new:
        raise ValueError("the Markdown ends without `## Assistant`; expected a reply: take the last message out")
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": "" if title is None else title[1].strip(),
        "system": reader.system,
        "turns": reader.turns,
    }


class _Reader:
    """Makes turns of texts, in order.

    Attributes:
        system: The system prompt, or None.
        turns: The turns.
        new: The messages that have no reply yet.
    """

    def __init__(self) -> None:
        self.system: str | None = None
        self.turns: list[dict[str, Any]] = []
        self.new: list[dict[str, str]] = []

    def add(self, said: str, role: str, text: str) -> None:
        """Add a text.

        Args:
            said: The heading without the role: System, User, Assistant, Remembered or Remembered too.
            role: The role of a remembered text; empty for others.
            text: The text.

        Raises:
            ValueError: Such a text cannot stand there.
        """
        if said == "User":
            self.new.append({"role": "user", "content": text})
        elif said == "Assistant":
            if not self.new:
                raise ValueError("the Markdown has `## Assistant` without `## User` before it; expected a message")
            self.turns.append({"messages": self.new, "reply": text, "remembered": False})
            self.new = []
        elif said == "System":
            if self.turns or self.new or self.system is not None:
                raise ValueError("the Markdown has `## System` after another text; expected it at the beginning")
            self.system = text
        else:
            self._remember(said, role, text)

    def _remember(self, said: str, role: str, text: str) -> None:
        if self.new:
            raise ValueError(f"the Markdown has `## {said}` between a message and its reply; expected it before both")
        if said == "Remembered":
            self.turns.append({"messages": [], "remembered": True})
        elif not self.turns or not self.turns[-1]["remembered"]:
            raise ValueError("the Markdown has `## Remembered too` without `## Remembered` before it")
        self.turns[-1]["messages"].append({"role": role, "content": text})


def _body(text: str, is_last: bool) -> str:
    """The text between two headings, without the empty lines that `to_markdown` puts around it."""
    text = text.removeprefix("\n")
    for _ in range(1 if is_last else 2):
        text = text.removesuffix("\n")
    return _ESCAPED.sub("", text)
