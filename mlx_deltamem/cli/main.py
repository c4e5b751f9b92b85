"""`mlx_deltamem NAME ...`, which runs the command of that name."""

import importlib
import sys

from mlx_deltamem._version import __version__

COMMANDS = ("benchmark", "chat", "convert", "data", "evaluate", "generate", "grow", "inspect", "train", "upload")

_USAGE = f"""usage: mlx_deltamem COMMAND ...

commands: {", ".join(COMMANDS)}

`mlx_deltamem COMMAND --help` tells about one of them; `mlx_deltamem --version` prints the version."""


def main() -> None:
    """Run a command; an unknown one ends with exit code 2."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"mlx_deltamem {name}"]
        importlib.import_module(f"mlx_deltamem.{name}").main()
    elif name == "--version":
        print(__version__)
    elif name in ("-h", "--help"):
        print(_USAGE)
    else:
        print(f"error: {name or 'nothing'!r} is no command\n{_USAGE}", file=sys.stderr)
        sys.exit(2)
