"""Join the ranks that MLX has started, and connect rank 0 with the others."""

import hmac
import json
import os
import secrets
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO

import mlx.core as mx
import numpy as np

from mlx_deltamem.ranks.connection import SILENCE, Connection, End
from mlx_deltamem.ranks.launched import is_launched
from mlx_deltamem.ranks.waiting import open_files, shares_machine, wait_asleep
from mlx_deltamem.ranks.world import World

_INVITATION, _TOKEN = 4096, 32
_LOCAL = "127.0.0.1"
# Seconds and a number of questions, on macOS and on Linux; the last one in milliseconds.
_KERNEL = {
    "TCP_KEEPALIVE": 5,
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,
}

_joined: World | None = None


def world() -> World:
    """The ranks of this process: those of `join`, or this process alone."""
    return World(0, 1) if _joined is None else _joined


def join(errors: TextIO | None = None) -> World:
    """Join the other ranks, if a launcher has started several. The first call connects them.

    Args:
        errors: The stream for the line that is printed when another rank is gone; None: standard error.

    Raises:
        ConnectionError: The ranks do not reach each other.
    """
    global _joined  # noqa: PLW0603  # A process has one rank.
    if _joined is None and is_launched():
        before = open_files()
        try:
            group = mx.distributed.init()
        except RuntimeError as error:
            raise ConnectionError(f"MLX did not connect the ranks: {error}") from None
        if shares_machine(group.rank()):
            wait_asleep(open_files() - before)
        _joined = World(group.rank(), group.size(), group, {}, errors or sys.stderr)
        if group.size() > 1:
            _connect(_joined)
    return world()


def _connect(joined: World) -> None:
    """Connect rank 0 with the others. MLX's own connection carries the address, and a secret that both sides prove."""
    if joined.is_first:
        addresses = _addresses()
        listener = _listener(addresses)
        secret = [secrets.token_hex(_TOKEN), secrets.token_hex(_TOKEN)]
        invitation = json.dumps([addresses, listener.getsockname()[1], *secret]).encode()
        _shared_bytes(joined, invitation)
        with listener:
            joined.connections = _accept(joined, listener, secret)
    else:
        addresses, port, *secret = json.loads(_shared_bytes(joined, b""))
        joined.connections = {0: _connection(joined, 0, *_reach(joined, addresses, port, secret))}
    joined.set_guard(_guard(joined))


def _shared_bytes(joined: World, content: bytes) -> bytes:
    """The bytes that rank 0 gives."""
    numbers = list(content.ljust(_INVITATION)) if joined.is_first else [0] * _INVITATION
    total = mx.distributed.all_sum(mx.array(numbers, mx.int32), group=joined.group)
    return np.asarray(total).astype(np.uint8).tobytes().rstrip()


def _accept(joined: World, listener: socket.socket, secret: list[str]) -> dict[int, Connection]:
    listener.settimeout(SILENCE)
    connections: dict[int, Connection] = {}
    while len(connections) < joined.size - 1:
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            missing = sorted(set(range(1, joined.size)) - connections.keys())
            raise ConnectionError(
                f"rank {', '.join(map(str, missing))} did not connect to rank 0 on port {listener.getsockname()[1]}; "
                "expected all ranks: does a firewall block it?"
            ) from None
        with suppress(OSError, ValueError):
            sock.settimeout(SILENCE)
            said, rank, name = json.loads(_line(sock))
            if hmac.compare_digest(str(said), secret[0]) and rank in range(1, joined.size):
                sock.sendall(json.dumps([secret[1], socket.gethostname()]).encode() + b"\n")
                connections[rank] = _connection(joined, rank, sock, str(name))
                continue
        sock.close()
    return connections


def _reach(joined: World, addresses: list[str], port: int, secret: list[str]) -> tuple[socket.socket, str]:
    """Connect to rank 0. Returns the socket, and the name of its machine."""
    for address in addresses:
        with suppress(OSError, ValueError):
            sock = socket.create_connection((address, port), timeout=SILENCE / 2)
            sock.sendall(json.dumps([secret[0], joined.rank, socket.gethostname()]).encode() + b"\n")
            said, name = json.loads(_line(sock))
            if hmac.compare_digest(str(said), secret[1]):
                return sock, str(name)
            sock.close()
    raise ConnectionError(
        f"rank {joined.rank} does not reach rank 0 at {' or '.join(addresses)}, port {port}; does a firewall block it?"
    )


def _connection(joined: World, rank: int, sock: socket.socket, name: str) -> Connection:
    # A short message must not wait for the next one. The kernel asks whether the other machine is there, also while
    # this process cannot: if nothing was sent, and if something was sent that was not received.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, number in _KERNEL.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), number)

    def ended(end: End) -> None:
        joined.ended(rank, name, end)

    return Connection(sock, name, ended)


def _guard(joined: World) -> IO[bytes]:
    """Start the process that watches the connections; returns its standard input."""
    places = [f"{each.fileno()}:{rank}:{each.name}" for rank, each in joined.connections.items()]
    process = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), str(os.getpid()), *places],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[each.fileno() for each in joined.connections.values()],
        # Ctrl-C in a terminal is not for it.
        start_new_session=True,
    )
    if process.stdin is None:
        raise RuntimeError("the guard has no standard input; expected a pipe")
    return process.stdin


def _line(sock: socket.socket) -> bytes:
    """A line of a greeting. It is read byte by byte, because messages follow it."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte or len(line) > _INVITATION:
            raise ConnectionError("the other rank said nothing that was expected")
        line += byte
    return line


def _listener(addresses: list[str]) -> socket.socket:
    """A socket at the first address that is this machine's, or at all addresses of this machine."""
    for address in addresses[:1]:
        with suppress(OSError):
            return socket.create_server((address, 0))
    return socket.create_server(("", 0))


def _addresses() -> list[str]:
    """The addresses of rank 0: those that MLX was told, or those of the machine's name."""
    if hostfile := os.environ.get("MLX_HOSTFILE"):
        with suppress(OSError, ValueError, LookupError, AttributeError):
            return [str(place).rpartition(":")[0] for place in json.loads(Path(hostfile).read_text())[0]]
    for name in ("MLX_JACCL_COORDINATOR", "NCCL_HOST_IP"):
        if place := os.environ.get(name):
            return [place.rpartition(":")[0] or place]
    with suppress(OSError):
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET, socket.SOCK_STREAM)
        return [*dict.fromkeys(str(each[4][0]) for each in found), _LOCAL]
    return [_LOCAL]
