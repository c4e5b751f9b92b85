"""The work of `mlx_deltamem.chat`: it opens the chat, keeps it, and runs it in the terminal."""

import argparse
import warnings
from contextlib import suppress
from pathlib import Path

from rich.markup import escape
from rich.panel import Panel

from mlx_deltamem.adapters.fingerprint import Origin, origin_of
from mlx_deltamem.cli.command import check_standard_input
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.entered import check_session_file, checked_system_prompt
from mlx_deltamem.cli.kept import KeptChats, Places
from mlx_deltamem.cli.kept_list import print_found, print_list
from mlx_deltamem.cli.opening import load_spread_model, open_chat, reply_options
from mlx_deltamem.cli.options import model_and_adapter
from mlx_deltamem.cli.terminal import TerminalChat, accept_any_bytes
from mlx_deltamem.files.atomic import resolved, user_path
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.foreign.folder import foreign_format
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.show.console import Console


def run(args: argparse.Namespace) -> None:
    """Chat until the user leaves, or print the chats that were kept.

    Raises:
        OSError: A file does not exist, or cannot be read or written.
        ValueError: The options do not fit the model or the session, or the chat was not saved.
    """
    ranks = world()
    # Of several ranks, rank 0 alone has the folder and the chats in it.
    kept = KeptChats(Path(ranks.first(lambda: str(args.chats))))
    if args.list or args.search is not None:
        ranks.first(lambda: print_list(kept) if args.list else print_found(kept, args.search))
        return
    check_standard_input("messages")
    check_session_file(args.session)
    args.system_prompt = checked_system_prompt(args.system_prompt)
    chat = _opened(args, kept)
    options = reply_options(chat.tokenizer, args)
    file = args.session
    if file is None and not args.no_save:
        file = _new_file(args, kept, chat)
    accept_any_bytes()
    console = Console()
    console.print(Panel(escape("\n".join(_facts(args, chat, file))), title="mlx_deltamem.chat", title_align="left"))
    console.print("/help lists the commands", style="dim")
    is_kept = file is not None and ranks.first(lambda: kept.holds(file))
    is_saved = args.session is not None and ranks.first(lambda: _is_as_saved(args))
    TerminalChat(Copies(chat, file, args.save_kv, kept if is_kept else None, is_saved), options, console).run()


def _is_as_saved(args: argparse.Namespace) -> bool:
    """Whether the session file has the chat as the options ask for it."""
    is_changed = args.history is not None or args.write is not None or args.save_kv
    return args.session.exists() and foreign_format(resolved(args.session)) is None and not is_changed


def _opened(args: argparse.Namespace, kept: KeptChats) -> ChatSession:
    """The chat of the options. With `--continue`, its file becomes `args.session`.

    Raises:
        FileNotFoundError, ValueError: There is no such chat, model or adapter, or they do not fit.
    """
    if args.go_on is None:
        return open_chat(*load_spread_model(args), args)
    ranks = world()
    is_named = args.model is not None or args.adapter is not None
    file, args.model, args.adapter = ranks.first(lambda: _found(args, kept))
    model, tokenizer = load_spread_model(args)
    origin = origin_of(model, tokenizer)
    args.session = Path(file or ranks.first(lambda: str(kept.last_of(origin).file)))
    chat = open_chat(model, tokenizer, args)
    if is_named:
        # The folder may not have known where they are, or they were moved. A chat goes on without such a note.
        with suppress(OSError):
            ranks.first(lambda: _note_model(args, kept, origin))
    return chat


def _found(args: argparse.Namespace, kept: KeptChats) -> tuple[str, str | None, str | None]:
    """The file of the chat that `--continue` names, or "" for the last one of the model; its model and its adapter.

    Raises:
        ValueError: There is no such chat, or its model is not known.
    """
    if not args.go_on and args.model is not None:
        # The last chat of that model is meant. Its fingerprint is not known yet.
        return "", args.model, args.adapter
    found = kept.find(args.go_on)
    if args.model is not None:
        return str(found.file), args.model, args.adapter
    places = kept.places_of(found)
    if places is None:
        raise ValueError(
            f"the model of the chat {found.title!r} is not known here ({found.texts.origin.name}); name it by "
            "--model and --adapter"
        )
    # An adapter may be named alone, for example after its folder was moved.
    return str(found.file), places.model, args.adapter or places.adapter


def _new_file(args: argparse.Namespace, kept: KeptChats, chat: ChatSession) -> Path | None:
    """The file for a new chat; None if the folder cannot be written."""
    origin = origin_of(chat.model, chat.tokenizer)

    def begin() -> str:
        file = kept.new_file()
        _note_model(args, kept, origin)
        return str(file)

    try:
        return Path(world().first(begin))
    except OSError as error:
        # A home that cannot be written is no reason not to chat.
        warnings.warn(f"this chat is not kept ({error}); --chats names another folder", stacklevel=2)
        return None


def _note_model(args: argparse.Namespace, kept: KeptChats, origin: Origin) -> None:
    """Note where the model and the adapter of the options are.

    Raises:
        OSError: The folder of the chats cannot be written.
    """
    model, adapter = model_and_adapter(args)
    kept.note_model(origin, Places(_absolute(model), _absolute(adapter)))


def _absolute(place: str) -> str:
    """The full path of a folder, so that it is found from another place; the name of a repo is left as it is."""
    path = user_path(place)
    return str(path.resolve()) if path.exists() else place


def _facts(args: argparse.Namespace, chat: ChatSession, file: Path | None) -> list[str]:
    """The lines at the beginning of a chat."""
    names = model_and_adapter(args)
    facts = [
        f"model    {names[0]}",
        f"adapter  {names[1]}",
        f"history  {chat.history}",
    ]
    if chat.title:
        facts.append(f"title    {chat.title}")
    if args.session is not None:
        return [*facts, f"session  {args.session} ({len(chat.messages)} messages)"]
    return [*facts, f"kept in  {file} (--no-save keeps nothing)" if file is not None else "kept in  no file"]
