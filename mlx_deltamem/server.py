"""Serve a model with named memories, for clients of OpenAI's and Anthropic's APIs and for browsers."""

import argparse
import logging
import os
import re
from pathlib import Path

from mlx_deltamem.cli.command import command_of_ranks
from mlx_deltamem.cli.options import add_model_options, add_pipeline_option, history_option, model_and_adapter
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.options import mlx_lm_defaults
from mlx_deltamem.options.rule import COUNT, POSITIVE, REPLY_LENGTH, SHARE, TEMPERATURE, Rule, shown
from mlx_deltamem.ranks.launched import launched_rank
from mlx_deltamem.serving.api.settings import READ_ONLY_PATTERN
from mlx_deltamem.sessions.turns.history import FULL
from mlx_deltamem.sessions.turns.writing import ALL, MEANINGS, WRITES

_LOCAL = ("127.0.0.1", "localhost", "::1")
_KEY_VARIABLE = "MLX_DELTAMEM_API_KEY"
_FIELDS = ("conversation", "metadata.memory", "prompt_cache_key", "user")
_EACH_TURN = "turn"
PORT = Rule(int, least=0, most=65_535)
SECONDS = Rule(float, least=0.1, most=86_400)
BYTES = Rule(int, least=1, most=2**63 - 1)


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command."""
    parser = Parser(prog="mlx_deltamem.server", description=__doc__)
    add_model_options(parser)
    add_pipeline_option(parser)
    memory = parser.add_argument_group("memories")
    memory.add_argument(
        "--memories",
        type=user_path,
        default=user_path("~/.mlx_deltamem/memories"),
        help="Folder of the memories, one session file each (default: ~/.mlx_deltamem/memories).",
    )
    memory.add_argument(
        "--history",
        type=history_option,
        default=FULL,
        help=f"Text that chats of a new memory see (default: {FULL}).",
    )
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items())
    memory.add_argument(
        "--write", choices=WRITES, default=ALL, help=f"The part of a turn that a new memory writes. {meanings}."
    )
    memory.add_argument(
        "--memory-from",
        nargs="+",
        choices=_FIELDS,
        default=[],
        help="Fields of a request that name its memory if nothing else does.",
    )
    memory.add_argument("--memory-header", nargs="+", help="Headers that name the memory, in place of the usual ones.")
    memory.add_argument(
        "--read-only-pattern",
        type=_pattern,
        default=READ_ONLY_PATTERN,
        help="A request only reads its memory if the last message of the user matches this (default: how the requests "
        "begin that Open WebUI makes by itself).",
    )
    memory.add_argument(
        "--memory-bytes", type=BYTES, default=2 << 30, help="Memories and texts kept in RAM (default: 2 GiB)."
    )
    memory.add_argument(
        "--durability",
        type=_durability,
        default=0.0,
        metavar="turn|SECONDS",
        help="When a turn is saved: before the end of its reply is sent (turn), or at most this much later "
        f"(default: {_EACH_TURN}).",
    )
    memory.add_argument(
        "--replay-limit",
        type=COUNT,
        default=4096,
        help="Tokens of later turns that may run again after an edit below them (default: 4096).",
    )
    web = parser.add_argument_group("web")
    web.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: 127.0.0.1).")
    web.add_argument("--port", type=PORT, default=8080, help="Port (default: 8080; 0: any free one).")
    web.add_argument(
        "--api-key-file", type=user_path, help=f"File with the key that clients give (or {_KEY_VARIABLE} is set)."
    )
    web.add_argument("--insecure", action="store_true", help="Serve other machines without a key.")
    web.add_argument("--allowed-host", nargs="+", default=[], help="Further names of this server in URLs.")
    reply = parser.add_argument_group("replies")
    reply.add_argument("--max-tokens", type=REPLY_LENGTH, default=512, help="Longest reply, if a request gives none.")
    reply.add_argument(
        "--temp", type=TEMPERATURE, default=mlx_lm_defaults.TEMP, help="Temperature, if a request gives none."
    )
    reply.add_argument("--top-p", type=SHARE, default=mlx_lm_defaults.TOP_P, help="Top-p, if a request gives none.")
    reply.add_argument("--min-p", type=SHARE, default=mlx_lm_defaults.MIN_P, help="Min-p, if a request gives none.")
    reply.add_argument("--top-k", type=COUNT, default=mlx_lm_defaults.TOP_K, help="Top-k, if a request gives none.")
    reply.add_argument("--max-batch", type=POSITIVE, default=32, help="Replies at a time (default: 32).")
    reply.add_argument("--queue", type=POSITIVE, default=256, help="Requests that may wait (default: 256).")
    reply.add_argument(
        "--grace", type=COUNT, default=10, help="Seconds for the replies under way when the server ends (default: 10)."
    )
    reply.add_argument(
        "--reply-timeout",
        type=SECONDS,
        default=600.0,
        metavar="SECONDS",
        help="The longest time for a reply, its wait for other requests included (default: 600).",
    )
    reply.add_argument(
        "--exit-on-stall",
        type=SECONDS,
        metavar="SECONDS",
        help="End the server with exit code 1 if one step of the model takes longer than this (default: never).",
    )
    return parser


@command_of_ranks
def main() -> None:
    """Run the command."""
    args = setup_arg_parser().parse_args()
    # Of several ranks, rank 0 alone has the key.
    key = _checked_key(args) if launched_rank() == 0 else None
    name = _name_of(model_and_adapter(args)[0])
    from mlx_deltamem.cli.opening import load_spread_model

    try:
        from mlx_deltamem.serving.run import serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the server needs {error.name}; install it with: pip install 'mlx-deltamem[server]'"
        ) from None
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model, tokenizer = load_spread_model(args)
    serve(model, tokenizer, name, key, args)


def _name_of(model: str) -> str:
    """The name of a model for clients: that of its folder, or of its Hub repo without the owner."""
    place = Path(model)
    return (place.resolve() if place.is_dir() else place).name or "model"


def _pattern(text: str) -> str:
    """Check a regular expression.

    Raises:
        ArgumentTypeError: It is none.
    """
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error}); correct it") from None
    return text


def _checked_key(args: argparse.Namespace) -> str | None:
    """The key that clients give.

    Raises:
        FileNotFoundError: Its file is missing.
        ValueError: It has no usable key; or there is none, and other machines are let in.
    """
    key = _api_key(args.api_key_file)
    if args.host not in _LOCAL and key is None and not args.insecure:
        raise ValueError(
            f"--host {args.host} lets other machines in, and there is no key; expected --api-key-file, "
            f"{_KEY_VARIABLE} or --insecure"
        )
    return key


def _durability(text: str) -> float:
    """An argparse type: the seconds that a turn may wait for its file; 0: none."""
    try:
        return 0.0 if text == _EACH_TURN else float(str(SECONDS(text)))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"is {shown(text)}; expected {_EACH_TURN!r} or seconds, {SECONDS.expected}"
        ) from None


def _api_key(path: Path | None) -> str | None:
    """The key that clients give.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is empty, or has other characters than a header can have.
    """
    key = os.environ.get(_KEY_VARIABLE) if path is None else path.read_text(encoding="utf-8", errors="replace").strip()
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        place = _KEY_VARIABLE if path is None else path
        raise ValueError(f"{place} has no usable key; expected letters, digits and punctuation on one line")
    return key


if __name__ == "__main__":
    main()
