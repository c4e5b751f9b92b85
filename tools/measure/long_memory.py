"""Read a very long text into a memory: `python -m tools.measure.long_memory BOOK.txt ... --tokens 1000000`.

Prints the speed and the resident memory of the process for each part. Halfway, the reading is interrupted as by Ctrl-C,
and goes on in a new chat that is loaded from the saved one.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.console import Console
from rich.table import Table

from mlx_deltamem.cli.command import command
from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.demo.model import ADAPTER
from mlx_deltamem.options.rule import POSITIVE
from mlx_deltamem.sessions.reading.prefill import Progress
from tools import smollm2
from tools.measure.chat_turns import resident


@dataclass(frozen=True)
class Part:
    """A part of the text that has been read.

    Attributes:
        tokens: The tokens of the text up to its end.
        speed: Tokens per second of wall time within it.
        resident: Megabytes of resident memory at its end.
    """

    tokens: int
    speed: float
    resident: float


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.long_memory", description=__doc__)
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="Text files, which are read as one text.")
    parser.add_argument("--model", help="A model (default: the offline backbone).")
    parser.add_argument("--adapter", help="Its adapter (default: that of the project).")
    parser.add_argument("--tokens", type=POSITIVE, default=1_000_000, help="Most tokens to read (default: 1,000,000).")
    parser.add_argument("--parts", type=POSITIVE, default=10, help="Lines of the table (default: 10).")
    return parser


@command
def main() -> None:
    """Read the text and print a table."""
    args = setup_arg_parser().parse_args()
    model, tokenizer = load(args.model or smollm2.build(), adapter=args.adapter or str(ADAPTER))
    text = beginning(tokenizer, "\n".join(Path(name).read_text(encoding="utf-8") for name in args.texts), args.tokens)
    console = Console(width=110)
    parts = read_in_two(model, tokenizer, text, args.parts, lambda part: console.print(f"{part.tokens:,} tokens read"))
    table = Table(title=f"A text read into the memory, {len(model.layers)} layers")
    for heading in ("tokens", "tokens/s", "resident"):
        table.add_column(heading, justify="right")
    for part in parts:
        table.add_row(f"{part.tokens:,}", f"{part.speed:,.0f}", f"{part.resident:,.0f} MB")
    console.print(table)


def beginning(tokenizer: TokenizerWrapper, text: str, tokens: int) -> str:
    """The first tokens of a text, as text."""
    found: str = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:tokens])
    return found


def read_in_two(
    model: nn.Module, tokenizer: TokenizerWrapper, text: str, parts: int, tell: Callable[[Part], None]
) -> Sequence[Part]:
    """Read a text into the memory of a chat; halfway, go on in a new chat that is loaded from a file.

    Args:
        model, tokenizer: An attached model, and its tokenizer.
        text: The text.
        parts: The number of parts to measure.
        tell: Called with each part when it has been read.
    """
    chat = ChatSession(model, tokenizer, history="none")
    found: list[Part] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.safetensors"
        try:
            chat.remember(text, keep_read=True, progress=_parts(found, parts, tell, is_interrupted=True))
        except KeyboardInterrupt:
            chat.save(path)
            chat = ChatSession.load(model, tokenizer, path)
        chat.remember(text, keep_read=True, progress=_parts(found, parts, tell))
    return found


def _parts(found: list[Part], parts: int, tell: Callable[[Part], None], is_interrupted: bool = False) -> Progress:
    """A progress callback that measures the parts of a text, and interrupts it halfway."""
    since: tuple[int, float] | None = None

    def progress(done: int, total: int) -> None:
        nonlocal since
        if since is None:
            since = done, time.perf_counter()
        if done >= (len(found) + 1) * total // parts:
            now = time.perf_counter()
            part = Part(done, (done - since[0]) / max(now - since[1], 1e-9), resident())
            found.append(part)
            tell(part)
            since = done, time.perf_counter()
        if is_interrupted and 2 * done >= total:
            raise KeyboardInterrupt

    return progress


if __name__ == "__main__":
    main()
