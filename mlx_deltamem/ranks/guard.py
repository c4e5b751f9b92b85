"""A process beside a rank that ends it when another rank is gone and the rank itself cannot notice.

MLX may wait for another rank inside a call that keeps Python's lock, so that no thread of the rank runs. This program
only watches the rank's connections. It uses Python's standard library alone, and takes nothing out of them.

Its arguments are the process to end and, for each connection, `DESCRIPTOR:RANK:NAME`. A line of standard input is the
number of a rank that has done its work. At the end of standard input, the process has ended.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
import time

# Seconds: between two looks, and for the process to notice by itself.
_LOOK, _GRACE = 0.5, 5.0
# As in connection.py and world.py.
_HEAD, _ENDS, _GONE = struct.Struct("!BIQ"), 2, 1


def main() -> None:
    """Watch until the process has ended, or a rank is gone."""
    parent, *places = sys.argv[1:]
    names: dict[int, str] = {}
    sockets: dict[int, socket.socket] = {}
    for place in places:
        descriptor, number, name = place.split(":", 2)
        names[int(number)], sockets[int(number)] = name, socket.socket(fileno=int(descriptor))
    gone_since: dict[int, float] = {}
    while True:
        if select.select([0], [], [], _LOOK)[0]:
            said = os.read(0, 4096).split()
            if not said:
                return
            for done in said:
                sockets.pop(int(done), None)
        for rank, sock in sockets.items():
            if _is_closed(sock) and time.monotonic() - gone_since.setdefault(rank, time.monotonic()) > _GRACE:
                _end(int(parent), f"rank {rank} ({names[rank]})", sock)
                # Or they would say that this rank was the first one to be gone.
                for other in sockets.keys() - {rank}:
                    _tell_end(sockets[other])
                return


def _end(process: int, gone: str, sock: socket.socket) -> None:
    """End the process, with a line that names the rank that is gone; `sock` is the connection to that rank."""
    # It may have said that it ends, and why.
    if not _is_told(sock):
        # MLX's ring writes parts of its lines at the same time. So this begins a new line, and is written at once.
        sys.stderr.write(f"\nerror: {gone} is gone; this rank ends too, and files are as they were saved last\n")
        sys.stderr.flush()
    os.kill(process, signal.SIGKILL)


def _is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed a connection, also if there is something left to read."""
    if sys.platform == "linux":
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        return bool(poll.poll(0))
    queue = select.kqueue()
    try:
        event = select.kevent(sock, select.KQ_FILTER_READ, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)
        return any(found.flags & select.KQ_EV_EOF for found in queue.control([event], 1, 0))
    finally:
        queue.close()


def _is_told(sock: socket.socket) -> bool:
    """Whether the messages that were not read have an end among them."""
    try:
        content = sock.recv(1 << 16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    while len(content) >= _HEAD.size:
        kind, length, size = _HEAD.unpack(content[: _HEAD.size])
        if kind == _ENDS:
            return True
        content = content[_HEAD.size + length + size :]
    return False


def _tell_end(sock: socket.socket) -> None:
    """Tell the rank at the other end that this one has ended, without an error of its own."""
    text = json.dumps([_GONE, ""]).encode()
    try:
        sock.send(_HEAD.pack(_ENDS, len(text), 0) + text, socket.MSG_DONTWAIT)
    except OSError:
        return


if __name__ == "__main__":
    main()
