"""The options that several commands share. Options of mlx-lm keep mlx-lm's names."""

import argparse
import json

from mlx_deltamem.adapters.names import REFERENCE_ADAPTER
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.files.jsonl import parsed_json
from mlx_deltamem.options import mlx_lm_defaults
from mlx_deltamem.options.rule import COUNT, PLACE, POSITIVE, REPLY_LENGTH, SEED, SHARE, STEP, TEMPERATURE, Rule, shown
from mlx_deltamem.sessions.turns.history import FULL, NONE, History
from mlx_deltamem.sessions.turns.writing import ALL, MEANINGS, WRITES

# mlx-lm's limit.
_XTC_THRESHOLD = Rule(float, least=0, most=0.5)
_TRUE, _FALSE = ("true", "t"), ("false", "f")
# The name that mlx-lm has, and a short one.
ADAPTER_OPTION = ("--adapter-path", "--adapter")
# The folder of the chats that `mlx_deltamem.chat` keeps.
KEPT_CHATS = "~/.mlx_deltamem/chats"
DEFAULT_MODEL = "mlx-community/Qwen3-4B-Instruct-2507-4bit"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--adapter-path` (or `--adapter`) and `--trust-remote-code`."""
    parser.add_argument("--model", type=PLACE, help=f"Folder or Hub repo of the model (default: {DEFAULT_MODEL}).")
    parser.add_argument(
        *ADAPTER_OPTION,
        dest="adapter",
        metavar="ADAPTER",
        type=PLACE,
        help="Folder or Hub repo (USER/NAME[@REVISION]) of the δ-mem adapter "
        f"(default: {REFERENCE_ADAPTER}, with the default model).",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")


def model_and_adapter(args: argparse.Namespace) -> tuple[str, str]:
    """The names of the model and the adapter that the options of `add_model_options` give.

    Raises:
        ValueError: A model was named without an adapter.
    """
    if args.adapter is None and args.model is not None:
        raise ValueError(
            f"--model {args.model} needs an --adapter-path made for it (without a memory: mlx_lm.generate)"
        )
    return args.model or DEFAULT_MODEL, args.adapter or REFERENCE_ADAPTER


def add_pipeline_option(parser: argparse.ArgumentParser) -> None:
    """Add `--pipeline`, for commands that spread a model over several ranks."""
    parser.add_argument(
        "--pipeline",
        action="store_true",
        help="Under mlx.launch: give each machine some of the layers, in place of a part of each layer.",
    )


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a chat, and of how its replies are generated."""
    parser.add_argument(
        "--session",
        type=user_path,
        help="A .safetensors file for the chat. The chat in it goes on if the file exists; the chat is saved to it.",
    )
    parser.add_argument(
        "--save-kv", action="store_true", help="Save keys and values too, so that the chat goes on without delay."
    )
    parser.add_argument(
        "--history",
        type=history_option,
        help="The part of earlier turns that the model sees beside its memory: full, none, or a number of tokens "
        f"(default: as in the session, else {FULL}). Without full, each turn reads system prompt and tokens anew.",
    )
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items())
    parser.add_argument(
        "--write",
        choices=WRITES,
        help=f"The part of a turn to write into the memory. {meanings} (default: as in the session, else {ALL}).",
    )
    parser.add_argument("--system-prompt", "--system", help="System prompt of a new chat.")
    parser.add_argument(
        "--max-tokens", "-m", type=REPLY_LENGTH, default=mlx_lm_defaults.MAX_TOKENS, help="Longest reply, in tokens."
    )
    parser.add_argument("--temp", type=TEMPERATURE, default=mlx_lm_defaults.TEMP, help="Sampling temperature.")
    parser.add_argument("--top-p", type=SHARE, default=mlx_lm_defaults.TOP_P, help="Sampling top-p.")
    parser.add_argument("--min-p", type=SHARE, default=mlx_lm_defaults.MIN_P, help="Sampling min-p.")
    parser.add_argument("--top-k", type=COUNT, default=mlx_lm_defaults.TOP_K, help="Sampling top-k.")
    parser.add_argument(
        "--min-tokens-to-keep",
        type=POSITIVE,
        default=mlx_lm_defaults.MIN_TOKENS_TO_KEEP,
        help="Tokens that min-p always keeps.",
    )
    parser.add_argument(
        "--xtc-probability",
        type=SHARE,
        default=mlx_lm_defaults.XTC_PROBABILITY,
        help="How often XTC sampling leaves out the likeliest tokens.",
    )
    parser.add_argument(
        "--xtc-threshold",
        type=_XTC_THRESHOLD,
        default=mlx_lm_defaults.XTC_THRESHOLD,
        help="XTC sampling leaves out the tokens above this probability, except the least likely of them.",
    )
    parser.add_argument("--seed", type=SEED, help="Seed of the sampling.")
    parser.add_argument(
        "--prefill-step-size",
        type=STEP,
        default=mlx_lm_defaults.PREFILL_STEP_SIZE,
        help="Prompt tokens to process at a time.",
    )
    parser.add_argument(
        "--chat-template-config", type=_json_object, default={}, help="Options of the chat template, a JSON object."
    )
    parser.add_argument("--extra-eos-token", nargs="+", default=(), help="More tokens that end a reply.")


def true_or_false(text: str) -> bool:
    """An argparse type: what mlx-lm reads as true or false, but no other text."""
    if text.lower() not in _TRUE + _FALSE:
        raise argparse.ArgumentTypeError(f"is {shown(text)}; expected True or False")
    return text.lower() in _TRUE


def history_option(text: str) -> History:
    """An argparse type: the history of a chat."""
    try:
        return text if text in (FULL, NONE) else int(str(POSITIVE(text)))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"is {shown(text)}; expected {FULL!r}, {NONE!r} or a number of tokens, {POSITIVE.expected}"
        ) from None


def _json_object(text: str) -> dict[str, object]:
    """An argparse type: a JSON object."""
    value, problem = parsed_json(text.encode(errors="surrogatepass"))
    if problem or not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"is {problem or shown(text)}; expected a JSON object like {{}}")
    try:
        # As a session file stores it.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {shown(text)}; expected finite numbers and whole characters") from None
    return dict(value)
