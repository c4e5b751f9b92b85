"""Ctrl-C while a command starts or ends. Its imports take seconds, and a traceback of them helps nobody."""

import atexit
import os
import signal
import sys
from pathlib import Path
from types import FrameType

# As shells give it to a program that an interrupt has ended.
INTERRUPTED = 130


def end_at_once(_: int, __: FrameType | None) -> None:
    """End the process with the exit code of an interrupt; a handler for signals. Nothing has begun, or all is done."""
    os._exit(INTERRUPTED)


def is_command(arguments: list[str]) -> bool:
    """Whether a process runs a command of this package.

    Args:
        arguments: Its command line with the interpreter: `python -m mlx_deltamem ...` or
            `python bin/mlx_deltamem.chat ...`.
    """
    begin = arguments[1:3]
    named = begin[1:] if begin[:1] == ["-m"] else begin[:1]
    return any(Path(name).name.partition(".")[0] == "mlx_deltamem" for name in named)


# A program that imports this package keeps its own handler.
if is_command(sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
    # At its very end, Python gives the default handler back, which would kill a process that has done its work.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
