"""All memories of the server: session files in a folder, and private memories in RAM."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.serving.exchange import RefusedError
from mlx_deltamem.serving.folder import Folder
from mlx_deltamem.serving.memory import Memory, told
from mlx_deltamem.serving.service import MemoryInfo
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.history import History

DAMAGED = "memory_damaged"
# Each request without a memory is compared with these.
_MOST_PRIVATE = 256


class Memories:
    """The memories of a folder, and private ones. Those that are used are in RAM.

    Args:
        model: The attached model.
        tokenizer: Its tokenizer.
        folder: The folder of the session files. It is made if it is missing.
        history, write: The settings of a new memory.
        most_bytes: The size of the memories in RAM, beyond which the least recently used ones leave it.

    Attributes:
        default_write: The setting `write` of a new memory.

    Raises:
        ValueError: Another server uses the folder.
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        folder: Path,
        history: History,
        write: str,
        most_bytes: int,
    ):
        self._folder = Folder(folder, world_of(model))
        self._model, self._tokenizer = model, tokenizer
        self._history, self.default_write = history, write
        self._most_bytes = most_bytes
        self._loaded: dict[str, Memory] = {}
        self._private: dict[int, Memory] = {}
        self._numbers = count()
        # By name, the time of the file and what was in it.
        self._infos: dict[str, tuple[int, MemoryInfo]] = {}
        self._uses = 0

    def close(self) -> None:
        """Give the folder free."""
        self._folder.close()

    def names(self) -> list[str]:
        """The names of all memories of the folder."""
        return self._folder.names()

    def get(self, name: str, make: bool = False) -> Memory:
        """A memory, which is loaded if it is not in RAM.

        Args:
            name: Its name.
            make: Make an empty one if there is none. It gets its file with its first turn.

        Raises:
            RefusedError: There is no such memory, its file is damaged or of another model, or it is the file of another
                spelling of the name.
        """
        memory = self._loaded.get(name)
        if memory is not None and not make and not self._exists(name):
            # A request has made it and has added nothing.
            memory = None
        listeners = [] if memory is None else memory.listeners
        # The time before it is read: if it is saved meanwhile, it is read again next time.
        written_at = self._folder.written_at(name)
        if memory is not None and not memory.has_work and written_at not in (None, memory.written_at):
            # Another program has saved the file. (A file that is gone is saved again.)
            memory = None
        if memory is None:
            self._check_spelling(name)
            path = self._folder.file(name)
            if written_at is not None:
                memory = Memory(name, self._load(path), path)
                memory.written_at = written_at
                memory.listeners = listeners
                memory.changed()
            elif make:
                memory = Memory(name, self.new_chat(), path)
            else:
                raise RefusedError(404, "memory_not_found", f"there is no memory {name}")
            self._loaded[name] = memory
        self.used(memory)
        return memory

    def existing(self, name: str) -> Memory:
        """The memory for a request with If-Match, which expects that it is there.

        Raises:
            RefusedError: There is none, or its file is damaged or of another model.
        """
        if not self._exists(name):
            raise RefusedError(412, "revision_mismatch", f"there is no memory {name}, and If-Match expects one")
        return self.get(name)

    def new_private(self, write: str | None = None) -> Memory:
        """A new private memory."""
        chat = self.new_chat()
        if write is not None:
            chat.write = write
        memory = Memory(None, chat, None)
        for key in list(self._private)[: max(0, len(self._private) - _MOST_PRIVATE + 1)]:
            if not self._private[key].is_in_use:
                del self._private[key]
        self._private[next(self._numbers)] = memory
        self.used(memory)
        return memory

    def private(self) -> Iterator[Memory]:
        """The private memories, the last used one first."""
        return iter(sorted(self._private.values(), key=lambda memory: -memory.last_used))

    def used(self, memory: Memory) -> None:
        """Note that a memory is used, and let others leave RAM if there are too many."""
        self._uses += 1
        memory.last_used = self._uses
        memory.count()
        total = 0
        for other in sorted(self.loaded(), key=lambda each: -each.last_used):
            total += other.counted
            # All that a named memory holds is in its file.
            if total > self._most_bytes and other is not memory and not other.is_in_use:
                self._loaded = {name: each for name, each in self._loaded.items() if each is not other}
                self._private = {number: each for number, each in self._private.items() if each is not other}

    def create(self, name: str, history: History | None, write: str | None) -> Memory:
        """Make an empty memory.

        Raises:
            RefusedError: There is one of the name, or it cannot be saved.
        """
        self._check_free(name)
        chat = self.new_chat()
        if history is not None:
            chat.history = history
        if write is not None:
            chat.write = write
        return self._added(name, chat)

    def fork(self, memory: Memory, name: str) -> Memory:
        """Copy a memory under a new name.

        Raises:
            RefusedError: There is one of the name, or it cannot be saved.
        """
        self._check_free(name)
        return self._added(name, memory.chat.fork())

    def delete(self, memory: Memory) -> None:
        """Delete a memory and its file.

        Raises:
            RefusedError: The file cannot be deleted. The memory is unchanged.
        """
        if memory.name is not None:
            self._folder.remove(memory.name)
            self._loaded.pop(memory.name, None)
        memory.is_unsaved, memory.is_deleted = False, True
        for listener in list(memory.listeners):
            listener({"event": "deleted"})

    def delete_damaged(self, name: str) -> None:
        """Delete the file of a memory that cannot be loaded. Another client may have replaced it in the meantime."""
        memory = self._loaded.get(name)
        if memory is None:
            self._folder.remove(name)
        else:
            self.delete(memory)

    def exported(self, memory: Memory) -> bytes:
        """The session file of a memory.

        Raises:
            RefusedError: It cannot be saved.
            OSError: It cannot be read.
        """
        if memory.name is None:
            raise RuntimeError("a private memory has no file")
        if memory.is_unsaved or not self._folder.has(memory.name):
            memory.save()
        return self._folder.content(memory.name)

    def replace(self, name: str, content: bytes) -> Memory:
        """Make or replace a memory from the content of a session file. A damaged memory is replaced too.

        Raises:
            RefusedError: It is not a session of this model, or cannot be saved. The memory is then unchanged.
        """
        try:
            with self._folder.temporary(content) as temporary:
                chat = self._load(temporary).fork()
        except OSError as error:
            raise RefusedError(507, "storage", f"the session was not saved: {error.strerror}") from None
        try:
            old = self.get(name) if self._exists(name) else None
        except RefusedError as error:
            if error.code != DAMAGED:
                raise
            with self._folder.set_aside(name):
                return self._added(name, chat)
        if old is None:
            return self._added(name, chat)
        before = old.chat.fork()
        old.chat.take_over(chat)
        try:
            old.save()
        except RefusedError:
            old.chat.take_over(before)
            raise
        old.changed()
        return old

    def all_names(self) -> list[str]:
        """The names of all memories: those of the folder, and those that have something but no file yet."""
        return sorted({*self.names(), *filter(self._exists, self._loaded)})

    def infos(self, progress: Callable[[int, int], None]) -> list[MemoryInfo]:
        """All memories. A file that cannot be read is left out.

        Args:
            progress: Called before each file is read, with the number of memories that are done, and of all.
        """
        found, names = [], self.all_names()
        for number, name in enumerate(names):
            if name in self._loaded:
                found.append(self._loaded[name].info())
                continue
            progress(number, len(names))
            with suppress(RefusedError, OSError):
                found.append(self._info(name))
        return found

    def _info(self, name: str) -> MemoryInfo:
        """The memory of a file, which does not stay in RAM."""
        written = self._folder.written_at(name)
        if written is None:
            raise FileNotFoundError(f"there is no file of memory {name}")
        known = self._infos.get(name)
        if known is None or known[0] != written:
            info = Memory(name, self._load(self._folder.file(name)), None).info()
            known = self._infos[name] = written, replace(info, loaded=False, saved=True)
        return known[1]

    def new_chat(self) -> ChatSession:
        """An empty chat with the settings of a new memory."""
        return ChatSession(self._model, self._tokenizer, history=self._history, write=self.default_write)

    def loaded_one(self, name: str) -> Memory | None:
        """The memory of a name if it is in RAM."""
        return self._loaded.get(name)

    def loaded(self) -> list[Memory]:
        """The memories that are in RAM, the private ones among them."""
        return [*self._loaded.values(), *self._private.values()]

    def _added(self, name: str, chat: ChatSession) -> Memory:
        memory = Memory(name, chat, self._folder.file(name))
        memory.save()
        self._loaded[name] = memory
        self.used(memory)
        return memory

    def _exists(self, name: str) -> bool:
        """Whether there is a memory. One that a request has made does not count before something is added to it."""
        memory = self._loaded.get(name)
        is_used = memory is not None and (bool(memory.chat.turns) or memory.is_in_use)
        return is_used or self._folder.has(name)

    def _check_spelling(self, name: str) -> None:
        if other := self._folder.other_spelling(name):
            raise RefusedError(
                409,
                "memory_exists",
                f"there is a memory {other}, and this disk takes {name} for the same name; use {other}",
            )

    def _check_free(self, name: str) -> None:
        self._check_spelling(name)
        if self._exists(name):
            raise RefusedError(409, "memory_exists", f"there is a memory {name} already; expected a new name")

    def _load(self, path: Path) -> ChatSession:
        try:
            return ChatSession.load(self._model, self._tokenizer, path)
        except ValueError as error:
            raise RefusedError(422, DAMAGED, f"the memory cannot be used: {told(error, path)}") from None
        except OSError as error:
            raise RefusedError(500, "storage", f"the memory cannot be read: {error.strerror}") from None
