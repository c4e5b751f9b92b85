"""The replies of a `ReplyBatch`: as they are asked for, and as they are generated."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, cast

import mlx.core as mx
from mlx_lm.generate import GenerationResponse
from mlx_lm.sample_utils import Sampler

from mlx_deltamem.core.attention import Observer
from mlx_deltamem.sessions.replies.reply import ReplySettings, ReplyTokens
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.state import ChatState
from mlx_deltamem.sessions.turns.turn import Turn


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
        turn: The turn, with its messages read; without their last token, if the reply is not `is_opened`. When the
            reply has ended, the turn has it.
        tokens: The tokens so far, and their text.
        sampler: Chooses its tokens, the same in all ranks.
        is_opened: Whether the last token of the messages has run. If not, it runs in the first step of the batch.
        alone: Generates a reply that cannot be in a batch.
        kept: The number of tokens of the reply that the chat's own cache holds.
        is_off: Whether the reply neither reads nor writes anything: the memory is empty and stays empty.
        last: The last response, while the tokens of the ending run in the batch; else None.
        ending: Those of them that have not run yet; None: they do not run in the batch.
        failure: The error that ended the reply, or None.
        is_ended: Whether the reply has ended.
    """

    new: NewReply
    turn: Turn
    tokens: ReplyTokens
    sampler: Sampler
    is_opened: bool = True
    alone: Iterator[GenerationResponse] | None = None
    kept: int = 0
    is_off: bool = False
    last: GenerationResponse | None = None
    ending: deque[int] | None = None
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

    @property
    def next_is_written(self) -> bool:
        """Whether the next token that runs is written into the memory."""
        return self.turn.reply_written if self.is_opened else self.turn.opening_written[-1]

    def taken(self, token: int, logprobs: mx.array) -> GenerationResponse:
        """Take the next token; returns the response with it."""
        tokenizer, count = self.new.chat.tokenizer, len(self.tokens.ids) + 1
        is_end, is_last = token in tokenizer.eos_token_ids, count == self.settings.max_tokens
        if not is_end:
            self.detokenizer.add_token(token)
        if is_end or is_last:
            self.detokenizer.finalize()
        return self.tokens.take(
            GenerationResponse(
                text=self.detokenizer.last_segment,
                token=token,
                logprobs=logprobs,
                from_draft=False,
                prompt_tokens=len(self.turn.opening.ids),
                prompt_tps=0.0,
                generation_tokens=count,
                generation_tps=0.0,
                peak_memory=mx.get_peak_memory() / 1e9,
                finish_reason="stop" if is_end else "length" if is_last else None,
            )
        )

    def taken_unread(self, token: int, logprobs: mx.array) -> GenerationResponse:
        """As `taken`, for a token that has not run."""
        response = self.taken(token, logprobs)
        if self.tokens.end_id is not None:
            self.tokens.end_id = None
        else:
            self.tokens.unread = 1
        return response


# A reply and its first response. The response is None if the first one comes from `ReplyBatch.step`.
Begun: TypeAlias = tuple[BatchedReply, GenerationResponse | None]


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
