"""Chat in a terminal with a model that has a memory."""

import argparse

from rich.markup import escape
from rich.panel import Panel

from mlx_deltamem.adapters.hub import REFERENCE_ADAPTER
from mlx_deltamem.cli.command import check_standard_input, command_of_ranks
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.entered import check_session_file, checked_system_prompt
from mlx_deltamem.cli.options import (
    DEFAULT_MODEL,
    add_chat_options,
    add_model_options,
    add_pipeline_option,
    load_spread_model,
    open_chat,
    reply_options,
)
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.cli.terminal import TerminalChat, accept_any_bytes
from mlx_deltamem.show.console import Console


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command."""
    parser = Parser(prog="mlx_deltamem.chat", description=__doc__)
    add_model_options(parser)
    add_pipeline_option(parser)
    add_chat_options(parser)
    return parser


@command_of_ranks
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    check_standard_input("messages")
    check_session_file(args.session)
    args.system_prompt = checked_system_prompt(args.system_prompt)
    chat = open_chat(*load_spread_model(args), args)
    accept_any_bytes()
    console = Console()
    facts = [f"model    {args.model or DEFAULT_MODEL}", f"adapter  {args.adapter or REFERENCE_ADAPTER}"]
    facts.append(f"history  {chat.history}")
    if args.session is not None:
        facts.append(f"session  {args.session} ({len(chat.messages)} messages)")
    console.print(Panel(escape("\n".join(facts)), title="mlx_deltamem.chat", title_align="left"))
    console.print("/help lists the commands", style="dim")
    TerminalChat(Copies(chat, args.session, args.save_kv), reply_options(args), console).run()


if __name__ == "__main__":
    main()
