"""The way in which MLX's ring waits for another rank on the same machine.

A thread of the ring asks for bytes again and again until some arrive, and so keeps a processor busy. If ranks share the
processors of a machine, it takes them from the rank that it waits for: on two busy cores, 300 sums of 192 numbers took
5 seconds in three ranks, and 0.2 seconds with this module. The kernel can do the waiting: a receiving call then ends
when there is something, or after a while, with the error that the thread expects (EAGAIN).
"""

import fcntl
import json
import os
import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

# Seconds that a call may wait. Something else that the thread is to do, as to send, waits so long at most.
_WAIT = 0.005
_FILES = Path("/dev/fd")


def open_files() -> set[int]:
    """The descriptors of the open files of this process; none where the system has no list of them."""
    try:
        files = {int(path.name) for path in _FILES.iterdir()}
    except OSError:
        return set()
    return {file for file in files if _is_open(file)}


def _is_open(file: int) -> bool:
    # The folder itself was open while its list was read, and MLX may get the same descriptor for a connection.
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


def shares_machine(rank: int) -> bool:
    """Whether MLX was told to use a ring in which another rank is on the machine of this rank."""
    with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
        places = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
        hosts = [str(place[0]).rpartition(":")[0] for place in places]
        return hosts.count(hosts[rank]) > 1
    return False


def wait_asleep(files: Collection[int]) -> None:
    """Let the kernel wait where these are connections.

    Args:
        files: Descriptors that MLX has opened: `open_files()` without those from before.
    """
    seconds, part = divmod(_WAIT, 1)
    wait = struct.pack("@ll", int(seconds), int(part * 1_000_000))
    for file in files:
        # Others are pipes, or files that are closed again.
        with suppress(OSError), socket.socket(fileno=os.dup(file)) as sock:
            sock.getpeername()
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, wait)
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_NONBLOCK)
