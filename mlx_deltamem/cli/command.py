"""The errors, warnings, output and exit codes of all commands, and their standard input."""

import functools
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO, TypeVar

from mlx_deltamem.cli.starting import INTERRUPTED, end_at_once
from mlx_deltamem.files.temporary import ensure_temporary_folder
from mlx_deltamem.ranks.launched import is_launched, launched_rank
from mlx_deltamem.show.printable import on_one_line
from mlx_deltamem.show.streams import ShownStream, shown_streams

if TYPE_CHECKING:
    from mlx_deltamem.ranks.world import World

T = TypeVar("T")
# The first is as shells give it to a program that a closed pipe has ended.
_CLOSED_PIPE, _FAILED = 141, 2
# An error of one rank that no command expects, after which Python would print a traceback.
UNEXPECTED = 1


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the `main` of a command, so that expected errors end it with one line and an exit code.

    ValueError, OSError and NotImplementedError end it with exit code 2, Ctrl-C with 130, and a reader of the output who
    closed it with 141, as shells expect. A warning is one line too. What is printed is as in `ShownStream`.

    If MLX has started the command several times (`mlx.launch`), rank 0 alone runs it.
    """
    decorated = _decorated(main, _exit_code)

    @functools.wraps(main)
    def run() -> None:
        if launched_rank() == 0:
            decorated()

    return run


def command_of_ranks(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the `main` of a command that several ranks run together; for one rank it is as `command`.

    Rank 0 alone prints, and gets Ctrl-C. When a rank fails or is gone, all end, with its exit code.
    """
    return _decorated(main, _exit_code_of_ranks)


def _decorated(
    main: Callable[[], None], exit_code: Callable[[Callable[[], None], ShownStream], int | str | None]
) -> Callable[[], None]:
    @functools.wraps(main)
    def run() -> None:
        if isinstance(sys.stdout, ShownStream):
            # A command that another command runs.
            main()
            return
        try:
            with shown_streams() as output:
                code = exit_code(main, output)
        except KeyboardInterrupt:
            # Ctrl-C came when the command had ended.
            code = INTERRUPTED
        if code:
            sys.exit(code)

    return run


def standard_input(wanted: str) -> str:
    """Read all of standard input; of several ranks, that of rank 0.

    Args:
        wanted: The name of the expected content, for the error.

    Raises:
        ValueError: Standard input is closed, or is not text.
    """
    return _first(lambda: read_input(wanted))


def read_input(wanted: str) -> str:
    """As `standard_input`, in this rank alone."""
    _check_input(wanted)
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
    _first(lambda: _check_input(wanted))


def _first(action: Callable[[], T]) -> T:
    """As `World.first`."""
    if not is_launched():
        return action()
    # It imports MLX, which a command imports late.
    from mlx_deltamem.ranks.joining import world

    return world().first(action)


def _check_input(wanted: str) -> None:
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


def _exit_code_of_ranks(main: Callable[[], None], output: ShownStream) -> int | str | None:
    """Run a command in one of several ranks, and return its exit code when all ranks have ended."""
    if not is_launched():
        return _exit_code(main, output)
    # It imports MLX, which a command imports late.
    from mlx_deltamem.ranks.joining import join
    from mlx_deltamem.ranks.world import RankError

    try:
        joined = join()
    except OSError as error:
        print(f"error: {on_one_line(error)}", file=sys.stderr)
        return _FAILED
    if joined.is_alone:
        return _exit_code(main, output)
    said = io.StringIO()
    with one_voice(joined, said):
        try:
            code = _exit_code(main, output)
        except (Exception, RankError) as error:
            if isinstance(error, RuntimeError):
                # It may be MLX's, because another rank is gone.
                joined.wait_for_end()
            code = UNEXPECTED
            traceback.print_exc(file=sys.stderr)
            print(f"error: {type(error).__name__}: {on_one_line(error)}", file=sys.stderr)
        lines = said.getvalue().splitlines()
        message = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
        joined.leave(code if isinstance(code, int) else int(bool(code)), message)
    return code


@contextmanager
def one_voice(joined: "World", said: TextIO) -> Iterator[None]:
    """A context in which rank 0 alone prints. What others would print as errors and warnings goes to `said`.

    Ctrl-C reaches all ranks on one machine. Only rank 0 takes notice; it tells the others.
    """
    if joined.is_first:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(said):
        yield


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
