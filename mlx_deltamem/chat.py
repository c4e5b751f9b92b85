"""Chat in a terminal with a model that has a memory. Each chat is kept; --continue goes on with it."""

import argparse
import warnings
from pathlib import Path

from rich.markup import escape
from rich.panel import Panel

from mlx_deltamem.adapters.fingerprint import origin_of
from mlx_deltamem.adapters.hub import REFERENCE_ADAPTER
from mlx_deltamem.cli.command import check_standard_input, command
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.entered import check_session_file, checked_system_prompt
from mlx_deltamem.cli.kept import FOLDER, KeptChats, Places
from mlx_deltamem.cli.kept_list import print_found, print_list
from mlx_deltamem.cli.options import (
    DEFAULT_MODEL,
    add_chat_options,
    add_model_options,
    load_model,
    open_chat,
    reply_options,
)
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.cli.terminal import TerminalChat, accept_any_bytes
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.show.console import Console


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command."""
    parser = Parser(prog="mlx_deltamem.chat", description=__doc__)
    kept = parser.add_argument_group("chats that are kept")
    kept.add_argument(
        "--continue",
        dest="go_on",
        nargs="?",
        const="",
        metavar="CHAT",
        help="Go on with a chat that was kept: the last one, or the one of this number or title. Without --model, its "
        "own model and adapter are loaded.",
    )
    kept.add_argument("--list", action="store_true", help="Print the chats that were kept, and end.")
    kept.add_argument("--search", metavar="TEXT", help="Print the messages of these chats that have TEXT, and end.")
    kept.add_argument("--no-save", action="store_true", help="Do not keep this chat.")
    kept.add_argument(
        "--chats", type=user_path, default=user_path(FOLDER), help=f"Folder of the chats (default: {FOLDER})."
    )
    add_model_options(parser)
    add_chat_options(parser)
    return parser


@command
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    kept = KeptChats(args.chats)
    if args.list or args.search is not None:
        print_list(kept) if args.list else print_found(kept, args.search)
        return
    check_standard_input("messages")
    check_session_file(args.session)
    args.system_prompt = checked_system_prompt(args.system_prompt)
    chat = _opened(args, kept)
    file = args.session
    if file is None and not args.no_save:
        file = _new_file(args, kept, chat)
    accept_any_bytes()
    console = Console()
    console.print(Panel(escape("\n".join(_facts(args, chat, file))), title="mlx_deltamem.chat", title_align="left"))
    console.print("/help lists the commands", style="dim")
    is_kept = file is not None and kept.holds(file)
    TerminalChat(Copies(chat, file, args.save_kv, kept if is_kept else None), reply_options(args), console).run()


def _opened(args: argparse.Namespace, kept: KeptChats) -> ChatSession:
    """The chat of the options. With `--continue`, its file becomes `args.session`.

    Raises:
        FileNotFoundError, ValueError: There is no such chat, model or adapter, or they do not fit.
    """
    if args.go_on is None:
        return open_chat(*load_model(args), args)
    if args.session is not None or args.no_save:
        raise ValueError("--continue goes on with a chat that is kept; leave --session and --no-save out")
    # With a model but without a name, the last chat of that model is meant. Its fingerprint is not known yet.
    found = kept.find(args.go_on) if args.go_on or args.model is None else None
    if found is not None and args.model is None and args.adapter is None:
        places = kept.places_of(found)
        if places is None:
            raise ValueError(
                f"the model of the chat {found.title!r} is not known here ({found.texts.origin.name}); name it by "
                "--model and --adapter"
            )
        args.model, args.adapter = places.model, places.adapter
    model, tokenizer = load_model(args)
    args.session = (found or kept.last_of(origin_of(model, tokenizer))).file
    return open_chat(model, tokenizer, args)


def _new_file(args: argparse.Namespace, kept: KeptChats, chat: ChatSession) -> Path | None:
    """The file for a new chat; None if the folder cannot be written."""
    try:
        file = kept.new_file()
        kept.note_model(
            origin_of(chat.model, chat.tokenizer),
            Places(_absolute(args.model or DEFAULT_MODEL), _absolute(args.adapter or REFERENCE_ADAPTER)),
        )
    except OSError as error:
        # A home that cannot be written is no reason not to chat.
        warnings.warn(f"this chat is not kept ({error}); --chats names another folder", stacklevel=2)
        return None
    return file


def _absolute(place: str) -> str:
    """The full path of a folder, so that it is found from another place; the name of a repo is left as it is."""
    path = user_path(place)
    return str(path.resolve()) if path.exists() else place


def _facts(args: argparse.Namespace, chat: ChatSession, file: Path | None) -> list[str]:
    """The lines at the beginning of a chat."""
    facts = [
        f"model    {args.model or DEFAULT_MODEL}",
        f"adapter  {args.adapter or REFERENCE_ADAPTER}",
        f"history  {chat.history}",
    ]
    if chat.title:
        facts.append(f"title    {chat.title}")
    if args.session is not None:
        return [*facts, f"session  {args.session} ({len(chat.messages)} messages)"]
    return [*facts, f"kept in  {file} (--no-save keeps nothing)" if file is not None else "kept in  no file"]


if __name__ == "__main__":
    main()
