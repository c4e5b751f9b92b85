"""Start a program as several ranks of MLX's ring on this machine."""

import faulthandler
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from tests.conftest import REPO
from tests.ranks.hosts import enter

# Its first process imports the libraries once, and each rank is a fork of it. On a Mac, Metal does not survive a fork.
_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_IMPORTED = [
    "tools.openblas",
    *(f"mlx_deltamem.commands.{name}" for name in ("generate", "chat", "evaluate", "train", "benchmark")),
    "mlx_deltamem.serving.run",
    "mlx_deltamem.ranks.joining",
    "tests.ranks.spread_checks",
]
# Seconds to print them.
_STACKS = 5


@dataclass
class Rank:
    """A rank that has ended."""

    code: int
    out: str
    err: str


class RunningRank:
    """A rank that is running: `python -m MODULE ARGUMENTS`, with pipes.

    Args:
        arguments: The module and its arguments.
        env: Variables of its environment.
        folder: Its working directory.
        network: The host on which it runs, a network namespace; None: this one.
    """

    def __init__(self, arguments: list[str], env: dict[str, str], folder: Path, network: str | None):
        (inner_in, self.stdin), (self.stdout, inner_out), (self.stderr, inner_err) = (
            _CONTEXT.Pipe(duplex=False) for _ in range(3)
        )
        inner = (inner_in, inner_out, inner_err)
        self.process = _CONTEXT.Process(target=_run, args=(arguments, env, str(folder), network, inner))
        self.process.start()
        for each in inner:
            each.close()

    def write(self, text: str) -> None:
        """Write to its standard input."""
        os.write(self.stdin.fileno(), text.encode())

    def end_input(self) -> None:
        """Close its standard input."""
        self.stdin.close()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.process.exitcode is not None

    def send_signal(self, number: int) -> None:
        """Send a signal to it."""
        os.kill(self.process.pid, number)

    def wait(self, timeout: float) -> Rank:
        """Wait until it has ended. One that has not is killed."""
        texts = {}

        def read(name: str, file: int) -> None:
            found = b""
            while part := os.read(file, 1 << 16):
                found += part
            texts[name] = found.decode()

        readers = [Thread(target=read, args=(name, getattr(self, name).fileno())) for name in ("stdout", "stderr")]
        for reader in readers:
            reader.start()
        self.process.join(timeout)
        note = ""
        if not self.has_ended:
            # Its threads print where they are.
            self.send_signal(signal.SIGUSR1)
            self.process.join(_STACKS)
            self.process.kill()
            self.process.join()
            note = f"(killed by the test: it did not end within {timeout:.0f} seconds)"
        for reader in readers:
            reader.join()
        return Rank(self.process.exitcode, texts["stdout"], texts["stderr"] + note)


class Ranks:
    """Ranks that are running.

    Args:
        count: The number of ranks.
        arguments: What follows `python -m`.
        folders: By rank, its working directory; missing: that of the tests.
        networks: By rank, the host on which it runs, as in `hosts`; None: all run on this one.
        addresses: By rank, the address of that host.
    """

    def __init__(
        self,
        count: int,
        *arguments: object,
        folders: dict[int, Path] | None = None,
        networks: list[str] | None = None,
        addresses: list[str] | None = None,
    ):
        handle, name = tempfile.mkstemp(suffix=".json")
        os.close(handle)
        self._hosts = Path(name)
        self._hosts.write_text(
            json.dumps(
                [
                    [f"{address}:{port}"]
                    for address, port in zip(addresses or ["127.0.0.1"] * count, free_ports(count), strict=True)
                ]
            )
        )
        if sys.platform == "linux":
            _CONTEXT.set_forkserver_preload(_IMPORTED)
        self.processes = [
            RunningRank(
                [str(each) for each in arguments],
                {"MLX_RANK": str(rank), "MLX_HOSTFILE": name, "HF_HUB_OFFLINE": "1"},
                (folders or {}).get(rank, REPO),
                None if networks is None else networks[rank],
            )
            for rank in range(count)
        ]

    def read_until(self, text: str) -> str:
        """Read the standard output of rank 0 until a text is in it; returns all that was read."""
        first, found = self.processes[0], b""
        while text.encode() not in found:
            part = os.read(first.stdout.fileno(), 4096)
            assert part, (found, os.read(first.stderr.fileno(), 1 << 16))
            found += part
        return found.decode()

    def wait(self, stdin: str = "", timeout: float = 120) -> list[Rank]:
        """Write to the standard input of rank 0, wait for all ranks, and return them."""
        self.processes[0].write(stdin)
        for process in self.processes:
            process.end_input()
        end = time.monotonic() + timeout
        results: dict[int, Rank] = {}

        def wait(rank: int) -> None:
            results[rank] = self.processes[rank].wait(max(end - time.monotonic(), 0))

        threads = [Thread(target=wait, args=(rank,)) for rank in range(len(self.processes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._hosts.unlink()
        return [results[rank] for rank in range(len(self.processes))]


def run_ranks(count: int, *arguments: object, stdin: str = "", timeout: float = 120) -> list[Rank]:
    """Run `python -m ARGUMENTS` as so many ranks until all have ended."""
    return Ranks(count, *arguments).wait(stdin, timeout)


def assert_one_line_names(rank: int, survivors: list[Rank]) -> None:
    """The ranks that were left have ended by themselves, and rank 0, or all without it, have named the other one."""
    # The second: MLX waited in a call, and the guard ended the rank.
    assert all(each.code in (1, -signal.SIGKILL) for each in survivors), survivors
    speaking = [each for each in survivors if "error: " in each.err]
    assert speaking
    for each in speaking:
        lines = [line for line in each.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and lines[0].startswith(f"error: rank {rank} ("), each.err
        assert "Traceback" not in each.err


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _run(arguments: list[str], env: dict[str, str], folder: str, network: str | None, files: tuple) -> None:
    """Run a module as the main program of this new process."""
    if network is not None:
        enter(network)
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
        file.close()
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)
    os.environ.update(env)
    os.chdir(folder)
    module, *rest = arguments
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
