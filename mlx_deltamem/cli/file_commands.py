"""The commands of the terminal chat about files and other chats: save, load, export, import, and begin anew."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.entered import check_session_file
from mlx_deltamem.cli.numbers import typed_number
from mlx_deltamem.files.atomic import check_absent, check_new_file, new_file, user_path
from mlx_deltamem.files.jsonl import read_json
from mlx_deltamem.files.regular import read_file
from mlx_deltamem.options.rule import shown
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.export.markdown import from_markdown, to_markdown
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.show.console import Console

_LARGEST_MARKDOWN = 64 << 20
_JSON, _MARKDOWN = ".json", ".md"


class FileCommands:
    """The commands about the files of the chats.

    Args:
        copies: The chats of the terminal.
        console: The console for everything but the replies.
        say: Prints a line that is not the model's.
        stoppable: A context in which Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(
        self,
        copies: Copies,
        console: Console,
        say: Callable[[str], None],
        stoppable: Callable[[], AbstractContextManager[None]],
    ):
        self._copies = copies
        self._console = console
        self._say = say
        self._stoppable = stoppable

    def save(self, rest: str) -> None:
        """Run `/save [FILE]`."""
        file = Path(rest) if rest else None
        check_session_file(file)
        saved = self._copies.save(file)
        self._say("an empty chat is not kept" if saved is None else f"saved to {saved}")

    def load(self, rest: str) -> None:
        """Run `/load FILE`."""
        if not rest:
            raise ValueError("/load needs a file name")
        before = self._copies.load(Path(rest))
        self._began(before, f"{len(self._copies.chat.messages)} messages, history {self._copies.chat.history}")
        file = self._copies.file
        if file is not None and file != Path(rest):
            self._say(f"its file is {file}; {rest} stays as it is")

    def name(self, title: str) -> None:
        """Run `/name [TITLE]`."""
        chat = self._copies.chat
        if title:
            chat.title = title
            self._copies.changed()
        self._say(f"this chat is called {chat.title!r}" if chat.title else "this chat has no title yet")

    def new(self) -> None:
        """Run `/new`."""
        chat = self._copies.chat
        empty = chat.fork()
        empty.reset()
        empty.title = ""
        self._began(self._copies.begin(empty), "a new chat")

    def branch(self, rest: str) -> None:
        """Run `/branch N`."""
        reply = typed_number(rest)
        if reply is None:
            raise ValueError(f"/branch got {shown(rest)}; expected the number of a reply (/messages)")
        try:
            with self._stoppable(), self._console.status(""):
                branch = self._copies.chat.fork(reply)
        except KeyboardInterrupt:
            self._say("(stopped)")
            return
        self._began(self._copies.begin(branch, keep=True), f"this chat goes on from reply {reply}")

    def export(self, rest: str) -> None:
        """Run `/export FILE`."""
        path = _path("/export", rest)
        ranks = world()
        ranks.first(lambda: _check_new(path))
        content = self._copies.chat.to_dict()
        text = to_markdown(content) if path.suffix == _MARKDOWN else json.dumps(content, ensure_ascii=False, indent=1)
        ranks.first(lambda: _write(path, text))
        self._say(f"exported to {path}, without the memory; /import reads the chat again")

    def import_(self, rest: str) -> None:
        """Run `/import FILE`."""
        path = _path("/import", rest)
        content = world().first(lambda: _content(path))
        chat = self._copies.chat
        # Markdown and plain messages do not say how the chat is to be read. A file may bring no template of its own.
        options = {name: value for name, value in chat.state.template.options.items() if name != "chat_template"}
        settings = {"history": chat.history, "write": chat.write, "template_options": options}
        if isinstance(content, list):
            content = {"messages": content}
        if isinstance(content, dict):
            content = {**settings, **content}
        try:
            with self._stoppable(), self._console.status("") as status:
                imported = ChatSession.from_dict(
                    chat.model,
                    chat.tokenizer,
                    content,
                    lambda done, total: status.update(f"[dim]read {done} of {total} turns; Ctrl-C stops[/]"),
                )
        except KeyboardInterrupt:
            self._say("(stopped; nothing was imported)")
            return
        self._began(self._copies.begin(imported), f"{len(imported.messages)} messages, history {imported.history}")
        self._copies.changed()

    def _began(self, before: int | None, what: str) -> None:
        """Say that another chat goes on, and whether it has no file.

        Args:
            before: The number of the chat before, if that was kept as a copy.
            what: What goes on.
        """
        kept = "" if before is None else f"; the chat before is copy {before} (/fork {before} goes back to it)"
        self._say(f"{what}{kept}")
        if self._copies.file is None:
            self._say("this chat has no file yet (/save FILE)")


def _path(command: str, name: str) -> Path:
    path = user_path(name)
    if path.suffix not in (_JSON, _MARKDOWN):
        raise ValueError(f"{command} got {name!r}; expected a file name that ends in {_JSON} or {_MARKDOWN}")
    return path


def _check_new(path: Path) -> None:
    check_absent(path)
    check_new_file(path)


def _write(path: Path, text: str) -> None:
    with new_file(path, mode=0o600) as temporary:
        # As bytes: line ends within messages stay as they are.
        temporary.write_bytes(text.encode())


def _content(path: Path) -> object:
    return from_markdown(_markdown_file(path)) if path.suffix == _MARKDOWN else read_json(path)


def _markdown_file(path: Path) -> str:
    try:
        # A reply may have a NUL character, and is exported with it.
        return read_file(path, _LARGEST_MARKDOWN).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; expected a chat in Markdown") from None
