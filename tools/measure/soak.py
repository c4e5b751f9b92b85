"""Chat for thousands of turns, and check that nothing grows or drifts: `python -m tools.measure.soak --turns 2000`.

The chat sees no earlier text. Besides plain turns, some turns are taken back, edited or answered again, and the chat is
forked, saved and loaded. At the end, a new chat with the same messages must have the same replies and the same memory.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import random
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
from tools.measure.chat_turns import resident

# How often each is done, in shares of all turns.
SHARES = {"send": 0.7, "undo": 0.08, "regenerate": 0.06, "edit": 0.06, "fork": 0.05, "reload": 0.05}
WORDS = ("amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "heron", "ivory", "jade", "kelp", "lotus")
# A session file without keys and values.
MOST_BYTES = 3_000_000


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = Parser(prog="python -m tools.measure.soak", description=__doc__)
    parser.add_argument("--model", required=True, help="Folder or Hub repo of a small model.")
    parser.add_argument("--adapter", required=True, help="The adapter of the model.")
    parser.add_argument("--turns", type=POSITIVE, default=2000, help="Things to do in the chat (default: 2,000).")
    parser.add_argument("--reply-tokens", type=POSITIVE, default=6, help="Most tokens of a reply (default: 6).")
    parser.add_argument("--seed", type=SEED, default=0, help="Seed of what is done and said (default: 0).")
    return parser


class Soak:
    """A long chat.

    Args:
        chat: The chat to begin with, without turns.
        path: The file to save it to; a fork has another one in the same folder.
        reply_tokens: The most tokens of a reply.
        seed: Decides what is done and said.

    Attributes:
        chat: The chat as it is.
        path: Its file.
        done: How often each thing was done.
    """

    def __init__(self, chat: ChatSession, path: Path, reply_tokens: int, seed: int):
        self.chat = chat
        self.done: Counter[str] = Counter()
        self.path, self._reply_tokens = path, reply_tokens
        self._random = random.Random(seed)

    def step(self) -> None:
        """Do one thing. A chat without turns is spoken to."""
        (what,) = self._random.choices(list(SHARES), list(SHARES.values()))
        if not self.chat.messages:
            what = "send"
        self.done[what] += 1
        if what == "send":
            self.chat.send(self._text(), self._reply_tokens)
        elif what == "undo":
            self.chat.undo()
        elif what == "regenerate":
            self.chat.regenerate(self._reply_tokens)
        elif what == "edit":
            # Replies stay as they are in an edit. With a new one, a new chat has the same reply.
            self.chat.edit(-2, self._text())
            self.chat.regenerate(self._reply_tokens)
        elif what == "fork":
            # A fork may not replace the file of the chat that it comes from.
            self.chat = self.chat.fork()
            self.path = self.path.with_stem(f"fork-{self.done[what]}")
        else:
            self.chat.save(self.path)
            self.chat = ChatSession.load(self.chat.model, self.chat.tokenizer, self.path)

    def _text(self) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randint(1, 8)))


def same_as_new(chat: ChatSession, reply_tokens: int) -> bool:
    """Whether a new chat with the same messages of the user has the same replies and the same memory."""
    new = ChatSession(chat.model, chat.tokenizer, history="none")
    for message in chat.messages:
        if message["role"] == "user":
            new.send(message["content"], reply_tokens)
    memories = new.memory, chat.memory
    return new.messages == chat.messages and all(
        mx.array_equal(memories[0][layer], state) for layer, state in memories[1].items()
    )


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    model, tokenizer = load(args.model, adapter=args.adapter)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.safetensors"
        soak = Soak(ChatSession(model, tokenizer, history="none"), path, args.reply_tokens, args.seed)
        for turn in range(1, args.turns + 1):
            soak.step()
            if turn % max(args.turns // 10, 1) == 0:
                print(f"{turn:,} done, {len(soak.chat.messages):,} messages, {resident():,.0f} MB resident", flush=True)
        soak.chat.save(soak.path)
        size = soak.path.stat().st_size
    print(", ".join(f"{name} {count:,}" for name, count in soak.done.items()))
    print(f"{time.monotonic() - begun:,.0f} s; the session file has {size:,} bytes")
    if size > MOST_BYTES:
        sys.exit(f"the session file is larger than {MOST_BYTES:,} bytes")
    if not same_as_new(soak.chat, args.reply_tokens):
        sys.exit("a new chat with the same messages is different")
    print("A new chat with the same messages has the same replies and the same memory, bit for bit.")


if __name__ == "__main__":
    main()
