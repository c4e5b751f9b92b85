"""The command `mlx_deltamem NAME ...`, which runs the command of that name."""

import importlib
import sys

from mlx_deltamem._version import __version__
from mlx_deltamem.cli.command import command

# By name, what each command does.
COMMANDS = {
    "generate": "answer prompts with a model that has a memory",
    "chat": "chat with such a model in the terminal",
    "inspect": "look into an adapter, a model with an adapter, or a chat; compare two",
    "convert": "convert adapters and chats from and to the formats of other implementations",
    "upload": "publish an adapter on the Hugging Face Hub",
    "data": "make training data",
    "train": "train an adapter for a frozen model",
    "grow": "enlarge an adapter, to train it further",
    "evaluate": "measure whether an adapter helps",
    "benchmark": "measure the time and the memory that an adapter costs",
}

_USAGE = "\n".join(
    [
        "usage: mlx_deltamem COMMAND ...",
        "",
        "commands:",
        *(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items()),
        "",
        "`mlx_deltamem COMMAND --help` lists the options of a command; `mlx_deltamem --version` prints the version.",
    ]
)


@command
def main() -> None:
    """Run a command. An unknown command ends with exit code 2."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"mlx_deltamem {name}"]
        importlib.import_module(f"mlx_deltamem.{name}").main()
    elif name == "--version":
        print(__version__)
    elif name in ("-h", "--help"):
        print(_USAGE)
    else:
        print(f"error: there is no command {name or 'nothing'!r}\n{_USAGE}", file=sys.stderr)
        sys.exit(2)
