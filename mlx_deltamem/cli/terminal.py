"""The terminal of a chat: what the user types, Ctrl-C, and replies printed as they are generated."""

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from mlx_lm.generate import GenerationResponse
from rich.markup import escape

from mlx_deltamem.cli.chat_commands import ChatCommands, LeavingError, Responses
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.opening import ReplyOptions
from mlx_deltamem.options.mlx_lm_habits import CHAT_COMMANDS
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.reading.prefill import Progress
from mlx_deltamem.sessions.replies.replying import end_reply
from mlx_deltamem.show.console import Console
from mlx_deltamem.show.printable import on_one_line, printable
from mlx_deltamem.show.streams import keeping_output_failures

with contextlib.suppress(ImportError):
    # The import gives `input` a history and line editing.
    import readline

    if "libedit" not in (readline.__doc__ or ""):
        # Pasted lines become one message. Python turns this off.
        readline.parse_and_bind("set enable-bracketed-paste on")

_BLOCK = '"""'


class TerminalChat:
    """A chat in a terminal.

    Args:
        copies: The chats of the terminal.
        options: The options of replies.
        console: The console for everything but the replies.
    """

    def __init__(self, copies: Copies, options: ReplyOptions, console: Console):
        self._console = console
        self._ranks = world()
        self._ctrl_c = _CtrlC()
        # Several ranks cannot be stopped at any place: all must come to the same one.
        stoppable = self._ctrl_c.raising if self._ranks.is_alone else contextlib.nullcontext
        self._commands = ChatCommands(copies, options, console, self._show_reply, stoppable)
        self._is_interactive = self._ranks.first(sys.stdin.isatty)
        self._step = options["prefill_step_size"]

    def run(self) -> None:
        """Answer until the user leaves.

        Raises:
            ValueError, OSError: A chat was not saved. On a terminal the user was told, and left all the same.
        """
        with self._ctrl_c.handled() if self._ranks.is_first else contextlib.nullcontext():
            refused = False
            while True:
                try:
                    self._do_next()
                    refused = False
                except LeavingError:
                    errors = self._commands.save_all()
                    if not errors:
                        return
                    if refused or not self._is_interactive:
                        raise errors[0] from None
                    refused = True
                    for error in errors:
                        self._complain(error)
                    self._commands.say("/save FILE saves the chat elsewhere; /quit or Ctrl-D again leaves all the same")

    def _do_next(self) -> None:
        """Wait for the user's next message or command, and do it."""
        try:
            text, is_block = self._ranks.first(self._typed)
        except EOFError:
            self._end_line()
            raise LeavingError from None
        except KeyboardInterrupt:
            self._end_line()
            self._commands.say("(/quit or Ctrl-D leaves)")
            return
        try:
            # What was done is saved, whatever the terminal does.
            with keeping_output_failures():
                self._answer(text, is_block)
        except (LeavingError, BrokenPipeError):
            raise
        except Exception as error:
            if not (self._ranks.is_alone or isinstance(error, ValueError | OSError)):
                # Perhaps it is this rank's alone. The others would wait for it.
                raise
            # No error may end the program: the chat may be in no file.
            self._complain(error)

    def _answer(self, text: str, is_block: bool) -> None:
        """Do the command in a text, or send it as a message."""
        if not is_block:
            text = CHAT_COMMANDS.get(text.strip(), text)
        if text.startswith("/") and not is_block:
            self._commands.do(text)
        elif text.strip():
            self._commands.answer(text.strip())
        elif is_block:
            self._commands.say("(the message is empty; it was not sent)")

    def _typed(self) -> tuple[str, bool]:
        with self._ctrl_c.raising():
            return self._message()

    def _message(self) -> tuple[str, bool]:
        """Read one line or several; the second result is whether they stood between three quotes."""
        label = self._commands.label
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
        return input(prompt if self._is_interactive else "")

    def _end_line(self) -> None:
        """Begin a new line after the prompt."""
        if self._is_interactive:
            self._console.print()

    def _show_reply(self, reply: Callable[[Progress], Responses]) -> bool:
        """Print a reply as it is generated; it is a `ShowReply`."""
        self._ctrl_c.pressed = False
        response, stopped = None, False
        with self._console.status("") as status:

            def progress(done: int, total: int) -> None:
                if self._ranks.share(self._ctrl_c.pressed) and done < total:
                    raise KeyboardInterrupt
                if total > self._step:
                    status.update(f"[dim]read {done} of {total} tokens; Ctrl-C stops at the next {self._step}[/]")

            try:
                with contextlib.closing(reply(progress)) as responses:
                    for response in responses:
                        status.stop()
                        sys.stdout.write(printable(response.text))
                        sys.stdout.flush()
                        if stopped := self._ranks.share(self._ctrl_c.pressed):
                            end_reply(responses)
                            break
            except KeyboardInterrupt:
                return False
        sys.stdout.write("\n")
        if response is not None:
            self._commands.say(_speeds(response) + (" · stopped" if stopped else ""))
        return True

    def _complain(self, error: Exception) -> None:
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        self._console.print(f"error: {kind}{escape(on_one_line(error))}", style="yellow", soft_wrap=True)


class _CtrlC:
    """Ctrl-C. It is recorded, and raises KeyboardInterrupt only in places where that leaves nothing half done.

    Attributes:
        pressed: Whether Ctrl-C was pressed since this was last set to False.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._raises = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """A context in which this class handles Ctrl-C."""
        before = signal.signal(signal.SIGINT, self._press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """A context in which Ctrl-C raises KeyboardInterrupt."""
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


def accept_any_bytes() -> None:
    """Keep bytes that are not text in the encoding of the terminal from ending the chat: the message is refused."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _speeds(response: GenerationResponse) -> str:
    parts = [f"{response.generation_tokens} tokens", f"{response.generation_tps:.1f} tok/s"]
    if response.prompt_tps:
        parts.append(f"prompt {response.prompt_tps:.1f} tok/s")
    return " · ".join([*parts, f"peak {response.peak_memory:.2f} GB"])
