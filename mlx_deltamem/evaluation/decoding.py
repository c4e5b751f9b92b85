"""Read the ends of several prompts and generate the replies to them, side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.nn as nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.generate_utils import BatchStats
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache

Ending = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Start:
    """What a reply is generated from.

    Attributes:
        cache: The prompt cache after the beginning of the prompt; it is not used again.
        ids: The rest of the prompt, at least 2 tokens.
        max_tokens: The longest reply, in tokens.
        sampler: Draws its tokens.
    """

    cache: PromptCache
    ids: list[int]
    max_tokens: int
    sampler: Sampler


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        text: Without special tokens and what stopped it.
        tokens: How many were generated, the one that ended it included.
        ending: Whether the model ended it, a stop text did, or it was as long as it may be.
        ids: Its tokens, without one that ended it.
    """

    text: str
    tokens: int
    ending: Ending
    ids: tuple[int, ...]


class _Growing:
    """A reply under way."""

    def __init__(self, tokenizer: TokenizerWrapper, stop: Sequence[str]):
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []

    def add(self, token: int, finish_reason: str | None) -> Reply | None:
        """Add a token; returns the reply where this one ends it."""
        if finish_reason == "stop":
            return Reply(self._text(), len(self._ids) + 1, "end", tuple(self._ids))
        self._ids.append(token)
        # Looking for texts that stop it takes time, and most tasks have none.
        text = self._text() if self._stop or finish_reason else ""
        begin = len(text) - len(text.lstrip())
        places = [place for stop in self._stop if (place := text.find(stop, begin)) >= 0]
        if places:
            return Reply(text[: min(places)], len(self._ids), "stop", tuple(self._ids))
        return Reply(text, len(self._ids), "length", tuple(self._ids)) if finish_reason else None

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)


def generate_replies(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    starts: Sequence[Start],
    stop: Sequence[str] = (),
    step: int = 2048,
    step_done: Callable[[], None] = lambda: None,
) -> tuple[list[Reply], BatchStats]:
    """Generate a reply to each of some prompts, all at once.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        starts: Where each reply begins.
        stop: Texts that end a reply and are no part of it. White space before any other text is not looked at.
        step: The most tokens of each prompt to run at a time.
        step_done: Called after each step.

    Returns:
        The replies, and mlx-lm's statistics.
    """
    ends = [[token] for token in tokenizer.eos_token_ids]
    together = {"completion_batch_size": len(starts), "prefill_batch_size": len(starts), "prefill_step_size": step}
    generator = BatchGenerator(model, stop_tokens=ends, **together)
    uids = generator.insert(
        [list(start.ids) for start in starts],
        [start.max_tokens for start in starts],
        caches=[start.cache for start in starts],
        samplers=[start.sampler for start in starts],
    )
    growing = {uid: _Growing(tokenizer, stop) for uid in uids}
    done: dict[int, Reply] = {}
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
