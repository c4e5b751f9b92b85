"""The command that makes training data: `mlx_deltamem.data recall|speech|records|chat-logs|qasper ...`."""

import importlib
import sys

from mlx_deltamem.cli.command import command

_MAKERS = {
    "recall": "synthetic chats with facts in a few fixed wordings, and questions about them",
    "speech": "synthetic conversations in which facts are told as people tell them",
    "records": "training records of the conversations of speech",
    "chat-logs": "training records of a chat log in OpenAI's form",
    "qasper": "training records of the papers and questions of QASPER",
}

_USAGE = "\n".join(
    [
        "usage: mlx_deltamem.data MAKER ...",
        "",
        "makers:",
        *(f"  {name:<10} {made}" for name, made in _MAKERS.items()),
        "",
        "`mlx_deltamem.data MAKER --help` lists the options of one.",
    ]
)


@command
def main() -> None:
    """Run the maker that the first argument names; an unknown name exits with code 2."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in _MAKERS:
        sys.argv[:2] = [f"mlx_deltamem.data {name}"]
        importlib.import_module(f"mlx_deltamem.data.{name.replace('-', '_')}").main()
    elif name in ("-h", "--help"):
        print(_USAGE)
    else:
        print(f"error: there is no maker {name!r}; expected one of these\n{_USAGE}", file=sys.stderr)
        sys.exit(2)
