"""Start a program as several ranks of MLX's ring on this machine."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from tests.conftest import REPO


@dataclass
class Rank:
    """A rank that has ended."""

    code: int
    out: str
    err: str


class Ranks:
    """Ranks that are running.

    Args:
        count: The number of ranks.
        arguments: What follows `python`.
        folders: By rank, its working directory; missing: that of the tests.
    """

    def __init__(self, count: int, *arguments: object, folders: dict[int, Path] | None = None):
        handle, name = tempfile.mkstemp(suffix=".json")
        os.close(handle)
        self._hosts = Path(name)
        self._hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
        self.processes = [
            subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env=os.environ
                | {"MLX_RANK": str(rank), "MLX_HOSTFILE": name, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)},
                cwd=(folders or {}).get(rank),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for rank in range(count)
        ]

    def read_until(self, text: str) -> str:
        """Read the standard output of rank 0 until a text is in it; returns all that was read."""
        stream, found = self.processes[0].stdout, b""
        while text.encode() not in found:
            part = os.read(stream.fileno(), 4096)
            assert part, (found, self.processes[0].stderr.read())
            found += part
        return found.decode()

    def wait(self, stdin: str = "", timeout: float = 120) -> list[Rank]:
        """Write to the standard input of rank 0, wait for all ranks, and return them."""
        results: dict[int, Rank] = {}

        def communicate(rank: int) -> None:
            process = self.processes[rank]
            try:
                out, err = process.communicate(stdin.encode() if rank == 0 else b"", timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                err += b"(killed by the test: it did not end)"
            results[rank] = Rank(process.returncode, out.decode(), err.decode())

        threads = [Thread(target=communicate, args=(rank,)) for rank in range(len(self.processes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._hosts.unlink()
        return [results[rank] for rank in range(len(self.processes))]


def run_ranks(count: int, *arguments: object, stdin: str = "", timeout: float = 120) -> list[Rank]:
    """Run `python ARGUMENTS` as so many ranks until all have ended."""
    return Ranks(count, *arguments).wait(stdin, timeout)


def run_script(count: int, script: str, *arguments: object, timeout: float = 120) -> list[Rank]:
    """Run a script as so many ranks; an error in one of them fails the test."""
    ranks = run_ranks(count, "-c", script, *arguments, timeout=timeout)
    assert all(rank.code == 0 for rank in ranks), [(rank.code, rank.err) for rank in ranks]
    return ranks


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
