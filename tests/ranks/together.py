"""Ranks in one process, which do the same at the same time."""

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mlx_deltamem.ranks.connection import Connection
from mlx_deltamem.ranks.world import World


def connection_to(each: World, peer: int, sock: socket.socket) -> Connection:
    """The connection of a rank to a peer through a socket."""
    return Connection(sock, f"mac-{peer}", lambda end: each.ended(peer, f"mac-{peer}", end))


def together(worlds: Sequence[World], action: Callable[[World], object]) -> list[object]:
    """The results, or errors, of all ranks that do the same."""

    def outcome(each):
        try:
            return action(each)
        except (ValueError, OSError, EOFError, KeyboardInterrupt) as error:
            return type(error), str(error)

    with ThreadPoolExecutor(len(worlds)) as pool:
        return list(pool.map(outcome, worlds))
