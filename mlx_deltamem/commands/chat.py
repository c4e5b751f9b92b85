"""The work of `mlx_deltamem.chat`: it opens the chat and runs it in the terminal."""

import argparse

from rich.markup import escape
from rich.panel import Panel

from mlx_deltamem.cli.command import check_standard_input
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.entered import check_session_file, checked_system_prompt
from mlx_deltamem.cli.opening import load_model, open_chat, reply_options
from mlx_deltamem.cli.options import model_and_adapter
from mlx_deltamem.cli.terminal import TerminalChat, accept_any_bytes
from mlx_deltamem.show.console import Console


def run(args: argparse.Namespace) -> None:
    """Chat until the user leaves.

    Raises:
        OSError: A file does not exist, or cannot be read or written.
        ValueError: The options do not fit the model or the session, or the chat was not saved.
    """
    check_standard_input("messages")
    check_session_file(args.session)
    args.system_prompt = checked_system_prompt(args.system_prompt)
    model, tokenizer = load_model(args)
    options = reply_options(tokenizer, args)
    chat = open_chat(model, tokenizer, args)
    accept_any_bytes()
    console = Console()
    names = model_and_adapter(args)
    facts = [f"model    {names[0]}", f"adapter  {names[1]}"]
    facts.append(f"history  {chat.history}")
    if args.session is not None:
        facts.append(f"session  {args.session} ({len(chat.messages)} messages)")
    console.print(Panel(escape("\n".join(facts)), title="mlx_deltamem.chat", title_align="left"))
    console.print("/help lists the commands", style="dim")
    TerminalChat(Copies(chat, args.session, args.save_kv), options, console).run()
