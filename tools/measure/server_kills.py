"""Kill a server under load, many times: `python -m tools.measure.server_kills --model M --adapter A --kills 500`.

Several clients talk to several memories, some of them with streams. The server is killed (SIGKILL) and started again:
half of the times at a random moment, the other times as soon as a file is being written. Each turn of which a client
has received the end must then be there, with its words, and at most one more for each client. With
`--durability SECONDS`, the turns that the server told to be saved must be there.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import POSITIVE, SEED

# With OpenBLAS, which this project uses on CPUs.
_SERVER = "import tools.openblas; from mlx_deltamem.server import main; main()"
_TOKENS = 6
_LOCK = ".lock"
# The longest time to wait for the next save, in seconds. A turn takes less.
_LONGEST_WAIT = 5.0


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.server_kills", description=__doc__)
    parser.add_argument("--model", required=True, help="Folder or Hub repo of a small model.")
    parser.add_argument("--adapter", required=True, help="The adapter of the model.")
    parser.add_argument("--kills", type=POSITIVE, default=500, help="How many times to kill (default: 500).")
    parser.add_argument("--clients", type=POSITIVE, default=4, help="Clients at a time, one memory each (default: 4).")
    parser.add_argument("--seconds", type=float, default=1.0, help="Longest time of load before a kill (default: 1).")
    parser.add_argument("--durability", default="turn", help="As in mlx_deltamem.server (default: turn).")
    parser.add_argument("--seed", type=SEED, default=0, help="Seed of the moments of the kills (default: 0).")
    return parser


@dataclass
class Client:
    """A client that says one thing after the other in new chats with one memory.

    Attributes:
        memory: The name of the memory.
        streams: Whether its replies are streams.
        turns: The words and the replies of all turns of the memory that the client knows of, in order.
        saved: How many of them the server told to be saved.
        asked: The words of the request that was under way when the server was killed; "" if none was.
    """

    memory: str
    streams: bool
    turns: list[tuple[str, str]] = field(default_factory=list)
    saved: int = 0
    asked: str = ""

    def talk(self, port: int) -> None:
        """Say things until the server is gone."""
        while True:
            self.asked = f"Number {random.getrandbits(48)} is mine."
            try:
                reply, told = self._reply(port)
            except (OSError, HTTPException, ValueError, LookupError):
                return
            self.turns.append((self.asked, reply))
            self.asked = ""
            if told["saved"]:
                self.saved = len(self.turns)

    def check(self, found: list[tuple[str, str]]) -> str:
        """Compare the turns of the memory with those that are known; returns the fault, or an empty text."""
        if len(found) < self.saved:
            return f"{self.memory}: {self.saved} turns were saved, and {len(found)} are there"
        known = min(len(found), len(self.turns))
        if found[:known] != self.turns[:known]:
            return f"{self.memory}: a turn has other words"
        if [said for said, _ in found[known:]] not in ([], [self.asked]):
            return f"{self.memory}: there are turns that nobody has said"
        self.turns, self.saved = found, len(found)
        return ""

    def _reply(self, port: int) -> tuple[str, dict]:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"messages": [{"role": "user", "content": self.asked}], "max_tokens": _TOKENS, "stream": self.streams}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"X-Deltamem-Memory": self.memory})
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        if answer.status != 200:
            raise HTTPException(content)
        if not self.streams:
            whole = json.loads(content)
            return (whole["choices"][0]["message"]["content"] or "").strip(), whole["usage"]["memory"]
        if not content.endswith("data: [DONE]\n\n"):
            raise HTTPException("the stream has no end")
        events = [json.loads(line[6:]) for line in content.split("\n") if line.startswith("data: {")]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        return text.strip(), events[-1]["usage"]["memory"]


@contextmanager
def killed_at_end(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """A process that is killed at the end of the block if it has not ended. A fault that is found ends the block."""
    with process:
        try:
            yield process
        finally:
            process.kill()


@command
def main() -> None:
    """Kill the server again and again; stop at the first fault."""
    args = setup_arg_parser().parse_args()
    moments = random.Random(args.seed)
    clients = [Client(f"m{index}", streams=index % 2 == 1) for index in range(args.clients)]
    begun, unfinished = time.monotonic(), set[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "memories"
        for kill in range(1, args.kills + 1):
            with killed_at_end(start(args, folder)) as process:
                port = port_of(process)
                check(clients, port)
                talking = [threading.Thread(target=client.talk, args=(port,)) for client in clients]
                for each in talking:
                    each.start()
                time.sleep(moments.uniform(0.0, args.seconds))
                if kill % 2 == 0:
                    wait_for_save(folder, unfinished)
                process.send_signal(signal.SIGKILL)
                for each in talking:
                    each.join()
            unfinished |= being_written(folder)
            if kill % 10 == 0 or kill == args.kills:
                turns, inside = sum(len(client.turns) for client in clients), len(unfinished)
                print(f"{kill} kills, {inside} in the middle of a save, {turns:,} turns: none lost", flush=True)
        with killed_at_end(start(args, folder)) as process:
            check(clients, port_of(process))
            process.send_signal(signal.SIGTERM)
            if process.wait() != 0:
                sys.exit(f"the server ended with exit code {process.returncode}")
    print(f"{args.kills} kills in {time.monotonic() - begun:.0f} s")


def being_written(folder: Path) -> set[str]:
    """The names of the files in a folder of memories that are not complete. Killed servers leave some behind."""
    return {path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != _LOCK}


def wait_for_save(folder: Path, left: set[str]) -> None:
    """Wait until a server writes a file, but not for long.

    Args:
        folder: The folder of its memories.
        left: The files that killed servers have left behind.
    """
    end = time.monotonic() + _LONGEST_WAIT
    while being_written(folder) <= left and time.monotonic() < end:
        pass


def start(args: argparse.Namespace, folder: Path) -> subprocess.Popen:
    """Start the server."""
    places = ["--model", args.model, "--adapter", args.adapter, "--memories", str(folder)]
    command = [sys.executable, "-c", _SERVER, *places, "--port", "0", "--durability", args.durability]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def port_of(process: subprocess.Popen) -> int:
    """The port of a server that has started."""
    line = process.stdout.readline() if process.stdout else ""
    if "http://127.0.0.1:" not in line:
        sys.exit("the server did not start")
    return int(line.split(":")[2].split()[0])


def check(clients: list[Client], port: int) -> None:
    """Check that the server has all turns that it must have."""
    for client in clients:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", f"/v1/memories/{client.memory}/turns")
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        if answer.status not in (200, 404):
            sys.exit(f"{client.memory}: status {answer.status}: {content}")
        rows = content["data"] if answer.status == 200 else []
        said = [(row["messages"][-2]["content"], row["messages"][-1]["content"].strip()) for row in rows]
        if fault := client.check(said):
            sys.exit(fault)


if __name__ == "__main__":
    main()
