"""Notices Ctrl-C and SIGTERM while MLX computes, so that a run can stop after its present step."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

_EXIT_CODE = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def noticed_interrupts(first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """Within it, the first Ctrl-C or SIGTERM calls `first`; the second calls `second` and exits with code 130.

    Python runs a signal handler only between its own instructions, and an evaluation by MLX may take minutes. So both
    functions are called in another thread. A process that was started with Ctrl-C ignored, like the background jobs of
    a shell script, notices it as well. Outside the main thread nothing is noticed, since Python delivers no signals
    there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader, first, second), daemon=True)
    with closing(reader), closing(writer):
        earlier = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        earlier_descriptor = signal.set_wakeup_fd(writer.fileno())
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier_descriptor)
            for number, handler in earlier.items():
                signal.signal(number, handler)
            writer.shutdown(socket.SHUT_WR)
            watcher.join()


def _watch(reader: socket.socket, first: Callable[[], None], second: Callable[[], None]) -> None:
    seen = 0
    # Python writes one byte for each signal: its number.
    while number := reader.recv(1):
        if number[0] in _SIGNALS:
            seen += 1
            (first if seen == 1 else second)()
            if seen > 1:
                os._exit(_EXIT_CODE)
