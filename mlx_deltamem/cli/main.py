"""The command `mlx_deltamem NAME ...`, which runs the command of that name."""

import sys

from mlx_deltamem.cli.command import command, command_of_ranks
from mlx_deltamem.cli.command_list import CommandList

# By name, what each command does.
COMMANDS = {
    "demo": "tell a small model eight facts, drop their text, and ask for them",
    "generate": "answer prompts with a model that has a memory",
    "chat": "chat with such a model in the terminal",
    "server": "serve such a model, with named memories, to browsers and to clients of OpenAI's API",
    "inspect": "look into an adapter, a model with an adapter, or a chat; compare two",
    "convert": "convert adapters and chats from and to the formats of other implementations",
    "upload": "publish an adapter on the Hugging Face Hub",
    "data": "make training data",
    "train": "train an adapter for a frozen model",
    "grow": "enlarge an adapter, to train it further",
    "evaluate": "measure whether an adapter helps",
    "benchmark": "measure the time and the memory that an adapter costs",
}
# Those that several ranks run together; rank 0 alone runs the others.
OF_RANKS = {"generate", "chat", "server", "train", "evaluate", "benchmark"}


def main() -> None:
    """Run a command, or print the version. An unknown command ends with exit code 2."""
    decorate = command_of_ranks if OF_RANKS.intersection(sys.argv[1:2]) else command
    decorate(_main)()


def _main() -> None:
    CommandList("mlx_deltamem", "command", COMMANDS, "mlx_deltamem").run()
