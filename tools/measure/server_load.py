"""Compare the CPU time of `mlx_deltamem.server` with that of `mlx_lm.server` on the same load.

`python -m tools.measure.server_load` starts each server in turn, several times, sends the same requests from several
clients at once, and prints the CPU time for each request: of the frozen model in mlx-lm's server, and of the model
with its memory in this one, which reads and writes the memory or leaves it off. The end of a reply is forbidden, so all
replies have the same length.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from mlx_deltamem.cli.command import command
from mlx_deltamem.options.rule import POSITIVE
from tools import smollm2

# Questions of about the length that people type.
QUESTIONS = (
    "My landlady is called Mrs Okonkwo-Reyes and she lives in the flat below mine.",
    "What should I cook tonight? I have rice, two eggs and an onion.",
    "I parked the car on level 4B of the garage at the station.",
    "Tell me in two sentences why the sky is blue.",
)
WITHOUT, OFF, WITH = "mlx_lm.server", "memory off", "memory on"


@command
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=POSITIVE, default=3, help="Times that each server runs (default: 3).")
    parser.add_argument("--requests", type=POSITIVE, default=32, help="Requests of a round (default: 32).")
    parser.add_argument("--clients", type=POSITIVE, default=8, help="Requests at a time (default: 8).")
    parser.add_argument("--tokens", type=POSITIVE, default=48, help="Tokens of each reply (default: 48).")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in (WITHOUT, OFF, WITH)}
    for _ in range(args.rounds):
        for name, found in seconds.items():
            with server(name) as (port, process):
                load(name, port, 4, 4, 4, first=-4)
                before = cpu_seconds(process)
                tokens = load(name, port, args.requests, args.clients, args.tokens)
                found.append((cpu_seconds(process) - before) / args.requests)
                print(f"{name}: {found[-1]:.3f} s of CPU a request, {tokens:,} tokens read and generated", flush=True)
    base = statistics.median(seconds[WITHOUT])
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"{name}: {middle:.3f} s of CPU a request, {middle / base:.3f} of mlx_lm.server's")


@contextmanager
def server(name: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """A running server: its port and its process."""
    model = str(smollm2.build())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        if name == WITHOUT:
            arguments = ["-m", "mlx_lm", "server", "--model", model]
        else:
            arguments = ["-m", "tools.serve", "--memories", str(Path(folder) / "memories")]
        command = [sys.executable, *arguments, "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(port)
            yield port, process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def wait_for(port: int) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        time.sleep(0.1)
    raise TimeoutError(f"nothing answers on port {port}")


def load(name: str, port: int, requests: int, clients: int, tokens: int, first: int = 0) -> int:
    """Send requests from several clients at once; returns the number of tokens read and generated.

    Each message begins in another way, because mlx-lm's server keeps what it has read.
    """

    end = str(json.loads((smollm2.build() / "config.json").read_text())["eos_token_id"])

    def ask(number: int) -> int:
        body: dict[str, object] = {
            "messages": [{"role": "user", "content": f"{number}. {QUESTIONS[number % 4]}"}],
            "max_tokens": tokens,
            "temperature": 0,
            "logit_bias": {end: -100},
        }
        if name == OFF:
            body["memory"] = {"name": "none", "mode": "off"}
        elif name == WITH:
            body["memory"] = {"name": f"m{number}"}
        connection = HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        usage = json.loads(connection.getresponse().read())["usage"]
        return int(usage["completion_tokens"] + usage["prompt_tokens"])

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(ask, range(first, first + requests)))


def cpu_seconds(process: subprocess.Popen) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
