"""Chat with a model that has a memory, in a terminal."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from mlx_lm.generate import GenerationResponse
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from mlx_deltamem.command import command
from mlx_deltamem.memory_view import memory_view
from mlx_deltamem.options import (
    DEFAULT_ADAPTER,
    DEFAULT_MODEL,
    add_chat_options,
    add_model_options,
    load_model,
    open_chat,
    reply_options,
)
from mlx_deltamem.session import ChatSession

with contextlib.suppress(ImportError):
    # Importing it gives `input` a history and line editing.
    import readline  # noqa: F401

HELP = """\
/help              this list
/undo              take the last turn back
/edit N TEXT       change message N and run again what follows (/messages shows the numbers)
/messages          the chat so far
/retry             another reply to the last message
/fork              go on in a copy of this chat; /fork N goes to copy N
/readonly          leave the memory as it is from now on; again: write it again
/memory            draw the memory, and what the last turn did to it
/save [FILE]       save the chat
/load FILE         go on with a saved chat
/reset             forget everything but the system prompt
/quit              leave (so does Ctrl-D); with a session file, the chat is saved
Ctrl-C stops a reply. A line that ends in \\ goes on in the next one;
lines between \"\"\" and \"\"\" are one message."""


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.chat", description=__doc__)
    add_model_options(parser)
    add_chat_options(parser)
    return parser


class _LeavingError(Exception):
    """The user wants to leave."""


class TerminalChat:
    """One terminal, and the chats in it.

    Args:
        chat: The chat to begin with.
        args: The command line.
        console: Where everything but the replies is written.
    """

    def __init__(self, chat: ChatSession, args: argparse.Namespace, console: Console):
        self.chats = [chat]
        self.current = 0
        # The file of each chat.
        self.files: list[Path | None] = [args.session]
        self.save_kv: bool = args.save_kv
        self.options = reply_options(args)
        self.console = console
        self.read_only = False
        self.interrupted = False

    @property
    def chat(self) -> ChatSession:
        return self.chats[self.current]

    def run(self) -> None:
        """Answer until the user leaves."""
        while True:
            try:
                text = self._message()
            except EOFError:
                break
            except KeyboardInterrupt:
                self._say("(/quit or Ctrl-D leaves)")
                continue
            if not text.strip():
                continue
            try:
                self._do(text.strip())
            except _LeavingError:
                break
            except (ValueError, OSError) as error:
                self._complain(error)
        for chat, file in zip(self.chats, self.files, strict=True):
            if file is not None:
                chat.save(file, self.save_kv)
                self._say(f"saved to {file}")

    def _do(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if not name.startswith("/"):
            self._answer(text)
            return
        action = {
            "/help": lambda _: self._say(HELP),
            "/undo": self._undo,
            "/edit": self._edit,
            "/messages": self._messages,
            "/retry": self._retry,
            "/fork": self._fork,
            "/readonly": self._toggle_read_only,
            "/memory": self._show_memory,
            "/save": self._save,
            "/load": self._load,
            "/reset": self._reset,
            "/quit": self._quit,
        }.get(name)
        if action is None:
            raise ValueError(f"{name} is no command; /help lists them (a message cannot begin with /)")
        action(rest.strip())

    def _answer(self, text: str) -> None:
        with self._stopping_at_ctrl_c():
            settings = self.options | {"read_only": self.read_only, "prompt_progress_callback": self._progress}
            self._print(self.chat.stream(text, **settings))
        if (file := self.files[self.current]) is not None:
            self.chat.save(file, self.save_kv)

    def _print(self, responses: Iterator[GenerationResponse]) -> None:
        response = None
        try:
            with contextlib.closing(responses):
                for response in responses:
                    sys.stdout.write(response.text)
                    sys.stdout.flush()
                    if self.interrupted:
                        break
        except KeyboardInterrupt:
            self._say("\n(stopped before the reply began; the message was not sent)")
            return
        sys.stdout.write("\n")
        if response is not None:
            self._say(
                f"{response.generation_tokens} tokens · {response.generation_tps:.1f} tok/s · "
                f"prompt {response.prompt_tps:.1f} tok/s · peak {response.peak_memory:.2f} GB"
                + (" · stopped" if self.interrupted else "")
            )

    def _progress(self, done: int, total: int) -> None:
        if self.interrupted and done < total:
            raise KeyboardInterrupt

    def _undo(self, _: str) -> None:
        text = self.chat.undo()
        self._say(f"took back: {text}")

    def _edit(self, rest: str) -> None:
        number, _, text = rest.partition(" ")
        if not number.isascii() or not number.isdigit():
            raise ValueError(f"/edit got {rest!r}; expected the number of a message and its new text")
        self.chat.edit(int(number), text)
        self._say(f"changed message {number}")

    def _messages(self, _: str) -> None:
        for index, message in enumerate(self.chat.messages):
            self._say(f"{index} {message['role']}: {message['content']}")

    def _retry(self, _: str) -> None:
        with self._stopping_at_ctrl_c():
            self._print(self.chat.stream_regenerate(prompt_progress_callback=self._progress, **self.options))

    def _fork(self, rest: str) -> None:
        if rest:
            if not rest.isdigit() or not 1 <= int(rest) <= len(self.chats):
                raise ValueError(f"there is no copy {rest}; there are 1 to {len(self.chats)}")
            self.current = int(rest) - 1
        else:
            self.chats.append(self.chat.fork())
            self.files.append(None)
            self.current = len(self.chats) - 1
        self._say(f"this is copy {self.current + 1} of {len(self.chats)}")

    def _toggle_read_only(self, _: str) -> None:
        self.read_only = not self.read_only
        self._say("the memory is read only" if self.read_only else "the memory is written again")

    def _show_memory(self, _: str) -> None:
        drift = self.chat.drift
        self.console.print(memory_view(self.chat.memory, drift[-1] if drift else None, self.console))

    def _save(self, rest: str) -> None:
        path = Path(rest) if rest else self.files[self.current]
        if path is None:
            raise ValueError("/save needs a file name; this chat has none yet")
        self.chat.save(path, self.save_kv)
        self.files[self.current] = path
        self._say(f"saved to {path}")

    def _load(self, rest: str) -> None:
        if not rest:
            raise ValueError("/load needs a file name")
        self.chats[self.current] = ChatSession.load(self.chat.model, self.chat.tokenizer, rest)
        self.files[self.current] = Path(rest)
        self._say(f"{len(self.chat.messages)} messages")

    def _reset(self, _: str) -> None:
        self.chat.reset()
        self._say("forgotten")

    def _quit(self, _: str) -> None:
        raise _LeavingError

    def _message(self) -> str:
        """What the user types: one line, or several."""
        prompt = f"{self.current + 1}› " if len(self.chats) > 1 else "› "
        line = input(prompt)
        if line.strip() == '"""':
            lines = []
            while (line := input("… ")).strip() != '"""':
                lines.append(line)
            return "\n".join(lines)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input("… "))
        return "\n".join(lines)

    @contextlib.contextmanager
    def _stopping_at_ctrl_c(self) -> Iterator[None]:
        """Within it, Ctrl-C asks the reply to stop at the next token, where the chat is whole."""

        def ask(_: int, __: FrameType | None) -> None:
            self.interrupted = True

        self.interrupted = False
        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _say(self, text: str) -> None:
        self.console.print(escape(text), style="dim")

    def _complain(self, error: Exception) -> None:
        self.console.print(f"error: {escape(str(error))}", style="yellow")


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    model, tokenizer = load_model(args)
    chat = open_chat(model, tokenizer, args)
    console = Console(highlight=False)
    facts = [f"model    {args.model or DEFAULT_MODEL}", f"adapter  {args.adapter or DEFAULT_ADAPTER}"]
    facts.append(f"history  {chat.history}")
    if args.session is not None:
        facts.append(f"session  {args.session} ({len(chat.messages)} messages)")
    console.print(Panel(escape("\n".join(facts)), title="mlx_deltamem.chat", title_align="left"))
    console.print("/help lists the commands", style="dim")
    TerminalChat(chat, args, console).run()


if __name__ == "__main__":
    main()
