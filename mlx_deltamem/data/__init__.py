"""The command that makes training data: `mlx_deltamem.data recall|speech|records|chat-logs|qasper ...`."""

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.command_list import CommandList

# By name, what each maker makes.
MAKERS = {
    "recall": "synthetic chats with facts in a few fixed wordings, and questions about them",
    "speech": "synthetic conversations in which facts are told as people tell them",
    "records": "training records of the conversations of speech",
    "chat-logs": "training records of a chat log in OpenAI's form",
    "qasper": "training records of the papers and questions of QASPER",
}


@command
def main() -> None:
    """Run the maker that the first argument names; an unknown name exits with code 2."""
    CommandList("mlx_deltamem.data", "maker", MAKERS, "mlx_deltamem.data").run()
