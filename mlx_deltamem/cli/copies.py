"""The chats of one terminal, and the files that they are saved to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.cli.kept import KeptChats
from mlx_deltamem.files.atomic import resolved
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.foreign.folder import foreign_format
from mlx_deltamem.sessions.session import ChatSession


@dataclass
class _Copy:
    """One chat.

    Attributes:
        chat: The chat.
        file: The file that it is saved to; None if it has none yet.
        is_saved: Whether the file holds the chat as it is.
        has_changed: Whether the chat has changed since it was made or saved.
    """

    chat: ChatSession
    file: Path | None
    is_saved: bool = False
    has_changed: bool = False


class Copies:
    """The chats of one terminal. The user talks to one of them, the current one; `/fork` makes others.

    Args:
        chat: The first chat.
        file: The file that it is saved to; None: the user wants no file unless `/save` names one.
        save_kv: Whether the files get the keys and values too.
        kept: The folder in which new chats are kept; None: they have no file. A chat of this folder gets its file with
            its first turn, and loses it when it is reset.
        is_saved: Whether the file holds the chat as it is.

    Attributes:
        number: The number of the current chat, from 1 to `len(copies)`. It may be set.
    """

    def __init__(
        self,
        chat: ChatSession,
        file: Path | None,
        save_kv: bool,
        kept: KeptChats | None = None,
        is_saved: bool = False,
    ):
        self._copies = [_Copy(chat, file, is_saved)]
        self._save_kv = save_kv
        self._kept = kept
        self._is_unkept = file is None
        self.number = 1

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def chat(self) -> ChatSession:
        """The current chat."""
        return self._current.chat

    @property
    def file(self) -> Path | None:
        """The file that the current chat is saved to; None if it has none yet."""
        return self._current.file

    def fork(self) -> None:
        """Add a copy of the current chat; it becomes the current one. It gets its file when it changes."""
        self._add(_Copy(self.chat.fork(), self._new_file()))

    def begin(self, chat: ChatSession, keep: bool = False) -> int | None:
        """Go on with another chat; it takes the place of a chat that would lose nothing.

        Without a folder of kept chats, it also takes the file of an empty chat: else it has no file yet.

        Args:
            chat: The chat, which is in no file yet.
            keep: Never take a place: both chats stay.

        Returns:
            The number of the chat before, if that was kept.
        """
        before = self._current
        if self._kept is None and before.file is not None and _is_empty(before.chat) and not keep:
            # The chat before may replace its file; a new object may not.
            before.chat.take_over(chat)
            before.is_saved = False
            return None
        return self._go_on_with(_Copy(chat, self._new_file()), keep)

    def load(self, file: Path) -> int | None:
        """Load a saved chat; it becomes the current one. It takes the place of a chat that would lose nothing.

        The files of other implementations are never written to. So such a chat gets a file as a new chat does.

        Returns:
            The number of the chat before, if that was kept.

        Raises:
            FileNotFoundError, ValueError, OSError: As in `ChatSession.load`, or there can be no new file; nothing has
                changed.
        """
        loaded = ChatSession.load(self.chat.model, self.chat.tokenizer, file)
        if world().first(lambda: foreign_format(resolved(file)) is not None):
            own = self._new_file()
            # Without a file of its own, nothing is lost as long as it does not change.
            return self._go_on_with(_Copy(loaded, own, is_saved=own is None))
        return self._go_on_with(_Copy(loaded, file, is_saved=True))

    def changed(self) -> None:
        """Save the current chat, which has changed, if it has a file.

        Raises:
            ValueError, OSError: As in `ChatSession.save`.
        """
        self._current.is_saved, self._current.has_changed = False, True
        if self._current.file is not None:
            self._save(self._current, self._current.file)

    def save(self, file: Path | None) -> Path | None:
        """Save the current chat.

        Args:
            file: The file that it is saved to from here on; None: its present file.

        Returns:
            The file; None if there is none now, because no empty chats are kept.

        Raises:
            ValueError, OSError: The chat has no file, or as in `ChatSession.save`.
        """
        file = file or self._current.file
        if file is None:
            raise ValueError("/save needs a file name; this chat has none yet")
        self._save(self._current, file)
        return None if self._is_forgotten(self._current, file) else file

    def save_all(self, saved: Callable[[Path], None]) -> list[Exception]:
        """Save all chats that have a file.

        Args:
            saved: Called with the file of each chat that is saved.

        Returns:
            The errors of the chats that could not be saved. A chat with unsaved turns and no file is one, unless the
            first chat began without a file.
        """
        errors: list[Exception] = []
        for number, copy in enumerate(self._copies, start=1):
            if copy.file is None:
                if copy.has_changed and copy.chat.turns and not self._is_unkept:
                    errors.append(self._no_file(number))
                continue
            try:
                if not copy.is_saved:
                    self._save(copy, copy.file)
                if not self._is_forgotten(copy, copy.file):
                    saved(copy.file)
            except (ValueError, OSError) as error:
                errors.append(error)
        return errors

    @property
    def _current(self) -> _Copy:
        return self._copies[self.number - 1]

    def _new_file(self) -> Path | None:
        kept = self._kept
        return None if kept is None else Path(world().first(lambda: str(kept.new_file())))

    def _go_on_with(self, copy: _Copy, keep: bool = False) -> int | None:
        """Make a chat the current one; returns the number of the chat before, if that was kept."""
        before, number = self._current, self.number
        if not keep and (before.is_saved or _is_empty(before.chat)):
            self._copies[number - 1] = copy
            return None
        self._add(copy)
        return number

    def _is_forgotten(self, copy: _Copy, file: Path) -> bool:
        """Whether nothing of a chat is to be in its file, because the user keeps no empty chats."""
        kept = self._kept
        is_kept = kept is not None and world().first(lambda: kept.holds(file))
        return is_kept and _is_empty(copy.chat)

    def _no_file(self, number: int) -> ValueError:
        name = "this chat" if len(self._copies) == 1 else f"copy {number}"
        how = "/save FILE saves it" if number == self.number else f"/fork {number} and then /save FILE save it"
        return ValueError(f"{name} is in no file (turns: {len(self._copies[number - 1].chat.turns)}); {how}")

    def _add(self, copy: _Copy) -> None:
        self._copies.append(copy)
        self.number = len(self._copies)

    def _save(self, copy: _Copy, file: Path) -> None:
        if self._is_forgotten(copy, file):
            copy.chat.delete(file)
        else:
            copy.chat.save(file, self._save_kv)
        copy.file, copy.is_saved, copy.has_changed = file, True, False


def _is_empty(chat: ChatSession) -> bool:
    return not chat.turns and not chat.state.memory_set
