"""Generate a reply with mlx-lm, the message having been read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationResponse, TextStateMachine, stream_generate
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.use import writing
from mlx_deltamem.sessions.history import take_back_token
from mlx_deltamem.sessions.state import ChatState
from mlx_deltamem.sessions.turn import States, Turn, part


@dataclass(frozen=True)
class ReplySettings:
    """How a reply is generated.

    Attributes:
        max_tokens: The longest reply, in tokens; -1 for no limit.
        stop: The texts that end it; it may be given as one text.
        sampler: As for mlx-lm; None: the likeliest token.
        options: More for `mlx_lm.stream_generate`.

    Raises:
        ValueError: `max_tokens` is no such number, or `stop` no such texts.
    """

    max_tokens: int
    stop: str | Sequence[str] = ()
    sampler: Sampler | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.max_tokens) is not int or (self.max_tokens < 1 and self.max_tokens != -1):
            raise ValueError(f"max_tokens is {self.max_tokens!r}; expected a number of tokens, or -1 for no limit")
        # A str is a sequence too, of its letters.
        texts = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop is {self.stop!r}; expected a text, or several, none of them empty")
        object.__setattr__(self, "stop", tuple(texts))


class Reply:
    """A reply under way.

    mlx-lm runs each token through the model before it gives it, the one that ends the reply too, though that one is no
    part of the reply. So the memory from before the last call is kept.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        cache: Its prompt cache, in which the turn's message has been run.
        turn: The turn, with the logits that the message led to.
        settings: How to generate.

    Attributes:
        ids: The tokens so far, all of them run.
        end_id: The token that ended the reply, if one did; it has been run as well.
        states_before_last: The memory before the last token that was run.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, cache: PromptCache, turn: Turn, settings: ReplySettings
    ):
        self.ids: list[int] = []
        self.end_id: int | None = None
        self.states_before_last: States = list(cache[-1].cache)
        self._model = model
        self._tokenizer = tokenizer
        self._cache = cache
        self._turn = turn
        self._settings = settings
        self._unread = len(turn.opening.ids)
        self._stopped_text: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text ended the reply."""
        return self._stopped_text is not None

    @property
    def text(self) -> str:
        """The reply, without special tokens and without what stopped it."""
        if self._stopped_text is not None:
            return self._stopped_text
        return self._tokenizer.decode(self.ids, skip_special_tokens=True)

    def stream(self, seconds: float) -> Iterator[GenerationResponse]:
        """mlx-lm's responses; `seconds` is how long the message took, 0 where it was not run again."""
        text, settings = "", self._settings
        machine = TextStateMachine({"normal": [(stop, None) for stop in settings.stop]}).make_state()
        for response in self._responses():
            if response.token in self._tokenizer.eos_token_ids:
                self.end_id = response.token
            else:
                self.ids.append(response.token)
            machine, shown, place = TextStateMachine.step(machine, response.text)
            if place is not None and response.finish_reason is not None:
                # What might have become a stop text has not.
                machine, rest, _ = TextStateMachine.flush(machine)
                shown += rest
            text += shown
            if place is None:
                self._stopped_text = text
                response.finish_reason = "stop"
            speed = len(self._turn.opening.ids) / seconds if seconds else 0.0
            yield replace(response, text=shown, prompt_tps=speed)
            if place is None:
                return

    def _responses(self) -> Iterator[GenerationResponse]:
        prompt = self._turn.opening.ids
        return stream_generate(
            self,
            self._tokenizer,
            prompt,
            max_tokens=self._settings.max_tokens,
            sampler=self._settings.sampler,
            prompt_cache=self._cache,
            prefill_step_size=len(prompt),
            **self._settings.options,
        )

    def __call__(self, tokens: mx.array, cache: PromptCache) -> mx.array | None:
        """What mlx-lm takes for the model. Nothing is run for the message, which mlx-lm is given for its processors."""
        if self._unread:
            self._unread -= tokens.shape[1]
            return None if self._unread else self._turn.logits[:, None]
        self.states_before_last = list(cache[-1].cache)
        with writing(self._model, self._turn.reply_written):
            return self._model(tokens, cache=cache)


def check_count(name: str, value: object, least: int) -> None:
    """Check that an argument is a whole number that is not too small.

    Raises:
        ValueError: It is not.
    """
    # Not isinstance, by which True is an int, too.
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number, {least} or more")


def finish_reply(state: ChatState, turn: Turn, reply: Reply) -> None:
    """Run what the template ends a reply with, and add the turn to the chat.

    Args:
        state: The chat.
        turn: The turn, with the text of the reply and its ending.
        reply: Its reply. The token that ended it has been run and is no part of it: it must be taken back, or else be
            what the ending begins with.
    """
    turn = replace(turn, reply_ids=tuple(reply.ids))
    if reply.end_id is None or turn.is_written_when_ended:
        state.finish(turn)
    elif turn.ending.ids[:1] == [reply.end_id] and state.writes_tokens:
        state.finish(turn, ending=part(turn.ending, slice(1, None)))
    elif take_back_token(state.cache, reply.states_before_last):
        state.finish(turn)
    else:
        state.run_reply_again(turn)
