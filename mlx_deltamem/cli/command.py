"""The errors, warnings, output and exit codes of all commands, and their standard input."""

import functools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mlx_deltamem.cli.starting import INTERRUPTED, end_at_once
from mlx_deltamem.files.temporary import ensure_temporary_folder
from mlx_deltamem.show.printable import on_one_line
from mlx_deltamem.show.streams import ShownStream, shown_streams

# The first is as shells give it to a program that a closed pipe has ended.
_CLOSED_PIPE, _FAILED = 141, 2


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the `main` of a command, so that expected errors end it with one line and an exit code.

    ValueError, OSError and NotImplementedError end it with exit code 2, Ctrl-C with 130, and a reader of the output who
    closed it with 141, as shells expect. A warning is one line too. What is printed is as in `ShownStream`.
    """

    @functools.wraps(main)
    def run() -> None:
        if isinstance(sys.stdout, ShownStream):
            # A command that another command runs.
            main()
            return
        try:
            with shown_streams() as output:
                code = _exit_code(main, output)
        except KeyboardInterrupt:
            # Ctrl-C came when the command had ended.
            code = INTERRUPTED
        if code:
            sys.exit(code)

    return run


def standard_input(wanted: str) -> str:
    """Read all of standard input.

    Args:
        wanted: The name of the expected content, for the error.

    Raises:
        ValueError: Standard input is closed, or is not text.
    """
    check_standard_input(wanted)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not {error.encoding.upper()} (byte {error.start + 1:,}); expected {wanted} there"
        ) from None


def check_standard_input(wanted: str) -> None:
    """Check that standard input can be read.

    Args:
        wanted: The name of the expected content, for the error.

    Raises:
        ValueError: Standard input is closed.
    """
    if sys.stdin is None:
        raise ValueError(f"standard input is closed; expected {wanted} there")


def _exit_code(main: Callable[[], None], output: ShownStream) -> int | str | None:
    """Run a command, print its error, and return its exit code."""
    with _noticed_ctrl_c() as was_pressed, warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            ensure_temporary_folder()
            code = _ended(main)
            # What is still in the buffer may find that the reader has gone.
            output.flush()
        except KeyboardInterrupt:
            return INTERRUPTED
        except (ValueError, OSError, NotImplementedError) as error:
            if was_pressed():
                # What was left undone may fail in its turn.
                return INTERRUPTED
            if isinstance(output.failure, BrokenPipeError):
                return _CLOSED_PIPE
            print(f"error: {on_one_line(error)}", file=sys.stderr)
            return _FAILED
        if was_pressed():
            return INTERRUPTED
        # rich ends a program itself when the pipe is closed.
        return _CLOSED_PIPE if isinstance(output.failure, BrokenPipeError) else code


def _ended(main: Callable[[], None]) -> int | str | None:
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return None


@contextmanager
def _noticed_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed.

    Libraries may end a KeyboardInterrupt, or raise another error while they handle it.
    """
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before not in (signal.default_int_handler, end_at_once):
        # Python delivers signals to the main thread only; and a process in the background ignores Ctrl-C.
        yield lambda: bool(pressed)
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning without its place in the code."""
    print(f"warning: {on_one_line(message)}", file=sys.stderr)
