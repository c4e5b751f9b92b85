"""The commands of the terminal chat about the memory: they write it, show it, and set what the model sees beside it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from weakref import WeakKeyDictionary

from rich.markup import escape
from rich.table import Table

from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.entered import checked_message
from mlx_deltamem.cli.opening import ReplyOptions
from mlx_deltamem.cli.remembered import to_remember
from mlx_deltamem.inspection.heat_map import memory_view
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.comparison import compare
from mlx_deltamem.sessions.reading.prefill import window
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.history import FULL, History
from mlx_deltamem.sessions.turns.history import NONE as NO_TEXT
from mlx_deltamem.sessions.turns.writing import ALL, MEANINGS, NONE
from mlx_deltamem.show.console import Console
from mlx_deltamem.show.progress import TimeLeft

_SEEN: dict[History, str] = {FULL: "all of their text", NO_TEXT: "nothing"}


class MemoryCommands:
    """The commands about the memory of the current chat.

    Args:
        copies: The chats of the terminal.
        options: The options of replies.
        console: The console for everything but the replies.
        say: Prints a line that is not the model's.
        stoppable: A context in which Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(
        self,
        copies: Copies,
        options: ReplyOptions,
        console: Console,
        say: Callable[[str], None],
        stoppable: Callable[[], AbstractContextManager[None]],
    ):
        self._copies = copies
        self._options = options
        self._console = console
        self._say = say
        self._stoppable = stoppable
        # The mode to return to when /readonly is given again, by chat and for other chats.
        self._usual = ALL if copies.chat.write == NONE else copies.chat.write
        self._write_before: WeakKeyDictionary[ChatSession, str] = WeakKeyDictionary()

    def toggle_read_only(self) -> None:
        """Run `/readonly`."""
        chat = self._copies.chat
        if chat.write == NONE:
            self._set_write(self._write_before.get(chat, self._usual))
            self._say(f"the memory is written again: {chat.write}")
        else:
            self._set_write(NONE)
            self._say("the memory is read only")

    def write(self, mode: str) -> None:
        """Run `/write [MODE]`."""
        chat = self._copies.chat
        if mode:
            self._set_write(mode)
        self._say(f"written into the memory: {chat.write} ({MEANINGS[chat.write]})")

    def history(self, history: str) -> None:
        """Run `/history [HISTORY]`."""
        chat = self._copies.chat
        if history:
            chat.history = history
            self._copies.changed()
        seen = _SEEN.get(chat.history, f"their last {chat.history} tokens")
        self._say(f"seen of earlier turns, beside the memory: {chat.history} ({seen})")

    def remember(self, given: str) -> None:
        """Run `/remember FILE` or `/remember TEXT`."""
        if not given:
            raise ValueError("/remember needs a file name, or a text")
        chat = self._copies.chat
        before, tokens = chat.turns, 0
        try:
            with self._stoppable(), self._console.status("") as status:
                left = TimeLeft()

                def show(done: int, total: int) -> None:
                    nonlocal tokens
                    tokens = total
                    status.update(f"[dim]read {done:,} of {total:,} tokens{left.after(done, total)}[/]")

                # Ctrl-C reaches the ranks of a command at different places of the text.
                chat.remember(to_remember(given), progress=show, keep_read=world().is_alone)
        except KeyboardInterrupt:
            if list(chat.turns) == list(before):
                self._say("(stopped; the memory is as it was)")
                return
            read = len(chat.turns[-1].opening.ids)
            self._say(f"(stopped after {read:,} of {tokens:,} tokens; the same again goes on, and /undo takes it back)")
            self._copies.changed()
            return
        self._say(f"remembered {len(chat.turns[-1].opening.ids):,} tokens; /undo takes it back")
        self._copies.changed()

    def compare(self, question: str) -> None:
        """Run `/compare QUESTION`."""
        if not question:
            raise ValueError("/compare needs a question")
        chat = self._copies.chat
        question = checked_message(question, "the question", window(chat.model), chat.tokenizer)
        try:
            with self._stoppable(), self._console.status(""):
                replies = compare(chat, question, **self._options)
        except KeyboardInterrupt:
            self._say("(stopped)")
            return
        self._console.print(_side_by_side(replies))

    def show(self) -> None:
        """Run `/memory`."""
        chat = self._copies.chat
        self._console.print(memory_view(chat.memory, chat.drift[-1] if chat.drift else None, self._console))

    def _set_write(self, mode: str) -> None:
        chat = self._copies.chat
        before, chat.write = chat.write, mode
        if before != NONE:
            self._write_before[chat] = before
        self._copies.changed()


def _side_by_side(replies: Mapping[str, str]) -> Table:
    """A table with a column for each reply."""
    table = Table(*map(escape, replies))
    table.add_row(*(escape(reply.strip()) for reply in replies.values()))
    return table
