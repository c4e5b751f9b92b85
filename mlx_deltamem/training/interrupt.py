"""Ctrl-C, and SIGTERM, as a wish to stop soon, noticed while MLX computes."""

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
    """Within it, Ctrl-C or SIGTERM calls `first`, and once more `second` and ends the process at once, with exit code
    130.

    Python lets a signal wait until it gets to run, and one evaluation of MLX's may take minutes; so both are called in
    a thread of their own. A process that was started with Ctrl-C ignored, as shells start background jobs of a script,
    notices it too. Nothing is noticed outside of the main thread, where Python takes no signals.
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
    # Each signal is a byte, its number.
    while number := reader.recv(1):
        if number[0] in _SIGNALS:
            seen += 1
            (first if seen == 1 else second)()
            if seen > 1:
                os._exit(_EXIT_CODE)
