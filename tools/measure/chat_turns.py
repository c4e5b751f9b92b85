"""What a turn of a long chat costs, by history: `python -m tools.measure.chat_turns --turns 200`.

Prints the median processor time of the first and of the last turns, the resident memory after them, and what the
session file costs. The model is the offline backbone with an untrained adapter unless another is named.
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

from mlx_deltamem import ChatSession, DeltaMemConfig, load
from tools import smollm2

_SAMPLE = 20
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Costs:
    """Processor seconds of each turn, megabytes resident after the first sample of turns and at the end, seconds and
    megabytes of a saved session."""

    turns: list[float]
    early_memory: float
    late_memory: float
    save_seconds: float
    file_size: float


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure.chat_turns", description=__doc__)
    parser.add_argument("--model", help="A model (default: the offline backbone).")
    parser.add_argument("--adapter", help="Its adapter (default: an untrained one).")
    parser.add_argument("--turns", type=int, default=200, help="Turns of each chat (default: 200).")
    parser.add_argument("--reply-tokens", type=int, default=8, help="Tokens of each reply (default: 8).")
    parser.add_argument("--histories", nargs="+", default=["none", "256", "full"], help="Which histories to measure.")
    return parser


def main() -> None:
    args = setup_arg_parser().parse_args()
    adapter = args.adapter or DeltaMemConfig(delta_heads=("q", "o"), output_init="base_slice_fixed")
    model, tokenizer = load(args.model or smollm2.build(), adapter=adapter)
    table = Table(title=f"{args.turns} turns of {args.reply_tokens} reply tokens, {len(model.layers)} layers")
    for heading in (
        "history",
        f"first {_SAMPLE}",
        f"last {_SAMPLE}",
        "ratio",
        "resident",
        "at the end",
        "save",
        "file",
    ):
        table.add_column(heading, justify="right")
    for history in args.histories:
        costs = measure(model, tokenizer, history, args.turns, args.reply_tokens)
        # The very first turn reads the system prompt and compiles.
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
    """Run a chat and time it."""
    chat = ChatSession(model, tokenizer, history=history)
    seconds, early = [], 0.0
    for number in range(turns):
        # Of this process's processors: on a shared machine the clock on the wall tells what others do.
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
    start = time.perf_counter()
    chat.save(path)
    return time.perf_counter() - start


def resident() -> float:
    """This process's resident memory in megabytes, without what MLX keeps for reuse."""
    mx.clear_cache()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / _MEGABYTE


if __name__ == "__main__":
    main()
