"""The data between the HTTP side and the engine: requests, the pieces of a reply, its end, and errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from mlx_deltamem.sessions.reading.fitting import TooLongError
from mlx_deltamem.sessions.text.messages import Message

# The code of a refusal whose text does not fit into the model's window. Clients know it from OpenAI's API.
TOO_LONG = "context_length_exceeded"
# The revisions that a request allows a memory to have; None: all.
Revisions: TypeAlias = Sequence[str] | None


class Mode(Enum):
    """How a request uses a memory."""

    WRITE = "write"
    READ = "read"
    OFF = "off"


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a reply are chosen; the fields are those of mlx-lm's samplers and logits processors.

    Attributes:
        seed: The seed of this request alone; None: a random one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition_penalty: float = 0.0
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    presence_context_size: int = 20
    frequency_penalty: float = 0.0
    frequency_context_size: int = 20
    seed: int | None = None


@dataclass(frozen=True)
class ReplyRequest:
    """A request for a reply.

    Attributes:
        messages: The whole chat as the client sends it, with the system messages; with `continues`, what is new.
        memory: The name of a memory; None: a private memory of this chat, in RAM.
        mode: How the memory is used.
        match: The revisions that the memory may have; None: all.
        chat: The client's id of the chat; None if it gives none.
        continues: The id of the turn that the messages follow (`Done.turn`); None: the messages say it.
        tools: Tools in OpenAI's form; None: none.
        template_options: Further variables of the chat template.
        goes_on: Whether the chat may go on from the reply. If not, and the memory is only read, nothing of it is kept.
        is_streamed: Whether the client gets the reply as it is generated. If not, and the client leaves before the end,
            it has got nothing, and so nothing is kept.
        text: A plain text to continue without a chat template, in place of messages. The memory is then only read.
        max_tokens: The longest reply, in tokens; -1: no limit.
        stop: Texts that end the reply.
        sampling: How tokens are chosen.
        top_logprobs: The number of likeliest tokens to tell at each place; None: no log-probabilities.
    """

    messages: tuple[Message, ...] = ()
    memory: str | None = None
    mode: Mode = Mode.WRITE
    match: Revisions = None
    chat: str | None = None
    continues: str | None = None
    tools: tuple[Mapping[str, object], ...] | None = None
    template_options: Mapping[str, object] = field(default_factory=dict)
    goes_on: bool = True
    is_streamed: bool = False
    text: str | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    top_logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log-probability.

    Attributes:
        token: Its text; U+FFFD stands for a part of a character.
        logprob: The log-probability.
        raw: Its bytes. Those of the tokens of a text are the text in UTF-8.
    """

    token: str
    logprob: float
    raw: bytes


@dataclass(frozen=True)
class Piece:
    """One step of a reply.

    Attributes:
        text: The new text; often empty, because characters may need several tokens.
        logprob: The token that was chosen; None if log-probabilities were not asked for.
        top: The likeliest tokens at its place.
        note: As in `Done`. The first step has it too.
    """

    text: str
    logprob: TokenLogprob | None = None
    top: tuple[TokenLogprob, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Done:
    """The end of a reply.

    Attributes:
        finish_reason: `stop` or `length`.
        prompt_tokens, reply_tokens: How many tokens the visible text before the reply, and the reply, have.
        read_tokens: How many tokens before the reply ran for this request. The others were known.
        turn: The id of the turn, for `continues`.
        memory: The name of the memory; None: a private one.
        revision: The number of replies and remembered texts that the memory has now.
        written: Whether the turn was written into the memory.
        note: A remark for the client, for example that the chat's text did not fit; None if there is none.
        saved: Whether all turns of the memory are in its file now. A private memory has none.
        stop_text: The stop text that ended the reply, or None.
        tag: The revision of the memory that its ETag has; None for a private one.
    """

    finish_reason: str
    prompt_tokens: int
    reply_tokens: int
    read_tokens: int
    turn: str
    memory: str | None
    revision: int
    written: bool
    note: str | None = None
    saved: bool = True
    stop_text: str | None = None
    tag: str | None = None


class RefusedError(Exception):
    """A request that is refused, or that failed.

    Attributes:
        status: The HTTP status.
        code: A short name of the kind of error, for programs.
    """

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status = status
        self.code = code


def refusal(error: Exception) -> Exception:
    """The answer to a request for an error of the library: a ValueError refuses it, any other error stays."""
    code = TOO_LONG if isinstance(error, TooLongError) else "invalid_request_error"
    return RefusedError(400, code, str(error)) if isinstance(error, ValueError) else error


def ending() -> RefusedError:
    """The answer to a request while the server ends."""
    return RefusedError(503, "ending", "the server is ending; try again later")
