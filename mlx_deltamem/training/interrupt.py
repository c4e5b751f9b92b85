"""Ctrl-C as a wish to stop soon, noticed while MLX computes."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

_EXIT_CODE = 130


@contextmanager
def noticed_interrupts(first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """Within it, Ctrl-C calls `first`, and once more `second` and ends the process at once, with exit code 130.

    Python lets a signal wait until it gets to run, and one evaluation of MLX's may take minutes; so both are called in
    a thread of their own. Nothing is noticed outside of the main thread, where Python takes no signals, nor where the
    process was started with Ctrl-C ignored, as shells do for background jobs of a script: end such a run with SIGTERM,
    and it goes on from its last checkpoint.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reader, first, second), daemon=True)
    with closing(reader), closing(writer):
        earlier = signal.signal(signal.SIGINT, lambda *_: None)
        earlier_descriptor = signal.set_wakeup_fd(writer.fileno())
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier_descriptor)
            signal.signal(signal.SIGINT, earlier)
            writer.shutdown(socket.SHUT_WR)
            watcher.join()


def _watch(reader: socket.socket, first: Callable[[], None], second: Callable[[], None]) -> None:
    seen = 0
    # Each signal is a byte, its number.
    while number := reader.recv(1):
        if number[0] == signal.SIGINT:
            seen += 1
            (first if seen == 1 else second)()
            if seen > 1:
                os._exit(_EXIT_CODE)
