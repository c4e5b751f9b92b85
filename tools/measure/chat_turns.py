"""Measure the cost of the turns of a long chat, by history: `python -m tools.measure.chat_turns --turns 200`.

Prints the median processor time of the first and of the last turns, the resident memory after them, and the time and
size of a saved session. The default model is the offline backbone with an untrained adapter.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import Console
from rich.table import Table

from mlx_deltamem import ChatSession, DeltaMemConfig, attach, load
from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import POSITIVE
from tools import smollm2

# The turns of which a median is taken, at the beginning and at the end of a chat.
_SAMPLE = 20
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Costs:
    """The costs of a chat.

    Attributes:
        turns: Processor seconds of each turn.
        early_memory: Megabytes of resident memory after the first turns.
        late_memory: Megabytes of resident memory after the last turn.
        save_seconds: Seconds to save the session.
        file_size: Megabytes of the session file.
    """

    turns: list[float]
    early_memory: float
    late_memory: float
    save_seconds: float
    file_size: float


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.chat_turns", description=__doc__)
    parser.add_argument("--model", help="A model (default: the offline backbone).")
    parser.add_argument("--adapter", help="Its adapter (default: an untrained one).")
    parser.add_argument("--turns", type=POSITIVE, default=200, help="Turns of each chat (default: 200).")
    parser.add_argument("--reply-tokens", type=POSITIVE, default=8, help="Tokens of each reply (default: 8).")
    parser.add_argument("--histories", nargs="+", default=["none", "256", "full"], help="Histories to compare.")
    return parser


@command
def main() -> None:
    """Measure a chat with each history and print a table."""
    args = setup_arg_parser().parse_args()
    model, tokenizer = load(args.model or smollm2.build(), adapter=args.adapter)
    if args.adapter is None:
        attach(model, DeltaMemConfig(delta_heads=("q", "o"), output_init="base_slice_fixed"))
    table = Table(title=f"{args.turns} turns of {args.reply_tokens} reply tokens, {len(model.layers)} layers")
    first_turns, last_turns = f"first {_SAMPLE}", f"last {_SAMPLE}"
    for heading in ("history", first_turns, last_turns, "ratio", "resident", "at the end", "save", "file"):
        table.add_column(heading, justify="right")
    for history in args.histories:
        costs = measure(model, tokenizer, history, args.turns, args.reply_tokens)
        # Turn 0 does not count: it reads the system prompt and compiles functions.
        first, last = (statistics.median(part) for part in (costs.turns[1 : _SAMPLE + 1], costs.turns[-_SAMPLE:]))
        table.add_row(
            history,
            f"{first:.3f} s",
            f"{last:.3f} s",
            f"{last / first:.3f}",
            f"{costs.early_memory:.0f} MB",
            f"{costs.late_memory:.0f} MB",
            f"{costs.save_seconds * 1000:.0f} ms",
            f"{costs.file_size:.2f} MB",
        )
    Console(width=110).print(table)


def measure(model: nn.Module, tokenizer: TokenizerWrapper, history: str, turns: int, reply_tokens: int) -> Costs:
    """Hold a chat and measure it."""
    chat = ChatSession(model, tokenizer, history=history)
    seconds, early = [], 0.0
    for number in range(turns):
        # Processor time of this process: on a shared machine the wall time depends on other processes.
        start = time.process_time()
        chat.send(
            f"Note number {number}: box {number * 7 % 100} holds {number * 13 % 50} pears. Say yes.", reply_tokens
        )
        seconds.append(time.process_time() - start)
        if number == _SAMPLE:
            early = resident()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.safetensors"
        saves = [timed_save(chat, path) for _ in range(5)]
        size = path.stat().st_size / 1e6
    return Costs(seconds, early, resident(), statistics.median(saves), size)


def timed_save(chat: ChatSession, path: Path) -> float:
    """Save a session; return the seconds that it takes."""
    start = time.perf_counter()
    chat.save(path)
    return time.perf_counter() - start


def resident() -> float:
    """Return the resident memory of this process in megabytes, without the buffers that MLX keeps for reuse."""
    mx.clear_cache()
    return resident_of("self")


def resident_of(process: int | str) -> float:
    """Return the resident memory of a process in megabytes, given its number or `self`."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / _MEGABYTE


if __name__ == "__main__":
    main()
