"""Chat with a model that has a memory, in a terminal."""

import argparse
import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from mlx_lm.generate import GenerationResponse
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from mlx_deltamem.adapters.hub import REFERENCE_ADAPTER
from mlx_deltamem.cli.chat_commands import ChatCommands, LeavingError
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.options import (
    DEFAULT_MODEL,
    add_chat_options,
    add_model_options,
    load_model,
    open_chat,
)
from mlx_deltamem.sessions.read import Progress
from mlx_deltamem.sessions.session import ChatSession

with contextlib.suppress(ImportError):
    # Importing it gives `input` a history and line editing.
    import readline

    if "libedit" not in (readline.__doc__ or ""):
        # Pasted lines are one message. Python turns this off.
        readline.parse_and_bind("set enable-bracketed-paste on")

_BLOCK = '"""'


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="mlx_deltamem.chat", description=__doc__)
    add_model_options(parser)
    add_chat_options(parser)
    return parser


class _CtrlC:
    """Ctrl-C: it is noted, and raises KeyboardInterrupt only where nothing can be left half done.

    Attributes:
        pressed: Whether it was pressed since this was last set to False.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._raises = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Within it, Ctrl-C does what this class says."""
        before = signal.signal(signal.SIGINT, self._press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within it, Ctrl-C raises."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _press(self, _: int, __: FrameType | None) -> None:
        self.pressed = True
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt


class TerminalChat:
    """One terminal: what is typed there, and what is shown.

    Args:
        chat: The chat to begin with.
        args: The command line.
        console: Where everything but the replies is written.
    """

    def __init__(self, chat: ChatSession, args: argparse.Namespace, console: Console):
        self.console = console
        self.ctrl_c = _CtrlC()
        self.commands = ChatCommands(chat, args, console, self._show_reply, self.ctrl_c.raising)
        self.is_interactive = sys.stdin.isatty()
        self.step: int = args.prefill_step_size

    def run(self) -> None:
        """Answer until the user leaves.

        Raises:
            ValueError, OSError: A chat could not be saved, and the user left all the same.
        """
        with self.ctrl_c.handled():
            refused = False
            while True:
                try:
                    self._do_next()
                    refused = False
                except LeavingError:
                    errors = self.commands.save_all()
                    if not errors:
                        return
                    if refused or not self.is_interactive:
                        raise errors[0] from None
                    refused = True
                    for error in errors:
                        self._complain(error)
                    self.commands.say("/save FILE saves the chat elsewhere; /quit or Ctrl-D again leaves all the same")

    def _do_next(self) -> None:
        """Do what the user types next."""
        try:
            with self.ctrl_c.raising():
                text, is_block = self._message()
        except EOFError:
            self._end_line()
            raise LeavingError from None
        except KeyboardInterrupt:
            self._end_line()
            self.commands.say("(/quit or Ctrl-D leaves)")
            return
        try:
            if text.startswith("/") and not is_block:
                self.commands.do(text)
            elif text.strip():
                self.commands.answer(text.strip())
            elif is_block:
                self.commands.say("(the message is empty; it was not sent)")
        except (LeavingError, BrokenPipeError):
            raise
        except Exception as error:
            # Whatever it is, a chat that may be in no file must not end by it.
            self._complain(error)

    def _message(self) -> tuple[str, bool]:
        """What the user types, one line or several, and whether it stood between three quotes."""
        label = self.commands.label
        lines = [self._line(f"{label}› ")]
        is_block = lines[0].strip() == _BLOCK
        # The end of the input ends a message too.
        with contextlib.suppress(EOFError):
            if is_block:
                lines = []
                while (line := self._line("… ")).strip() != _BLOCK:
                    lines.append(line)
            while not is_block and lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(self._line("… "))
        return "\n".join(lines), is_block

    def _line(self, prompt: str) -> str:
        return input(prompt if self.is_interactive else "")

    def _end_line(self) -> None:
        """Leave the line of the prompt."""
        if self.is_interactive:
            self.console.print()

    def _show_reply(self, reply: Callable[[Progress], Iterator[GenerationResponse]]) -> bool:
        """Write a reply as it is generated; False where Ctrl-C came before its first token."""
        self.ctrl_c.pressed = False
        response = None
        with self.console.status("") as status:

            def progress(done: int, total: int) -> None:
                if self.ctrl_c.pressed and done < total:
                    raise KeyboardInterrupt
                if total > self.step:
                    status.update(f"[dim]read {done} of {total} tokens; Ctrl-C stops at the next {self.step}[/]")

            try:
                with contextlib.closing(reply(progress)) as responses:
                    for response in responses:
                        status.stop()
                        sys.stdout.write(response.text)
                        sys.stdout.flush()
                        if self.ctrl_c.pressed:
                            break
            except KeyboardInterrupt:
                return False
        sys.stdout.write("\n")
        if response is not None:
            self.commands.say(_speeds(response) + (" · stopped" if self.ctrl_c.pressed else ""))
        return True

    def _complain(self, error: Exception) -> None:
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        self.console.print(f"error: {kind}{escape(str(error))}", style="yellow")


def _speeds(response: GenerationResponse) -> str:
    parts = [f"{response.generation_tokens} tokens", f"{response.generation_tps:.1f} tok/s"]
    if response.prompt_tps:
        parts.append(f"prompt {response.prompt_tps:.1f} tok/s")
    return " · ".join([*parts, f"peak {response.peak_memory:.2f} GB"])


def _take_any_text() -> None:
    """Let no character that the terminal's encoding lacks end the chat; a message that is no text is refused."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    model, tokenizer = load_model(args)
    chat = open_chat(model, tokenizer, args)
    _take_any_text()
    console = Console(highlight=False)
    facts = [f"model    {args.model or DEFAULT_MODEL}", f"adapter  {args.adapter or REFERENCE_ADAPTER}"]
    facts.append(f"history  {chat.history}")
    if args.session is not None:
        facts.append(f"session  {args.session} ({len(chat.messages)} messages)")
    console.print(Panel(escape("\n".join(facts)), title="mlx_deltamem.chat", title_align="left"))
    console.print("/help lists the commands", style="dim")
    TerminalChat(chat, args, console).run()


if __name__ == "__main__":
    main()
