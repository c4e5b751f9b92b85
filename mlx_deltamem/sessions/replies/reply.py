"""Generate one reply with mlx-lm, after the messages have been read."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypedDict, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_PREFILL_STEP_SIZE, GenerationResponse, TextStateMachine, stream_generate
from mlx_lm.sample_utils import Sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.spread import same_tokens
from mlx_deltamem.core.use import writing
from mlx_deltamem.options.rule import BITS, COUNT, GROUP_SIZE, POSITIVE, REPLY_LENGTH, shown
from mlx_deltamem.sessions.reading.prefill import Progress, check_step
from mlx_deltamem.sessions.turns.restore import States
from mlx_deltamem.sessions.turns.turn import Turn

_QUANTISED = {"kv_bits": BITS, "kv_group_size": GROUP_SIZE, "quantized_kv_start": COUNT}


class GenerateOptions(TypedDict, total=False):
    """Options that are passed on to `mlx_lm.stream_generate`."""

    # From the tokens so far and the logits `[1, V]` to the logits that are used.
    logits_processors: list[Callable[[mx.array, mx.array], mx.array]] | None
    kv_bits: int | None
    kv_group_size: int
    quantized_kv_start: int
    # A smaller model with the same tokens, which proposes `num_draft_tokens` tokens at a time (speculative decoding).
    draft_model: nn.Module | None
    num_draft_tokens: int


class RegenerateOptions(GenerateOptions, total=False):
    """Options of `ChatSession.regenerate`, which are described in `ChatSession.stream`."""

    stop: str | Sequence[str]
    sampler: Sampler | None
    prefill_step_size: int
    prompt_progress_callback: Progress | None


class SendOptions(RegenerateOptions, total=False):
    """Options of `ChatSession.send`, which are described in `ChatSession.stream`."""

    write: str | None


@dataclass(frozen=True)
class ReplySettings:
    """How a turn is read and its reply generated.

    Attributes:
        max_tokens: The longest reply, in tokens; -1 for no limit.
        stop: Texts that end the reply. It may be given as one text.
        sampler: A sampler of mlx-lm; None: the most likely token.
        prefill_step_size: The largest number of tokens of the messages that run in one call of the model.
        progress: Called as the messages are read.
        options: Options for `mlx_lm.stream_generate`.
        given: The number of characters at the beginning of the reply that were given and not generated. Stop texts are
            looked for behind them.

    Raises:
        ValueError: `max_tokens`, `stop`, `prefill_step_size`, `given` or an option of quantised keys and values is out
            of range or of another type; or `max_kv_size` is given.
    """

    max_tokens: int
    stop: str | Sequence[str] = ()
    sampler: Sampler | None = None
    prefill_step_size: int = DEFAULT_PREFILL_STEP_SIZE
    progress: Progress | None = None
    options: GenerateOptions = field(default_factory=GenerateOptions)
    given: int = 0

    def __post_init__(self) -> None:
        REPLY_LENGTH.check("max_tokens", self.max_tokens)
        # A str is a sequence too, of its letters.
        texts = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop is {self.stop!r}; expected a text, or several, none of them empty")
        object.__setattr__(self, "stop", tuple(texts))
        check_step(self.prefill_step_size)
        COUNT.check("given", self.given)
        for name, rule in _QUANTISED.items():
            if self.options.get(name) is not None:
                rule.check(name, self.options[name])  # type: ignore[literal-required]  # The names are those of the type.
        if self.options.get("num_draft_tokens") is not None:
            POSITIVE.check("num_draft_tokens", self.options["num_draft_tokens"])
        # mlx-lm takes it for a prompt cache that it makes itself, and ignores it otherwise.
        if (size := self.options.get("max_kv_size")) is not None:
            raise ValueError(
                f"max_kv_size is {shown(size)}, and a chat keeps the keys and values of its text itself; leave it out, "
                "and set the history of the chat to a number of tokens"
            )
        if self.draft_model is not None and self.options.get("kv_bits") is not None:
            raise ValueError(
                "kv_bits and draft_model are both given, and mlx-lm does not take them together with a prompt cache; "
                "leave one of them out"
            )

    @property
    def draft_model(self) -> nn.Module | None:
        """The model that drafts the reply, or None."""
        return self.options.get("draft_model")


class ReplyTokens:
    """The tokens of a reply that is being generated, and its text.

    The token that ends a reply has run when it is seen, and is not part of the reply. So the memory from before it may
    be kept.

    Args:
        tokenizer: The model's tokenizer.
        settings: How to generate.

    Attributes:
        ids: The tokens so far. All of them have run, but for the last `unread` ones.
        unread: The number of tokens that have not run yet.
        end_id: The token that ended the reply, or None. It has run as well.
        states_before_last: The memory before the last token that ran; None if it is not known.
    """

    def __init__(self, tokenizer: TokenizerWrapper, settings: ReplySettings):
        self.ids: list[int] = []
        self.unread = 0
        self.end_id: int | None = None
        self.states_before_last: States | None = None
        self._tokenizer = tokenizer
        self._stops = _StopTexts(settings.stop)
        self._given_left = settings.given
        self._shown = ""
        self._stopped_text: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text ended the reply."""
        return self._stopped_text is not None

    @property
    def stop_text(self) -> str | None:
        """The stop text that ended the reply, or None."""
        return self._stops.found

    @property
    def text(self) -> str:
        """The text of the reply, without special tokens and without the stop text."""
        if self._stopped_text is not None:
            return self._stopped_text
        text: str = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        return text

    def take(self, response: GenerationResponse) -> GenerationResponse:
        """Take the next token.

        Returns:
            The response with the text that can be shown. A stop text ends it.
        """
        if response.token in self._tokenizer.eos_token_ids:
            self.end_id = response.token
        else:
            self.ids.append(response.token)
        # A token may have the end of what was given and the first generated characters.
        given, generated = response.text[: self._given_left], response.text[self._given_left :]
        self._given_left -= len(given)
        shown = given + self._stops.shown(generated, is_last=response.finish_reason is not None)
        self._shown += shown
        if self._stops.found is not None:
            self._stopped_text = self._shown
            return replace(response, text=shown, finish_reason="stop")
        return replace(response, text=shown)


class Reply(ReplyTokens):
    """A reply that is being generated.

    mlx-lm runs each token through the model before it hands it out. It runs the token that ends the reply too, which
    is not part of the reply. So the memory from before the last call is kept.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        cache: Its prompt cache, after the messages of the turn.
        turn: The turn, with the logits after its messages.
        settings: How to generate.

    Raises:
        ValueError: The turn has no logits.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, cache: PromptCache, turn: Turn, settings: ReplySettings
    ):
        super().__init__(tokenizer, settings)
        self.states_before_last = list(cache[-1].cache)
        self._model = model
        self._cache = cache
        self._turn = turn
        self._settings = settings
        self._logits = logits_of(turn)
        self._left = len(turn.opening.ids)

    def stream(self, seconds: float) -> Generator[GenerationResponse, None, None]:
        """Generate the reply.

        Args:
            seconds: The time that it took to read the messages; 0 if they were not read again.

        Yields:
            mlx-lm's responses.
        """
        speed = len(self._turn.opening.ids) / seconds if seconds else 0.0
        for response in self._responses():
            yield replace(self.take(response), prompt_tps=speed)
            if self.is_stopped:
                return

    def _responses(self) -> Iterator[GenerationResponse]:
        prompt = self._turn.opening.ids
        return stream_generate(
            # mlx-lm only calls the model, as `__call__` below allows.
            cast(nn.Module, self),
            self._tokenizer,
            prompt,
            max_tokens=self._settings.max_tokens,
            sampler=same_tokens(self._model, self._settings.sampler),
            prompt_cache=self._cache,
            prefill_step_size=len(prompt),
            **self._settings.options,
        )

    def __call__(self, tokens: mx.array, cache: PromptCache) -> mx.array | None:
        """Stand in for the model in mlx-lm's generation.

        mlx-lm gets the messages as a prompt, because logits processors look at it. The messages have been read: so
        nothing runs for them, and the result is their known logits, `[1, 1, V]` (None before the last call). Drafted
        tokens may come together with the last token of the messages.
        """
        known = min(self._left, tokens.shape[1])
        self._left -= known
        if known == tokens.shape[1]:
            return None if self._left else self._logits[:, None]
        self.states_before_last = list(cache[-1].cache)
        with writing(self._model, self._turn.reply_written):
            logits: mx.array = self._model(tokens[:, known:], cache=cache)
        return mx.concatenate([self._logits[:, None], logits], axis=1) if known else logits


def logits_of(turn: Turn) -> mx.array:
    """The logits after the messages of a turn, `[1, V]`.

    Raises:
        ValueError: The turn has none.
    """
    if turn.logits is None:
        raise ValueError("the turn has no logits; expected the logits after its messages: read them first")
    return turn.logits


class _TextMachine(Protocol):
    """The methods of mlx-lm's `TextStateMachine` that are used here, with types."""

    def make_state(self) -> object: ...

    def split(self, state: object, text: str) -> tuple[object, list[tuple[str, str]]]: ...

    def flush(self, state: object) -> tuple[object, str, str]: ...


_new_machine = cast(Callable[[Mapping[str, Sequence[tuple[str, str]]]], _TextMachine], TextStateMachine)
# The state before a stop text. The others are numbers.
_NORMAL = "normal"


class _StopTexts:
    """Finds the first of some texts in a reply, and holds back text that may be the beginning of one.

    Args:
        texts: The stop texts.

    Attributes:
        found: The text that was found, or None.
    """

    def __init__(self, texts: Sequence[str]):
        self.found: str | None = None
        self._texts = texts
        # A state for each text says which one was found.
        ends: dict[str, list[tuple[str, str]]] = {str(index): [] for index in range(len(texts))}
        self._machine = _new_machine({_NORMAL: list(zip(texts, ends, strict=True)), **ends})
        self._state = self._machine.make_state()

    def shown(self, text: str, is_last: bool) -> str:
        """The text that can be shown after this much more of the reply. `is_last`: nothing more follows."""
        self._state, segments = self._machine.split(self._state, text)
        shown, place = "".join(part for state, part in segments if state == _NORMAL), segments[-1][0]
        if place != _NORMAL:
            self.found = self._texts[int(place)]
        elif is_last:
            self._state, rest, _ = self._machine.flush(self._state)
            shown += rest
        return shown
