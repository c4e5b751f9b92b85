"""The replies of a `ReplyBatch`: as they are asked for, and as they are generated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import mlx.core as mx
from mlx_lm.generate import GenerationResponse
from mlx_lm.sample_utils import Sampler

from mlx_deltamem.core.attention import Observer
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.sessions import openings
from mlx_deltamem.sessions.reply import ReplySettings, ReplyTokens
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.state import ChatState
from mlx_deltamem.sessions.together import can_run_together
from mlx_deltamem.sessions.turn import Turn

_BATCHED_OPTIONS = {"logits_processors"}


@dataclass(frozen=True, eq=False)
class NewReply:
    """A reply that is to be generated.

    Attributes:
        chat: A chat with the batch's model.
        turn: The turn, as from `ChatSession.new_turn`.
        settings: How to generate.
        becomes_turn: Whether the turn is added to the chat when the reply ends. If not, only the reply is wanted, and
            the chat cannot be used any more.
        observe: Called as `observing` does, for each token of the reply; or None. The reply then runs beside the batch,
            and `chat.state.filled_cache` has its memory.
    """

    chat: ChatSession
    turn: Turn
    settings: ReplySettings
    becomes_turn: bool = True
    observe: Observer | None = None


@dataclass(eq=False)
class BatchedReply:
    """A reply that is being generated.

    Attributes:
        new: The reply as it was asked for.
        turn: The turn, with its messages read.
        tokens: The tokens so far, and their text.
        sampler: Chooses its tokens, the same in all ranks.
        uid: The number of the row in mlx-lm's batch; None: it is not in the batch.
        alone: Generates a reply that cannot be in a batch.
        kept: The number of tokens of the reply that the chat's own cache holds.
        is_off: Whether the reply neither reads nor writes anything: the memory is empty and stays empty.
        failure: The error that ended a reply beside the batch, or None.
        is_ended: Whether the reply has ended.
    """

    new: NewReply
    turn: Turn
    tokens: ReplyTokens
    sampler: Sampler
    uid: int | None = None
    alone: Iterator[GenerationResponse] | None = None
    kept: int = 0
    is_off: bool = False
    failure: Exception | None = None
    is_ended: bool = False

    def __post_init__(self) -> None:
        self.detokenizer = self.new.chat.tokenizer.detokenizer

    @property
    def state(self) -> ChatState:
        """The state of the chat."""
        return self.new.chat.state

    @property
    def settings(self) -> ReplySettings:
        """How to generate."""
        return self.new.settings


# A reply and its first response. The response is None if the first one comes from `ReplyBatch.step`.
Begun: TypeAlias = tuple[BatchedReply, GenerationResponse | None]


def can_be_batched(cache: PromptCache, settings: ReplySettings) -> bool:
    """Whether mlx-lm's batches can hold the prompt cache of a chat, and generate with these settings."""
    return can_run_together(cache) and set(settings.options) <= _BATCHED_OPTIONS


def can_begin_together(new: NewReply) -> bool:
    """Whether the messages of a reply can be read in one pass with those of others."""
    is_plain = new.observe is None and set(new.settings.options) <= _BATCHED_OPTIONS
    return is_plain and openings.can_begin_together(new.chat.state, new.turn, new.settings.prefill_step_size)


def groups(asked: Sequence[NewReply]) -> Iterator[list[NewReply]]:
    """Divide replies into groups, so that the messages of a group, padded, are as long as one step at most."""
    group: list[NewReply] = []
    longest = 0
    for new in asked:
        length = len(new.turn.opening.ids)
        if group and max(longest, length) * (len(group) + 1) > new.settings.prefill_step_size:
            yield group
            group, longest = [], 0
        group.append(new)
        longest = max(longest, length)
    if group:
        yield group


def chosen(row: BatchedReply, logits: mx.array) -> tuple[int, mx.array]:
    """Choose a token as mlx-lm does, from the logits `[1, V]` after the tokens so far; also, all log-probabilities."""
    processors = row.settings.options.get("logits_processors") or []
    if processors:
        tokens = mx.array([*row.turn.opening.ids, *row.tokens.ids])
        for processor in processors:
            logits = processor(tokens, logits)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    token = cast(int, row.sampler(logprobs).item())
    return token, logprobs[0]
