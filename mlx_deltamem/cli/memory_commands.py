"""The commands of the terminal chat that are about the memory: what is written, what is seen, what it does."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from rich.console import Console

from mlx_deltamem.cli.remembered import to_remember
from mlx_deltamem.inspection.heat_map import memory_view
from mlx_deltamem.sessions.comparison import compare, side_by_side
from mlx_deltamem.sessions.history import FULL
from mlx_deltamem.sessions.history import NONE as NO_TEXT
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.writing import ALL, MEANINGS, NONE

_SEEN = {FULL: "all of their text", NO_TEXT: "nothing"}


class MemoryCommands:
    """Commands about the memory of the chat that goes on.

    Args:
        chat: Gives that chat.
        console: Where everything but the replies is written.
        say: Writes a line that is not the model's.
        changed: Called when the chat is not what it was.
        stoppable: Within it, Ctrl-C raises KeyboardInterrupt.
        options: As for `ChatSession.send`.
    """

    def __init__(
        self,
        chat: Callable[[], ChatSession],
        console: Console,
        say: Callable[[str], None],
        changed: Callable[[], None],
        stoppable: Callable[[], AbstractContextManager[None]],
        options: Mapping[str, object],
    ):
        self._chat = chat
        self._console = console
        self._say = say
        self._changed = changed
        self._stoppable = stoppable
        self._options = options
        # What was written before /readonly.
        self._write_before = ALL

    def toggle_read_only(self) -> None:
        """/readonly"""
        chat = self._chat()
        if chat.write == NONE:
            chat.write = self._write_before
            self._say(f"the memory is written again: {chat.write}")
        else:
            self._write_before, chat.write = chat.write, NONE
            self._say("the memory is read only")

    def write(self, mode: str) -> None:
        """/write [MODE]"""
        chat = self._chat()
        if mode:
            chat.write = mode
            self._changed()
        self._say(f"written into the memory: {chat.write} ({MEANINGS[chat.write]})")

    def history(self, history: str) -> None:
        """/history [HISTORY]"""
        chat = self._chat()
        if history:
            chat.history = history
            self._changed()
        seen = _SEEN.get(chat.history, f"their last {chat.history} tokens")
        self._say(f"seen of earlier turns, beside the memory: {chat.history} ({seen})")

    def remember(self, given: str) -> None:
        """/remember FILE|TEXT"""
        if not given:
            raise ValueError("/remember needs a file name, or a text")
        chat = self._chat()
        try:
            with self._stoppable(), self._console.status("") as status:
                chat.remember(
                    to_remember(given),
                    progress=lambda done, total: status.update(f"[dim]read {done} of {total} tokens[/]"),
                )
        except KeyboardInterrupt:
            self._say("(stopped; the memory is as it was)")
            return
        self._say(f"remembered {len(chat.turns[-1].opening.ids):,} tokens; /undo takes it back")
        self._changed()

    def compare(self, question: str) -> None:
        """/compare QUESTION"""
        if not question:
            raise ValueError("/compare needs a question")
        try:
            with self._stoppable(), self._console.status(""):
                replies = compare(self._chat(), question, **self._options)
        except KeyboardInterrupt:
            self._say("(stopped)")
            return
        self._console.print(side_by_side(replies))

    def show(self) -> None:
        """/memory"""
        chat = self._chat()
        self._console.print(memory_view(chat.memory, chat.drift[-1] if chat.drift else None, self._console))
