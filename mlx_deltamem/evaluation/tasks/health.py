"""Measure the harm that an adapter does to its model.

The model with the adapter is compared with the frozen model: how well both predict plain English, and how both reply to
everyday prompts when nothing was told before. `natural.yaml` has the texts and prompts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import make_prompt_cache, memory_alone
from mlx_deltamem.core.spans import RunningSpans
from mlx_deltamem.core.use import attachment_of, using_spans, writing
from mlx_deltamem.evaluation.decoding import GeneratedReply, Start, generate_replies
from mlx_deltamem.evaluation.question import user_message
from mlx_deltamem.evaluation.tasks.natural import natural_prompts, natural_prose, natural_questions
from mlx_deltamem.sessions.reading.prefill import prefill, write_text
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.template.text import has_template
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.text.segments import Segments, part
from mlx_deltamem.sessions.turns.restore import States

# The ways in which a text is read, by name.
WRITTEN, CARRIED_READ, CARRIED_WRITTEN = WAYS = ("written", "carried_read", "carried_written")
MEANINGS = {
    WRITTEN: "written as it is read, from an empty memory on",
    CARRIED_READ: "only read, with a chat's facts in the memory",
    CARRIED_WRITTEN: "written as it is read, with a chat's facts in the memory",
}
# The longest reply.
REPLY_TOKENS = 24
# Texts in a batch. The logits of all their tokens are in memory at once.
_AT_ONCE = 4
# The category of the hand-written questions whose chats tell the most facts.
_CHATS = "four"


@dataclass(frozen=True)
class Losses:
    """Cross-entropies of N texts, in nats, each the sum over its tokens.

    Attributes:
        tokens: `[N]` int, the number of predicted tokens.
        frozen: `[N]` float64, the losses of the frozen model.
        adapted: For each of `WAYS`, `[N]` float64, the losses of the model with the adapter.
    """

    tokens: np.ndarray
    frozen: np.ndarray
    adapted: Mapping[str, np.ndarray]

    @property
    def ratios(self) -> dict[str, float]:
        """For each of `WAYS`, the perplexity of all texts divided by the frozen model's; `inf` if not finite."""
        return {
            way: perplexity_ratio((losses - self.frozen).sum() / self.tokens.sum())
            for way, losses in self.adapted.items()
        }


@dataclass(frozen=True)
class Answered:
    """The replies of both models to a prompt.

    Attributes:
        prompt: The prompt.
        frozen, adapted: The replies without and with the adapter.
    """

    prompt: str
    frozen: GeneratedReply
    adapted: GeneratedReply

    @property
    def equal(self) -> bool:
        """Whether the replies have the same tokens and the same ending."""
        return (self.frozen.ids, self.frozen.ending) == (self.adapted.ids, self.adapted.ending)


class Checkup:
    """Compares a model that has an adapter with the frozen model. It can measure repeatedly during training.

    The frozen model is the attached model with an empty memory that is only read: the adapter has no effect there. Its
    results are computed once and kept. A measurement changes neither the model's mode nor its adapter.

    The texts are not messages of a chat, so adapters that write means of messages write them token by token. Each text
    that is read with a chat's memory has a different chat.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer. Without a chat template, prompts and chats are plain text.
        texts, prompts: The number of paragraphs and of prompts to use, from the first on; None: all.

    Raises:
        ValueError: The model has no adapter, or its chat template refuses the prompts.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, texts: int | None = None, prompts: int | None = None
    ):
        self._config = attachment_of(model).config
        self._by_token = self._config.memory_write_granularity == "token"
        self._model = model
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, enable_thinking=False) if has_template(tokenizer) else None
        self._texts = [tokenizer.encode(text) for text in natural_prose()[:texts]]
        self._prompts = natural_prompts()[:prompts]
        self._asked = [self._segments([user_message(prompt)], True) for prompt in self._prompts]
        told = [question.history for question in natural_questions(()) if question.category == _CHATS]
        self._chats = [self._segments(chat) for chat in islice(cycle(told), len(self._texts))]

    @property
    def settings(self) -> dict[str, object]:
        """The settings that the results depend on, beside the model and the adapter."""
        content = json.dumps([[each.ids for each in (*self._asked, *self._chats)], self._texts])
        return {
            "texts": len(self._texts),
            "prompts": len(self._prompts),
            "reply_tokens": REPLY_TOKENS,
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
        }

    def losses(self) -> Losses:
        """Compute the losses of the texts, by both models."""
        with _evaluating(self._model):
            empty = [mx.zeros((len(self._texts), *state.shape[1:])) for state in self._empty()]
            carried = self.carried_states()
            adapted = {
                WRITTEN: self._sums(empty, True),
                CARRIED_READ: self._sums(carried, False),
                CARRIED_WRITTEN: self._sums(carried, True),
            }
            return Losses(np.array([len(ids) - 1 for ids in self._texts]), self._frozen_sums, adapted)

    def replies(self) -> list[Answered]:
        """Generate greedy replies to the prompts, each in a separate chat that is written as it is read."""
        with _evaluating(self._model):
            pairs = zip(self._prompts, self._frozen_replies, self._replies(True), strict=True)
            return [Answered(*each) for each in pairs]

    def alike(self) -> list[list[bool]]:
        """Compare the likeliest tokens of both models at each place of the frozen model's replies.

        Both models read the prompt and the frozen model's reply up to that place.

        Returns:
            For each prompt, one value for each token of the reply, including the token that ended it: whether both
            models have the same likeliest token there.
        """
        with _evaluating(self._model):
            found = []
            for asked, reply in zip(self._asked, self._frozen_replies, strict=True):
                frozen, adapted = (self._likeliest(asked, reply, written) for written in (False, True))
                found.append([one == other for one, other in zip(frozen, adapted, strict=True)])
            return found

    def _segments(self, messages: Sequence[Message], generation_prompt: bool = False) -> Segments:
        if self._template is not None:
            return self._template.whole(messages, generation_prompt)
        ids = self._tokenizer.encode("\n".join(message["content"] for message in messages))
        return Segments(ids, [-1] * len(ids), [-1] * len(ids))

    def _empty(self) -> States:
        return make_prompt_cache(self._model)[-1].cache

    def carried_states(self) -> States:
        """For each layer index, `[N, H, r, r]` float32: the memory after the chat of each of the N texts."""
        states = [write_text(self._model, self._empty(), chat) for chat in self._chats]
        return [mx.concatenate(list(layer)) for layer in zip(*states, strict=True)]

    @cached_property
    def _frozen_sums(self) -> np.ndarray:
        return self._sums(self._empty(), False)

    def _sums(self, states: States, written: bool) -> np.ndarray:
        """The loss of each text, `[N]` float64.

        Args:
            states: The memory by layer index: a row for each text, or one row for all texts.
            written: Whether the texts are written as they are read.
        """
        sums: list[float] = []
        for begin in range(0, len(self._texts), _AT_ONCE):
            rows = slice(begin, begin + _AT_ONCE)
            cache = memory_alone(make_prompt_cache(self._model))
            cache[-1].cache = [state[rows] if state.shape[0] > 1 else state for state in states]
            ids, counted = _filled(self._texts[rows])
            with writing(self._model, written):
                logits = self._model(ids, cache=cache)[:, :-1].astype(mx.float32)
            losses = mx.where(counted[:, 1:], nn.losses.cross_entropy(logits, ids[:, 1:]), 0.0)
            sums += np.array(losses.sum(axis=1)).tolist()
        return np.array(sums)

    @cached_property
    def _frozen_replies(self) -> list[GeneratedReply]:
        return self._replies(False)

    def _replies(self, written: bool) -> list[GeneratedReply]:
        # In a batch, the ends of other prompts would cut a pass that writes the means of messages.
        batches = [self._asked] if self._by_token or not written else [[each] for each in self._asked]
        replies = []
        for batch in batches:
            starts = [Start(make_prompt_cache(self._model), asked.ids, REPLY_TOKENS, greedy_sampler) for asked in batch]
            with writing(self._model, written), self._spans(batch[0], written):
                replies += generate_replies(self._model, self._tokenizer, starts)[0]
        return replies

    def _spans(self, asked: Segments, written: bool) -> AbstractContextManager[None]:
        """A context in which a prompt is written by its spans, and the reply token by token."""
        if self._by_token or not written:
            return nullcontext()
        spans = RunningSpans([asked.message_ids], [asked.sentence_ids], self._config)
        return using_spans(self._model, spans) if spans.has_units else nullcontext()

    def _likeliest(self, asked: Segments, reply: GeneratedReply, written: bool) -> list[int]:
        """The likeliest token at the place of each token of a reply."""
        cache = make_prompt_cache(self._model)
        prefill(self._model, cache, part(asked, slice(0, -1)), written, want_logits=False)
        rest = [asked.ids[-1], *reply.ids][: reply.tokens]
        with writing(self._model, written):
            return self._model(mx.array([rest]), cache=cache)[0].argmax(axis=-1).tolist()


def perplexity_ratio(difference: float) -> float:
    """The ratio of two perplexities from the difference of the mean losses, in nats; `inf` if it is not finite."""
    with np.errstate(over="ignore"):
        ratio = float(np.exp(difference))
    return ratio if np.isfinite(ratio) else float("inf")


def _filled(texts: Sequence[list[int]]) -> tuple[mx.array, mx.array]:
    """Pad texts at the right, where padding cannot change the logits of a text.

    Returns:
        The tokens `[N, T]`, and a mask `[N, T]` bool that is False for padding.
    """
    longest = max(map(len, texts))
    ids = mx.array([text + [0] * (longest - len(text)) for text in texts])
    return ids, mx.arange(longest) < mx.array([[len(text)] for text in texts])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
