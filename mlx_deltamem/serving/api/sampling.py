"""The fields of a request that say how a reply is generated."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.options.rule import COUNT, REPLY_LENGTH, SHARE, Rule
from mlx_deltamem.serving.api.body import Fields
from mlx_deltamem.serving.api.errors import BadFieldError
from mlx_deltamem.serving.api.settings import Settings
from mlx_deltamem.serving.exchange import Sampling
from mlx_deltamem.sessions.session import TAKEN_NAMES
from mlx_deltamem.sessions.template.options import check_names, check_storable

MOST_CHOICES = 8
_MOST_STOPS, _LONGEST_STOP = 16, 4_096
# No model has a longer text, and the engine may add to the number.
_LONGEST_REPLY = 2**31 - 1
# MLX takes seeds of 64 bits without a sign.
_SEEDS = 2**64
_SEED = Rule(int, least=-(2**63), most=_SEEDS - 1)
# The numbers that are added to logits. With much larger ones logits are infinite, and then no token can be chosen.
_ADDED = Rule(float, least=-100, most=100)
# Logits are multiplied or divided by the penalty.
_REPETITION = Rule(float, least=0.01, most=100, other=(0, "none"))
# Logits are divided by the temperature, and are infinite for smaller ones.
_LEAST_TEMPERATURE = 1e-6
_ANY_TEMPERATURE = Rule(float, least=0)
_XTC_THRESHOLD = Rule(float, least=0, most=0.5)
_TOP_LOGPROBS = Rule(int, least=0, most=20, other=(-1, "none"))
_CHOICES = Rule(int, least=1, most=MOST_CHOICES)
# Names that a request cannot give to a template: those that a session file cannot have; a template is a program, and
# tools have a field of their own.
_TAKEN_BY_TEMPLATE = TAKEN_NAMES | {"chat_template", "tools", "documents"}


@dataclass(frozen=True)
class Asked:
    """The wishes of a request for its reply. They are the same for all endpoints.

    Attributes:
        sampling, max_tokens, stop, top_logprobs: As in `ReplyRequest`.
        choices: The number of replies.
        stream: Whether the reply is sent while it is generated.
        usage: Whether a stream ends with the numbers of tokens.
    """

    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    choices: int
    stream: bool
    usage: bool


def asked(
    fields: Fields,
    settings: Settings,
    tokenizer: TokenizerWrapper,
    top_logprobs: int | None = None,
    lengths: Rule = REPLY_LENGTH,
) -> Asked:
    """Read what a request of OpenAI's completion endpoints asks for.

    Args:
        fields: The body.
        settings: The settings, with the values for fields that are absent.
        tokenizer: The tokenizer, for the number of tokens.
        top_logprobs: As in `ReplyRequest`; the two endpoints have other fields for it.

    Raises:
        BadFieldError: A field has a value that is not allowed.
    """
    options = fields.nested("stream_options")
    max_tokens = fields.whole("max_tokens", lengths, settings.max_tokens)
    return Asked(
        sampling=sampling(fields, settings, tokenizer),
        max_tokens=reply_length(fields.whole("max_completion_tokens", lengths, max_tokens)),
        stop=stop_texts(fields, "stop"),
        top_logprobs=top_logprobs,
        choices=fields.whole("n", _CHOICES, 1),
        stream=fields.flag("stream"),
        usage=options.flag("include_usage") if options else False,
    )


def reply_length(tokens: int) -> int:
    """The longest reply for the engine."""
    return min(tokens, _LONGEST_REPLY)


def sampling(fields: Fields, settings: Settings, tokenizer: TokenizerWrapper) -> Sampling:
    """How tokens are chosen."""
    seed = fields.whole("seed", _SEED, None)
    top_k = fields.whole("top_k", COUNT, settings.top_k)
    return Sampling(
        temperature=_temperature(fields, settings),
        top_p=fields.number("top_p", SHARE, settings.top_p),
        # MLX refuses numbers above the number of tokens. All tokens are no limit.
        top_k=0 if top_k >= len(tokenizer) else top_k,
        min_p=fields.number("min_p", SHARE, settings.min_p),
        xtc_probability=fields.number("xtc_probability", SHARE, 0.0),
        xtc_threshold=fields.number("xtc_threshold", _XTC_THRESHOLD, 0.1),
        logit_bias=_logit_bias(fields, tokenizer),
        repetition_penalty=fields.number("repetition_penalty", _REPETITION, 0.0),
        repetition_context_size=fields.whole("repetition_context_size", COUNT, 20),
        presence_penalty=fields.number("presence_penalty", _ADDED, 0.0),
        presence_context_size=fields.whole("presence_context_size", COUNT, 20),
        frequency_penalty=fields.number("frequency_penalty", _ADDED, 0.0),
        frequency_context_size=fields.whole("frequency_context_size", COUNT, 20),
        seed=None if seed is None else seed % _SEEDS,
    )


def _temperature(fields: Fields, settings: Settings) -> float:
    given = fields.number("temperature", _ANY_TEMPERATURE, settings.temperature)
    # Some clients send a tiny one for the likeliest token.
    return 0.0 if given < _LEAST_TEMPERATURE else given


def seed_of_choice(seed: int | None, choice: int) -> int | None:
    """The seed of one of several replies: each has another one, else they would be equal."""
    return None if seed is None else (seed + choice) % _SEEDS


def stop_texts(fields: Fields, name: str) -> tuple[str, ...]:
    """The texts that end a reply: a text, or a list of some."""
    value = fields.values.get(name)
    texts = ([value] if value else []) if isinstance(value, str) else fields.items(name) or []
    if len(texts) > _MOST_STOPS:
        raise BadFieldError(
            fields.name(name), f"{fields.name(name)} has {len(texts)} texts; expected {_MOST_STOPS} at most"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_STOP:
            place = f"{fields.name(name)}[{index}]"
            raise BadFieldError(place, f"{place} is not a text of 1 to {_LONGEST_STOP:,} characters; give one")
    return tuple(text for text in texts if isinstance(text, str))


def chat_logprobs(fields: Fields) -> int | None:
    """The number of likeliest tokens that a chat request wants at each place; None: no log-probabilities."""
    top = max(fields.whole("top_logprobs", _TOP_LOGPROBS, 0), 0)
    return top if fields.flag("logprobs") or top else None


def check_text_format(fields: Fields, name: str) -> None:
    """Refuse a request for a reply in another form than text."""
    wanted = fields.nested(name)
    kind = wanted.text("type", "text") if wanted else "text"
    if kind != "text":
        param = f"{fields.name(name)}.type"
        raise BadFieldError(
            param,
            f"{param} is {kind[:80]!r}; expected text: this server does not constrain replies",
            "unsupported_value",
        )


def template_options(fields: Fields) -> Mapping[str, Json]:
    """The variables of the chat template that the field `chat_template_kwargs` gives."""
    given = fields.nested("chat_template_kwargs")
    if given is None:
        return {}
    try:
        check_names(given.values, _TAKEN_BY_TEMPLATE)
        check_storable(given.values)
    except ValueError as error:
        raise BadFieldError("chat_template_kwargs", str(error)) from None
    if wrong := [name for name in given.values if not name.isidentifier()]:
        raise BadFieldError("chat_template_kwargs", f"chat_template_kwargs names {wrong[0][:80]!r}; expected variables")
    return given.values


def _logit_bias(fields: Fields, tokenizer: TokenizerWrapper) -> Mapping[int, float]:
    given = fields.nested("logit_bias")
    if given is None:
        return {}
    bias: dict[int, float] = {}
    for token in given.values:
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < len(tokenizer)):
            raise BadFieldError(
                "logit_bias", f"logit_bias names the token {token[:80]!r}; expected 0 to {len(tokenizer) - 1:,}"
            )
        bias[int(token)] = given.number(token, _ADDED, 0.0)
    return bias
