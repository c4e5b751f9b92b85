"""Send thousands of requests of many kinds at once, and check what the server has kept of them.

`python -m tools.measure.server_storm --model M --adapter A --requests 10000` starts `mlx_deltamem.server` and talks to
it from several clients in this process. Each client has a memory, and all share another one. A tenth of the requests
are left by their client, and a twentieth are malformed. Each other request must get its answer. At the end the server
gets SIGTERM and must end with exit code 0. Then each memory must have the turns that the clients know of, with their
words, and must equal a `ChatSession` that reads the same turns.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import asyncio
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import mlx.core as mx

from mlx_deltamem.cli.command import command
from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import POSITIVE, SEED
from mlx_deltamem.server import BYTES
from mlx_deltamem.serving.special_tokens import special_tokens
from tools.measure.chat_turns import resident_of
from tools.measure.storm_client import SHARED, Client, Ledger

# With OpenBLAS, which this project uses on CPUs.
_SERVER = "import tools.openblas; from mlx_deltamem.server import main; main()"
# The states of turns that ran in a batch differ by rounding from those that ran alone.
TOLERANCE = 1e-4


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.server_storm", description=__doc__)
    parser.add_argument("--model", required=True, help="Folder or Hub repo of a small model.")
    parser.add_argument("--adapter", required=True, help="The adapter of the model.")
    parser.add_argument("--requests", type=POSITIVE, default=10_000, help="Requests in all (default: 10,000).")
    parser.add_argument("--seconds", type=POSITIVE, help="End after this time, also with fewer requests.")
    parser.add_argument("--clients", type=POSITIVE, default=32, help="Clients at a time (default: 32).")
    parser.add_argument("--memories", type=POSITIVE, default=1, help="Memories of each client (default: 1).")
    parser.add_argument("--turns", type=POSITIVE, help="Empty a memory that has so many turns (default: never).")
    parser.add_argument("--durability", default="turn", help="As in mlx_deltamem.server (default: turn).")
    parser.add_argument("--memory-bytes", type=BYTES, default=2 << 30, help="As in mlx_deltamem.server.")
    parser.add_argument("--timeout", type=POSITIVE, default=300, help="A request hangs after this time (default: 300).")
    parser.add_argument(
        "--resent", type=POSITIVE, default=2, help="Clients whose turns a chat generates again at the end."
    )
    parser.add_argument("--seed", type=SEED, default=0, help="Seed of what is asked (default: 0).")
    return parser


@command
def main() -> None:
    """Send the requests, and check."""
    args = setup_arg_parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "memories"
        places = ["--model", args.model, "--adapter", args.adapter, "--memories", str(folder)]
        options = ["--port", "0", "--durability", args.durability, "--memory-bytes", str(args.memory_bytes)]
        command = [sys.executable, "-c", _SERVER, *places, *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            port = _port_of(process)
            ledgers = asyncio.run(_storm(args, port, process.pid))
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                sys.exit(f"the server ended with exit code {process.returncode}")
        finally:
            process.kill()
            process.wait()
        _check(args, folder, ledgers)


async def _storm(args: argparse.Namespace, port: int, server: int) -> list[Ledger]:
    """Send all requests. Ends the process at the first request that is lost."""
    left = iter(range(args.requests))
    shared, counts = Ledger(SHARED), Counter[str]()

    def chances(index: int) -> random.Random:
        return random.Random(f"{args.seed}-{index}")

    ledgers = [
        [Ledger(f"m{index}-{number}", most_turns=args.turns) for number in range(args.memories)]
        for index in range(args.clients)
    ]
    clients = [
        Client(port, own, shared, counts, chances(index), args.timeout, greedy=index < args.resent)
        for index, own in enumerate(ledgers)
    ]
    begun = told = time.monotonic()

    async def work(client: Client) -> None:
        nonlocal told
        for _ in left:
            await client.step()
            now = time.monotonic()
            if args.seconds is not None and now - begun > args.seconds:
                break
            if now - told > 30:
                told = now
                memory = resident_of(server)
                print(f"{now - begun:.0f} s: {counts.total():,} requests, {memory:,.1f} MB resident", flush=True)
        await client.close()

    try:
        await asyncio.gather(*map(work, clients))
    except AssertionError as error:
        sys.exit(f"after {counts.total():,} requests: {error}")
    seconds = time.monotonic() - begun
    print(f"{counts.total():,} requests in {seconds:,.0f} s, none lost: {dict(counts.most_common())}", flush=True)
    return [shared, *(ledger for own in ledgers for ledger in own)]


def _port_of(process: subprocess.Popen) -> int:
    line = process.stdout.readline() if process.stdout else ""
    if "http://127.0.0.1:" not in line:
        sys.exit("the server did not start")
    return int(line.split(":")[2].split()[0])


def _check(args: argparse.Namespace, folder: Path, ledgers: list[Ledger]) -> None:
    """Compare the files of the memories with what the clients know, and with chats that read the same turns."""
    model, tokenizer = load(args.model, adapter=args.adapter)
    special = special_tokens(tokenizer) or re.compile("(?!)")
    turns, worst, resent, others = 0, 0.0, 0, 0
    for number, ledger in enumerate(ledgers):
        path = folder / f"{ledger.name}.safetensors"
        if not path.exists():
            if ledger.turns:
                sys.exit(f"{ledger.name}: there is no file")
            continue
        saved = ChatSession.load(model, tokenizer, path)
        if fault := ledger.fault(saved.turns, special):
            sys.exit(f"{ledger.name}: {fault}")
        turns += len(saved.turns)
        worst = max(worst, _distance(saved, ChatSession.from_dict(model, tokenizer, saved.to_dict())))
        # The first memory is shared, and some of its replies are sampled.
        if 0 < number <= args.resent * args.memories:
            again, different = _sent_again(saved)
            resent, others = resent + len(saved.turns), others + different
            if not different:
                worst = max(worst, _distance(saved, again))
    print(f"{len(ledgers)} memories with {turns:,} turns are as the clients know them")
    print(f"a chat that reads the same turns has the same states up to {worst:.1e}")
    print(f"a chat that generates {resent:,} of the turns again has {others} other replies")
    if worst > TOLERANCE or others:
        sys.exit(f"expected {TOLERANCE:.0e} at most, and the same replies")


def _sent_again(saved: ChatSession) -> tuple[ChatSession, int]:
    """A chat in which all messages were sent again, and the number of other replies."""
    chat, others = ChatSession(saved.model, saved.tokenizer, history=saved.history, write=saved.write), 0
    for turn in saved.turns:
        chat.conversation = turn.conversation
        if turn.remembered:
            chat.remember(list(turn.messages), turn.write)
        elif not turn.reply_ids:
            chat.read_exchange(list(turn.messages), turn.reply, turn.write)
        else:
            chat.send(list(turn.messages), len(turn.reply_ids), write=turn.write)
            others += chat.turns[-1].reply_ids != turn.reply_ids
    return chat, others


def _distance(one: ChatSession, other: ChatSession) -> float:
    states = other.memory
    return max(float(mx.abs(state - states[layer]).max().item().real) for layer, state in one.memory.items())


if __name__ == "__main__":
    main()
