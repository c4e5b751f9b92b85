"""Generate the replies to several prompts together.

Every reply is drawn with its own random numbers, so that it does not depend on the other replies of the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.generate_utils import BatchStats
from mlx_lm.sample_utils import Sampler, apply_top_k, apply_top_p, greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.spread import same_tokens
from mlx_deltamem.evaluation.task import Sampling

# A reply ends because the model ended it, because of a stop text, or because it has the most tokens allowed.
Ending = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Start:
    """The place that a reply is generated from.

    Attributes:
        cache: The prompt cache after the beginning of the prompt. It is consumed: use it only once.
        ids: The rest of the prompt, at least 2 tokens.
        max_tokens: The longest reply, in tokens.
        sampler: Draws the tokens of the reply.
    """

    cache: PromptCache
    ids: list[int]
    max_tokens: int
    sampler: Sampler


@dataclass(frozen=True)
class GeneratedReply:
    """A reply.

    Attributes:
        text: The text, without special tokens and without the stop text.
        tokens: The number of generated tokens, including the token that ended the reply.
        ending: The reason why the reply ended.
        ids: The tokens, without the token that ended the reply.
    """

    text: str
    tokens: int
    ending: Ending
    ids: tuple[int, ...]


def seeded_sampler(sampling: Sampling, seed: int) -> Sampler:
    """A sampler for one reply, with random numbers that depend on the seed alone.

    The samplers of mlx-lm draw the tokens of all replies of a batch from one stream of random numbers.
    """
    if sampling.temp == 0:
        return greedy_sampler
    key = mx.random.key(seed)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        if 0 < sampling.top_p < 1:
            logprobs = apply_top_p(logprobs, sampling.top_p)
        if sampling.top_k:
            logprobs = apply_top_k(logprobs, sampling.top_k)
        return mx.random.categorical(logprobs / sampling.temp, key=now)

    return sample


class _Growing:
    """A reply while it is generated."""

    def __init__(self, tokenizer: TokenizerWrapper, stop: Sequence[str]):
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []

    def add(self, token: int, finish_reason: str | None) -> GeneratedReply | None:
        """Add a token. Returns the reply if this token ends it."""
        if finish_reason == "stop":
            return GeneratedReply(self._text(), len(self._ids) + 1, "end", tuple(self._ids))
        self._ids.append(token)
        # The search for stop texts takes time, and most tasks have none.
        text = self._text() if self._stop or finish_reason else ""
        begin = len(text) - len(text.lstrip())
        places = [place for stop in self._stop if (place := text.find(stop, begin)) >= 0]
        if places:
            return GeneratedReply(text[: min(places)], len(self._ids), "stop", tuple(self._ids))
        return GeneratedReply(text, len(self._ids), "length", tuple(self._ids)) if finish_reason else None

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)


def generate_replies(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    starts: Sequence[Start],
    stop: Sequence[str] = (),
    step: int = 2048,
    step_done: Callable[[], None] = lambda: None,
) -> tuple[list[GeneratedReply], BatchStats]:
    """Generate a reply to each of several prompts, as one batch.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        starts: The starts of the replies.
        stop: Texts that end a reply and are not part of it. White space at the beginning of a reply does not count as
            a stop text.
        step: The most tokens of a prompt in one call of the model.
        step_done: Called after each step.

    Returns:
        The replies in the order of the starts, and mlx-lm's statistics.
    """
    ends = [[token] for token in tokenizer.eos_token_ids]
    generator = BatchGenerator(
        model,
        stop_tokens=ends,
        completion_batch_size=len(starts),
        prefill_batch_size=len(starts),
        prefill_step_size=step,
    )
    uids = generator.insert(
        [list(start.ids) for start in starts],
        [start.max_tokens for start in starts],
        caches=[start.cache for start in starts],
        samplers=[same_tokens(model, start.sampler) for start in starts],
    )
    growing = {uid: _Growing(tokenizer, stop) for uid in uids}
    done: dict[int, GeneratedReply] = {}
    try:
        with generator.stats() as stats:
            while len(done) < len(uids):
                _, responses = generator.next()
                for response in responses:
                    reply = growing[response.uid].add(response.token, response.finish_reason)
                    if reply is not None:
                        done[response.uid] = reply
                        if response.finish_reason is None:
                            generator.remove([response.uid])
                step_done()
    finally:
        generator.close()
    return [done[uid] for uid in uids], stats
