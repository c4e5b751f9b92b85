"""Two hosts on this machine: network namespaces, with a link between them that is slow and can be cut. Linux, root."""

import ctypes
import fcntl
import os
import queue
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TUN = Path("/dev/net/tun")
# From linux/if_tun.h and linux/sched.h.
_SET_INTERFACE, _TAP_WITHOUT_HEADER, _NEW_NETWORK = 0x400454CA, 0x1002, 0x40000000
_FRAME = 1 << 16


def can_make_hosts() -> bool:
    """Whether this process may make network namespaces."""
    if not (sys.platform == "linux" and os.geteuid() == 0 and _TUN.exists() and shutil.which("ip")):
        return False
    name = f"mlx{os.getpid()}x"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    _ip("netns", "del", name)
    return True


class Link:
    """A link between two hosts. Each frame arrives some time after it was sent, until the link is cut.

    Args:
        taps: The two ends, as files of TAP devices.
        delay: The seconds that a frame takes.
    """

    def __init__(self, taps: list[int], delay: float):
        self._delay = delay
        self._is_cut = False
        self.frames = 0
        for source, target in (taps, taps[::-1]):
            sent: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=self._take, args=(source, sent), daemon=True).start()
            threading.Thread(target=self._give, args=(target, sent), daemon=True).start()

    def cut(self) -> None:
        """From now on nothing arrives. Neither side is told."""
        self._is_cut = True

    def _take(self, source: int, sent: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
        while True:
            try:
                frame = os.read(source, _FRAME)
            except OSError:
                return
            sent.put((time.monotonic() + self._delay, frame))

    def _give(self, target: int, sent: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
        while True:
            due, frame = sent.get()
            time.sleep(max(due - time.monotonic(), 0))
            if not self._is_cut:
                self.frames += 1
                try:
                    os.write(target, frame)
                except OSError:
                    return


@contextmanager
def two_hosts(delay: float) -> Iterator[tuple[list[str], list[str], Link]]:
    """Two hosts: the names of their namespaces, their addresses, and the link between them."""
    names = [f"mlx{os.getpid()}h{number}" for number in range(2)]
    addresses = [f"10.213.7.{number + 1}" for number in range(2)]
    taps = []
    try:
        for name, address in zip(names, addresses, strict=True):
            _ip("netns", "add", name)
            taps.append(_new_tap(name))
            _ip("link", "set", name, "netns", name)
            for command in (
                ("addr", "add", f"{address}/24", "dev", name),
                ("link", "set", name, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", name, *command)
        yield names, addresses, Link(taps, delay)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def enter(name: str) -> None:
    """Move this thread, and what it starts, to a host."""
    with Path("/run/netns", name).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"cannot enter the network {name}")


def _new_tap(name: str) -> int:
    tap = os.open(_TUN, os.O_RDWR)
    fcntl.ioctl(tap, _SET_INTERFACE, struct.pack("16sH", name.encode(), _TAP_WITHOUT_HEADER))
    return tap


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
