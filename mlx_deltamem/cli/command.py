"""The errors, warnings and exit codes of all commands, and their standard input."""

import functools
import os
import sys
import warnings
from collections.abc import Callable


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the `main` of a command, so that expected errors end it with one line and an exit code.

    ValueError, OSError and NotImplementedError end it with exit code 2, and Ctrl-C with 130, as shells expect. Exit
    code 1 means that the reader of the output closed it. A warning is one line too.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                main()
                if sys.stdout is not None:
                    # What is still in the buffer may find that the reader has gone.
                    sys.stdout.flush()
        except BrokenPipeError:
            # Python closes standard output at exit, and would print an error about the closed pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (ValueError, OSError, NotImplementedError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return run


def standard_input(wanted: str) -> str:
    """Read all of standard input.

    Args:
        wanted: The name of the expected content, for the error.

    Raises:
        ValueError: Standard input is closed.
    """
    if sys.stdin is None:
        raise ValueError(f"standard input is closed; expected {wanted} there")
    return sys.stdin.read()


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning without its place in the code."""
    print(f"warning: {message}", file=sys.stderr)
