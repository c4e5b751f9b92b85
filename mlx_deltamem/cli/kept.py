"""The chats that `mlx_deltamem.chat` keeps by itself: session files in a folder, one for each chat."""

import json
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.cli.numbers import typed_number
from mlx_deltamem.files.atomic import new_file, resolved
from mlx_deltamem.files.jsonl import read_json
from mlx_deltamem.options.rule import shown
from mlx_deltamem.sessions.stored.decode import ChatTexts
from mlx_deltamem.sessions.stored.file import SUFFIX, read_texts

_MODELS = "models.json"
# Characters before and after what was searched for.
_AROUND = 30
# Characters of the first message, where a chat has no title.
_LONGEST_TITLE = 50
_NUMBER = re.compile(r"\d+")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class KeptChat:
    """A chat of the folder.

    Attributes:
        number: Its number in the list, from 1, the chat that was saved last.
        file: Its session file.
        saved: When it was saved, in seconds since 1970.
        texts: Its title and its texts.
    """

    number: int
    file: Path
    saved: float
    texts: ChatTexts

    @property
    def title(self) -> str:
        """Its title, or the beginning of the first message."""
        first = next((text for role, text in self.texts.messages if role == "user"), "")
        return self.texts.title or _shortened(first) or "(no message)"


@dataclass(frozen=True)
class Places:
    """The folder or Hub repo of a model and of its adapter, as the command line takes them."""

    model: str
    adapter: str


class KeptChats:
    """The chats of a folder, which only its owner may read.

    Args:
        folder: The folder. It is made when the first chat is kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def new_file(self) -> Path:
        """The name of the file for a new chat. The folder is made if it is missing.

        Raises:
            OSError: The folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.folder / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(2)}{SUFFIX}"

    def holds(self, file: Path) -> bool:
        """Whether a file is one of the folder."""
        return resolved(file).parent == resolved(self.folder)

    def all(self) -> tuple[list[KeptChat], list[Path]]:
        """The chats, the one that was saved last first; and the files that cannot be read."""
        found: list[tuple[float, Path, ChatTexts]] = []
        unreadable: list[Path] = []
        for file in self._files():
            try:
                found.append((file.stat().st_mtime, file, read_texts(file)))
            except (ValueError, OSError):
                unreadable.append(file)
        found.sort(key=lambda each: (-each[0], each[1]))
        chats = [KeptChat(number, file, saved, texts) for number, (saved, file, texts) in enumerate(found, start=1)]
        return chats, unreadable

    def find(self, name: str) -> KeptChat:
        """The chat of a number in the list, of a title or a part of it, or of a file's name; "" for the last one.

        A number that no chat has is taken for a title: a chat may be called 2026.

        Raises:
            ValueError: There is no such chat, or there are several.
        """
        chats, _ = self.all()
        if not chats:
            raise ValueError(f"no chat is kept in {self.folder}; begin one without --continue")
        wanted, number = name.casefold(), typed_number(name)
        fits = [chat for chat in chats if chat.number == number]
        fits = fits or [chat for chat in chats if name in (chat.file.name, chat.file.stem)]
        fits = fits or [chat for chat in chats if chat.title.casefold() == wanted]
        fits = fits or [chat for chat in chats if _has(chat.title.casefold(), wanted)]
        if not fits:
            raise ValueError(f"no chat is called {shown(name)} among {len(chats)}; --list prints them")
        if name and len(fits) > 1:
            numbers = ", ".join(str(chat.number) for chat in fits[:9])
            raise ValueError(
                f"{len(fits)} chats have {shown(name)} in their title (numbers {numbers}); name one by its number"
            )
        return fits[0]

    def last_of(self, origin: Origin) -> KeptChat:
        """The last chat that was made with a model, adapter and tokenizer.

        Raises:
            ValueError: There is none.
        """
        for chat in self.all()[0]:
            if _key(chat.texts.origin) == _key(origin):
                return chat
        raise ValueError(f"no chat with this model and adapter is kept in {self.folder}; --list prints those of all")

    def search(self, text: str) -> list[tuple[KeptChat, str, str]]:
        """The messages of all chats, and titles, that have a text in them, in whatever case.

        Returns:
            For each: the chat, the role (`title` for a title), and the part of the message around the text.
        """
        wanted = _folded(text)
        return [
            (chat, role, _around(_folded(said), _one_line(said), wanted))
            for chat in self.all()[0]
            for role, said in (("title", chat.texts.title), *chat.texts.messages)
            if wanted in _folded(said)
        ]

    def note_model(self, origin: Origin, places: Places) -> None:
        """Note where a model and an adapter are, so that their chats can go on without naming them.

        Raises:
            OSError: The folder cannot be written.
        """
        known = self._models()
        if known.get(_key(origin)) == vars(places):
            return
        with new_file(self.folder / _MODELS, mode=0o600) as temporary:
            temporary.write_text(json.dumps({**known, _key(origin): vars(places)}, indent=1), encoding="utf-8")

    def places_of(self, chat: KeptChat) -> Places | None:
        """Where the model and the adapter of a chat are; None if that is not known."""
        found = self._models().get(_key(chat.texts.origin))
        model, adapter = (found.get(name) if isinstance(found, dict) else None for name in ("model", "adapter"))
        return Places(model, adapter) if isinstance(model, str) and isinstance(adapter, str) else None

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [file for file in self.folder.iterdir() if file.suffix == SUFFIX and file.name[0] != "."]

    def _models(self) -> dict[str, object]:
        """The places by key. They are a convenience: a file that is damaged counts as none."""
        try:
            found = read_json(self.folder / _MODELS)
        except (ValueError, OSError):
            return {}
        return dict(found) if isinstance(found, dict) else {}


def _has(title: str, wanted: str) -> bool:
    """Whether a text is a part of a title. A number has to be a whole number there: 4 is no part of 2024."""
    return wanted in _NUMBER.findall(title) if wanted.isdecimal() else wanted in title


def _key(origin: Origin) -> str:
    return f"{origin.backbone} {origin.adapter} {origin.tokenizer}"


def _one_line(text: str) -> str:
    return _SPACES.sub(" ", text).strip()


def _folded(text: str) -> str:
    return _one_line(text).casefold()


def _around(folded: str, text: str, wanted: str) -> str:
    """The part of a text around what was searched for."""
    # A letter may become two when its case is folded. The folded text is shown then.
    shown = text if len(text) == len(folded) else folded
    place = folded.index(wanted)
    begin, end = max(0, place - _AROUND), place + len(wanted) + _AROUND
    return f"{'...' if begin else ''}{shown[begin:end]}{'...' if end < len(shown) else ''}"


def _shortened(text: str) -> str:
    line = _one_line(text)
    return line if len(line) <= _LONGEST_TITLE else line[:_LONGEST_TITLE].rstrip() + "..."
