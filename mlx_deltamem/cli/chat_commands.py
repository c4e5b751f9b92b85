"""What the commands of the terminal chat do, and the chats they do it to."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from mlx_lm.generate import GenerationResponse
from rich.console import Console
from rich.markup import escape

from mlx_deltamem.cli.memory_commands import MemoryCommands
from mlx_deltamem.cli.options import reply_options
from mlx_deltamem.sessions.read import Progress
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.writing import ALL, NONE

_LONGEST_SHOWN = 200

HELP = """\
/help              this list
/undo              take the last turn back
/edit N TEXT       change message N; the others stay as they are, the replies too, and are run again
/messages          the chat so far, with the numbers for /edit
/retry             another reply to the last message
/fork              go on in a copy of this chat; /fork N goes to copy N
/remember X        write the file X, or the text X, into the memory, without a reply
/history [X]       what the model sees of earlier turns: full, none, or a number of tokens
/write [X]         what is written into the memory: all, after, user, assistant or none
/readonly          as /write none; again: as it was before
/compare QUESTION  the same question with the memory and without, both only asked
/memory            draw the memory, and what the last turn did to it
/save [FILE]       save the chat; with FILE, it is saved there from then on
/load FILE         go on with a saved chat
/reset             forget everything but the system prompt
/quit              leave (so does Ctrl-D)
With a session file, the chat is saved after every turn. Ctrl-C stops a reply.
A line that ends in \\ goes on in the next one; lines between \"\"\" and \"\"\" are one
message, which may begin with /."""

# Shows a reply that a function generates which is given a progress callback; False where it was stopped before its
# first token.
ShowReply = Callable[[Callable[[Progress], Iterator[GenerationResponse]]], bool]


class LeavingError(Exception):
    """The user wants to leave."""


@dataclass
class _Copy:
    """One of the chats, the file it is saved to, and whether the file has all of it."""

    chat: ChatSession
    file: Path | None
    is_saved: bool = False


class ChatCommands:
    """The chats of one terminal, of which one goes on.

    Args:
        chat: The chat to begin with.
        args: The command line.
        console: Where everything but the replies is written.
        show_reply: Writes the replies.
        stoppable: Within it, Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(
        self,
        chat: ChatSession,
        args: argparse.Namespace,
        console: Console,
        show_reply: ShowReply,
        stoppable: Callable[[], AbstractContextManager[None]],
    ):
        self._copies = [_Copy(chat, args.session)]
        self._current = 0
        self._save_kv: bool = args.save_kv
        self._options = reply_options(args)
        self._console = console
        self._show_reply = show_reply
        self._stoppable = stoppable
        memory = MemoryCommands(lambda: self._chat, console, self.say, self._changed, stoppable, self._options)
        self._actions: dict[str, Callable[[], None]] = {
            "/help": lambda: self.say(HELP),
            "/undo": self._undo,
            "/messages": self._messages,
            "/retry": self._retry,
            "/readonly": memory.toggle_read_only,
            "/memory": memory.show,
            "/reset": self._reset,
            "/quit": self._quit,
        }
        self._actions_on: dict[str, Callable[[str], None]] = {
            "/edit": self._edit,
            "/fork": self._fork,
            "/save": self._save,
            "/load": self._load,
            "/remember": memory.remember,
            "/history": memory.history,
            "/write": memory.write,
            "/compare": memory.compare,
        }

    @property
    def label(self) -> str:
        """What the prompt says of the chat: which copy it is, and whether its memory is written."""
        parts = [str(self._current + 1)] if len(self._copies) > 1 else []
        write = {ALL: "", NONE: "read only"}.get(self._chat.write, f"write {self._chat.write}")
        return " ".join([*parts, write]).strip()

    def do(self, line: str) -> None:
        """Do what a line that begins with / says.

        Raises:
            ValueError, OSError: It cannot be done; nothing has changed.
            LeavingError: It says to leave.
        """
        name, rest = (*line.split(maxsplit=1), "")[:2]
        if name in self._actions_on:
            self._actions_on[name](rest.strip())
        elif name not in self._actions:
            raise ValueError(f'{name} is no command; /help lists them (between """ lines, a message may begin with /)')
        elif rest:
            raise ValueError(f"{name} takes nothing after it, but got {rest!r}")
        else:
            self._actions[name]()

    def answer(self, text: str) -> None:
        """Send a message and show the reply.

        Raises:
            ValueError, OSError: It cannot be sent, or the chat could not be saved.
        """

        def reply(progress: Progress) -> Iterator[GenerationResponse]:
            return self._chat.stream(text, prompt_progress_callback=progress, **self._options)

        if self._show_reply(reply):
            self._changed()
        else:
            self.say("(stopped before the reply began; the message was not sent)")

    def save_all(self) -> list[Exception]:
        """Save every chat that has a file; what went wrong."""
        errors: list[Exception] = []
        for copy in self._copies:
            if copy.file is None:
                continue
            try:
                if not copy.is_saved:
                    self._write(copy, copy.file)
                self.say(f"saved to {copy.file}")
            except (ValueError, OSError) as error:
                errors.append(error)
        return errors

    def say(self, text: str) -> None:
        """Write something that is not the model's."""
        self._console.print(escape(text), style="dim")

    @property
    def _chat(self) -> ChatSession:
        return self._copies[self._current].chat

    def _changed(self) -> None:
        """Save the chat, which is not what it was, if it has a file."""
        copy = self._copies[self._current]
        copy.is_saved = False
        if copy.file is not None:
            self._write(copy, copy.file)

    def _write(self, copy: _Copy, file: Path) -> None:
        copy.chat.save(file, self._save_kv)
        copy.file, copy.is_saved = file, True

    def _undo(self) -> None:
        text = self._chat.undo()
        self.say(f"took back: {_shortened(text)}")
        self._changed()

    def _edit(self, rest: str) -> None:
        number, text = (*rest.split(maxsplit=1), "", "")[:2]
        index = _number(number)
        if index is None:
            raise ValueError(f"/edit got {rest!r}; expected the number of a message (/messages) and its new text")
        try:
            with self._stoppable(), self._console.status(""):
                self._chat.edit(index, text)
        except KeyboardInterrupt:
            self.say("(stopped; the messages are as they were)")
            return
        self.say(f"changed message {index}; the others, and the replies, are as they were (/retry asks anew)")
        self._changed()

    def _messages(self) -> None:
        messages = self._chat.messages
        for index, message in enumerate(messages):
            self._console.print(f"[bold]{index} {message['role']}:[/] {escape(message['content'])}", style="dim")
        for turn in self._chat.turns:
            if turn.remembered:
                tokens = len(turn.opening.ids)
                text = escape(_shortened(" ".join(turn.text.split())))
                self._console.print(f"[bold]remembered:[/] {text} ({tokens:,} tokens)", style="dim")
        if not self._chat.turns and not messages:
            self.say("no messages yet")

    def _retry(self) -> None:
        def reply(progress: Progress) -> Iterator[GenerationResponse]:
            return self._chat.stream_regenerate(prompt_progress_callback=progress, **self._options)

        if self._show_reply(reply):
            self._changed()
        else:
            self.say("(stopped before the reply began; the last one stays)")

    def _fork(self, rest: str) -> None:
        count = len(self._copies)
        if rest:
            number = _number(rest)
            if number is None or not 1 <= number <= count:
                raise ValueError(
                    f"there is no copy {rest}; " + (f"there are 1 to {count}" if count > 1 else "only one")
                )
            self._current = number - 1
            self.say(f"this is copy {number} of {count}")
        else:
            self._go_to_new(_Copy(self._chat.fork(), None))
            self.say(f"this is copy {count + 1} of {count + 1}; it has no file yet (/save FILE)")

    def _go_to_new(self, copy: _Copy) -> None:
        self._copies.append(copy)
        self._current = len(self._copies) - 1

    def _save(self, rest: str) -> None:
        copy = self._copies[self._current]
        file = Path(rest) if rest else copy.file
        if file is None:
            raise ValueError("/save needs a file name; this chat has none yet")
        self._write(copy, file)
        self.say(f"saved to {file}")

    def _load(self, rest: str) -> None:
        if not rest:
            raise ValueError("/load needs a file name")
        loaded = _Copy(ChatSession.load(self._chat.model, self._chat.tokenizer, rest), Path(rest), is_saved=True)
        copy = self._copies[self._current]
        said = f"{len(loaded.chat.messages)} messages, history {loaded.chat.history}"
        if copy.is_saved or not copy.chat.segments.ids:
            self._copies[self._current] = loaded
        else:
            said += f"; the chat before is copy {self._current + 1} (/fork {self._current + 1} goes back to it)"
            self._go_to_new(loaded)
        self.say(said)

    def _reset(self) -> None:
        self._chat.reset()
        self.say("forgotten")
        self._changed()

    def _quit(self) -> None:
        raise LeavingError


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + " ..."


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
