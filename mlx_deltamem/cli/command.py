"""What the commands share: how they fail, and how they say so."""

import functools
import os
import sys
import warnings
from collections.abc import Callable


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make a `main` that ends with one line and exit code 2 where it was given something it cannot work with.

    Ctrl-C ends it with exit code 130, as a shell expects. Warnings are one line too.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                main()
        except BrokenPipeError:
            # Whoever read the output has gone. Python would complain once more when it closes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (ValueError, OSError, NotImplementedError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return run


def standard_input(wanted: str) -> str:
    """All of standard input.

    Args:
        wanted: The name of what is expected there, for the error.

    Raises:
        ValueError: It is closed.
    """
    if sys.stdin is None:
        raise ValueError(f"standard input is closed; expected {wanted} there")
    return sys.stdin.read()


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as a user reads it, without the place in the code that it comes from."""
    print(f"warning: {message}", file=sys.stderr)
