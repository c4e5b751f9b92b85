"""Generate a reply with a draft model: mlx-lm's speculative decoding, in a chat."""

from collections.abc import Generator, Iterator, Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationResponse, stream_generate
from mlx_lm.models.cache import trim_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.core.drafting import with_draft
from mlx_deltamem.sessions.replies.reply import Reply, ReplySettings
from mlx_deltamem.sessions.turns.turn import Turn

# The longest reply: for drafts, mlx-lm knows no value for "no limit".
_NO_LIMIT = 2**31 - 1


class DraftedReply(Reply):
    """A reply that a draft model proposes, several tokens at a time.

    The model runs the drafted tokens in one call, and mlx-lm trims those that the model would not have chosen.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        cache: Its prompt cache, after the messages of the turn.
        turn: The turn, with the logits after its messages.
        settings: How to generate; `ReplySettings.draft_model` is given.
        seen: The tokens of the text that is in view before the turn. The draft model reads them.

    Raises:
        ValueError: The turn has no logits, or the prompt cache does not allow for a draft model (`with_draft`).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        cache: PromptCache,
        turn: Turn,
        settings: ReplySettings,
        seen: Sequence[int],
    ):
        # Only its check is needed: mlx-lm counts `layers` below, so the caches can be put side by side.
        with_draft(model, cache, [])
        super().__init__(model, tokenizer, cache, turn, settings)
        self._seen = seen

    @property
    def layers(self) -> PromptCache:
        """The entries of the prompt cache. mlx-lm counts the layers of a model to find where a draft's cache begins."""
        return self._cache

    def stream(self, seconds: float) -> Generator[GenerationResponse, None, None]:
        """Generate the reply; argument and result are those of `Reply.stream`."""
        is_drafted = False
        responses = super().stream(seconds)
        try:
            for response in responses:
                is_drafted = response.from_draft
                yield response
        finally:
            # mlx-lm then trims the drafted tokens that are not part of the reply.
            responses.close()
            self._count(is_drafted)

    def _responses(self) -> Iterator[GenerationResponse]:
        longest = self._settings.max_tokens
        return stream_generate(
            # mlx-lm only calls the model, as `Reply.__call__` allows, and counts its layers.
            cast(nn.Module, self),
            self._tokenizer,
            self._turn.opening.ids,
            max_tokens=longest if longest > 0 else _NO_LIMIT,
            sampler=self._settings.sampler,
            prompt_cache=[*self._cache, *self._read_draft()],
            prefill_step_size=self._settings.prefill_step_size,
            **self._settings.options,
        )

    def _read_draft(self) -> PromptCache:
        """A prompt cache of the draft model in which it has read the text in view before the turn."""
        draft, step = cast(nn.Module, self._settings.draft_model), self._settings.prefill_step_size
        cache = make_prompt_cache(draft)
        for begin in range(0, len(self._seen), step):
            draft(mx.array([self._seen[begin : begin + step]]), cache=cache)
            mx.eval([entry.state for entry in cache])
        return cache

    def _count(self, is_last_drafted: bool) -> None:
        """Find out which tokens have run: all of them, but for a last one that was not drafted."""
        self.states_before_last = None
        if not is_last_drafted:
            self.unread = 1 if self.ids and self.end_id is None else 0
        elif self.end_id is not None:
            # The token that ends the reply is not part of it.
            trim_prompt_cache(self._cache, 1)
        self.end_id = None
