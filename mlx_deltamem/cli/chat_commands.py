"""The commands of the terminal chat: lines that begin with `/`."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager

from mlx_lm.generate import GenerationResponse
from rich.markup import escape

from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.entered import checked_message
from mlx_deltamem.cli.file_commands import FileCommands
from mlx_deltamem.cli.memory_commands import MemoryCommands
from mlx_deltamem.cli.numbers import typed_number
from mlx_deltamem.cli.opening import ReplyOptions
from mlx_deltamem.options.rule import shown
from mlx_deltamem.sessions.reading.prefill import Progress, window
from mlx_deltamem.sessions.turns.writing import ALL, NONE
from mlx_deltamem.show.console import Console

_LONGEST_SHOWN = 200

HELP = """\
/help              print this list
/undo              take the last turn back
/edit N TEXT       change message N; the other messages and the replies stay and are run again
/messages          print the chat so far, with the numbers for /edit
/retry             get another reply to the last message
/fork              go on in a copy of this chat; /fork N goes to copy N
/branch N          go on from reply N in a copy of this chat; all that came later stays in this one
/new               begin a new chat; this one stays
/name [TITLE]      give this chat a title
/remember X        write the file X, or the text X, into the memory, without a reply
/history [X]       what the model sees of earlier turns: full, none, or a number of tokens
/write [X]         what is written into the memory: all, after, user, assistant or none
/readonly          do as /write none; again: return to the mode before
/compare QUESTION  ask with the memory and without; the chat stays as it is
/memory            draw the memory and the effect of the last turn
/save [FILE]       save the chat; with FILE, this becomes the chat's file
/load FILE         go on with a saved chat
/export FILE       write the messages to a .json or .md file
/import FILE       read the messages of such a file into a new chat; the model reads all of them
/reset             forget everything but the system prompt
/quit              leave (so does Ctrl-D)
As in mlx_lm.chat, q leaves, r forgets and h prints this list.
A chat that has a file is saved after every turn. Ctrl-C stops a reply.
A line that ends in \\ goes on in the next one; lines between \"\"\" and \"\"\" are one
message, which may begin with /."""

Responses = Generator[GenerationResponse, None, None]
# Prints a reply. The argument generates it and takes a progress callback for the tokens of the message. The result is
# False if Ctrl-C stopped the reply before its first token.
ShowReply = Callable[[Callable[[Progress], Responses]], bool]


class LeavingError(Exception):
    """The user wants to leave."""


class ChatCommands:
    """The commands of one terminal.

    Args:
        copies: The chats of the terminal.
        options: The options of replies.
        console: The console for everything but the replies.
        show_reply: Prints a reply.
        stoppable: A context in which Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(
        self,
        copies: Copies,
        options: ReplyOptions,
        console: Console,
        show_reply: ShowReply,
        stoppable: Callable[[], AbstractContextManager[None]],
    ):
        self._copies = copies
        self._options = options
        self._console = console
        self._show_reply = show_reply
        self._stoppable = stoppable
        memory = MemoryCommands(copies, options, console, self.say, stoppable)
        files = FileCommands(copies, console, self.say, stoppable)
        self._actions: dict[str, Callable[[], None]] = {
            "/help": lambda: self.say(HELP),
            "/undo": self._undo,
            "/messages": self._messages,
            "/retry": self._retry,
            "/readonly": memory.toggle_read_only,
            "/memory": memory.show,
            "/new": files.new,
            "/reset": self._reset,
            "/quit": self._quit,
        }
        self._actions_on: dict[str, Callable[[str], None]] = {
            "/edit": self._edit,
            "/fork": self._fork,
            "/branch": files.branch,
            "/name": files.name,
            "/save": files.save,
            "/load": files.load,
            "/export": files.export,
            "/import": files.import_,
            "/remember": memory.remember,
            "/history": memory.history,
            "/write": memory.write,
            "/compare": memory.compare,
        }

    @property
    def label(self) -> str:
        """The text before the prompt: the number of the copy if there are several, and what is written unless all."""
        parts = [str(self._copies.number)] if len(self._copies) > 1 else []
        mode = self._copies.chat.write
        write = {ALL: "", NONE: "read only"}.get(mode, f"write {mode}")
        return " ".join([*parts, write]).strip()

    def do(self, line: str) -> None:
        """Run the command in a line that begins with `/`.

        Raises:
            ValueError, OSError: There is no such command, or it failed; nothing has changed.
            LeavingError: The user wants to leave.
        """
        name, rest = (*line.split(maxsplit=1), "")[:2]
        if name in self._actions_on:
            self._actions_on[name](rest.strip())
        elif name not in self._actions:
            raise ValueError(
                f'there is no command {name}; /help lists them (between """ lines, a message may begin with /)'
            )
        elif rest:
            raise ValueError(f"{name} takes nothing after it, but got {rest!r}")
        else:
            self._actions[name]()

    def answer(self, text: str) -> None:
        """Send a message and print the reply.

        Raises:
            ValueError, OSError: The message was not sent, or the chat was not saved.
        """
        text = self._checked(text)

        def reply(progress: Progress) -> Responses:
            yield from self._copies.chat.stream(text, prompt_progress_callback=progress, **self._options)

        if self._show_reply(reply):
            self._copies.changed()
        else:
            self.say("(stopped before the reply began; the message was not sent)")

    def save_all(self) -> list[Exception]:
        """Save all chats that have a file; returns the errors of those that could not be saved."""
        return self._copies.save_all(lambda file: self.say(f"saved to {file}"))

    def say(self, text: str) -> None:
        """Print a text that is not the model's."""
        self._console.print(escape(text), style="dim")

    def _undo(self) -> None:
        text = self._copies.chat.undo()
        self.say(f"took back: {_shortened(text)}")
        self._copies.changed()

    def _edit(self, rest: str) -> None:
        number, text = (*rest.split(maxsplit=1), "", "")[:2]
        index = typed_number(number)
        if index is None:
            raise ValueError(f"/edit got {shown(rest)}; expected the number of a message (/messages) and its new text")
        text = self._checked(text)
        try:
            with self._stoppable(), self._console.status(""):
                self._copies.chat.edit(index, text)
        except KeyboardInterrupt:
            self.say("(stopped; the messages are as they were)")
            return
        self.say(f"changed message {index}; the others, and the replies, are as they were (/retry asks anew)")
        self._copies.changed()

    def _messages(self) -> None:
        chat = self._copies.chat
        for index, message in enumerate(chat.messages):
            calls = [f"(calls {call['function']['name']})" for call in message.get("tool_calls", ())]
            text = escape(" ".join(filter(None, (message["content"], *calls))))
            self._console.print(f"[bold]{index} {message['role']}:[/] {text}", style="dim")
        for turn in chat.turns:
            if turn.remembered:
                tokens = len(turn.opening.ids)
                text = escape(_shortened(" ".join(turn.text.split())))
                self._console.print(f"[bold]remembered:[/] {text} ({tokens:,} tokens)", style="dim")
        if not chat.turns and not chat.messages:
            self.say("no messages yet")

    def _retry(self) -> None:
        def reply(progress: Progress) -> Responses:
            yield from self._copies.chat.stream_regenerate(prompt_progress_callback=progress, **self._options)

        if self._show_reply(reply):
            self._copies.changed()
        else:
            self.say("(stopped before the reply began; the last one stays)")

    def _fork(self, rest: str) -> None:
        if not rest:
            self._copies.fork()
            file = self._copies.file
            where = "it has no file yet (/save FILE)" if file is None else f"its file is {file}"
            self.say(f"this is copy {self._copies.number} of {len(self._copies)}; {where}")
            return
        number, count = typed_number(rest), len(self._copies)
        if number is None or not 1 <= number <= count:
            raise ValueError(
                f"there is no copy {_shortened(rest)}; " + (f"there are 1 to {count}" if count > 1 else "only one")
            )
        self._copies.number = number
        self.say(f"this is copy {number} of {count}")

    def _checked(self, text: str) -> str:
        """A message, checked before the chat changes."""
        chat = self._copies.chat
        return checked_message(text, "the message", window(chat.model), chat.tokenizer)

    def _reset(self) -> None:
        chat = self._copies.chat
        chat.reset()
        chat.title = ""
        self.say("forgotten")
        self._copies.changed()

    def _quit(self) -> None:
        raise LeavingError


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + " ..."
