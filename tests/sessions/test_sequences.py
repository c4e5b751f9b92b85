"""Random sequences of all operations on a chat, checked against a plain definition of a chat.

`Replay` is the definition: a chat as a list of plain data, each turn run from caches made anew. It uses nothing of
ChatSession, of its state or of the way it runs tokens. `DELTAMEM_SEQUENCES=500` tries so many sequences for each kind
of adapter.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from mlx_deltamem import ChatSession, load, make_prompt_cache, memory, read_only, set_memory, write_mask, write_spans
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.sessions.turns.writing import WRITES
from tests.conftest import adapter, backbone, distance

KINDS = ["qwen3_tsw_qo", "qwen3_msw4", "qwen3_ssw_msg", "qwen3_ssw_sent"]
SEQUENCES, STEPS = int(os.environ.get("DELTAMEM_SEQUENCES", "8")), 10
# Numbers of float32 that are summed in another order: a pass in other steps, text run again instead of kept. It grows
# by less than 1e-6 in a turn; a token too many or too few is 1e-2 and more.
TOLERANCE = 1e-5
# How far below the likeliest token a reply's may be, in logits, for the same reason. Two tokens may be as likely.
NEARLY_THE_LIKELIEST = 1e-3

Messages = tuple[dict, ...]
States = dict[int, mx.array]


@dataclass(frozen=True)
class Span:
    """Tokens with their message and sentence ids, as plain data."""

    ids: tuple[int, ...] = ()
    messages: tuple[int, ...] = ()
    sentences: tuple[int, ...] = ()

    @classmethod
    def of(cls, segments: Segments, begin: int = 0) -> "Span":
        lists = (segments.ids, segments.message_ids, segments.sentence_ids)
        return cls(*(tuple(each[begin:]) for each in lists))

    @classmethod
    def unread(cls, ids: Sequence[int]) -> "Span":
        """Tokens that belong to no message."""
        return cls(tuple(ids), (-1,) * len(ids), (-1,) * len(ids))

    @property
    def start(self) -> int:
        """The number of tokens before the first message."""
        return next((place for place, message in enumerate(self.messages) if message >= 0), 0)


@dataclass(frozen=True)
class Told:
    """A turn as plain data.

    Attributes:
        messages, reply_text: What was said.
        opening, reply, ending: Its tokens.
        write, remembered: As in `ChatSession`.
        history: What was seen when it was run, or run again.
        set_to: The number of the memory that was set just before it; None: none was.
    """

    messages: tuple[tuple[tuple[str, str], ...], ...]
    opening: Span
    write: str
    history: str | int
    set_to: int | None
    remembered: bool = False
    reply: tuple[int, ...] = ()
    reply_text: str = ""
    ending: Span = Span()

    @property
    def dicts(self) -> list[dict]:
        return [dict(message) for message in self.messages]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.opening.ids + self.reply + self.ending.ids

    @property
    def whole(self) -> Span:
        """All tokens of the turn. The reply is a message of one sentence."""
        message, sentence = max(self.opening.messages, default=-1) + 1, max(self.opening.sentences, default=-1) + 1
        count = len(self.reply)
        return Span(
            self.ids,
            self.opening.messages + (message,) * count + (message,) * len(self.ending.ids),
            self.opening.sentences + (sentence,) * count + self.ending.sentences,
        )

    def flags(self, write: str) -> list[bool]:
        """For each token of the opening, whether it is written."""
        if write == "all" and not self.remembered:
            return [True] * len(self.opening.ids)
        ids = self.opening.messages
        roles = [message["role"] for message in self.dicts if message["role"] != "system"]
        role_of = dict(zip(sorted(set(ids) - {-1}), roles, strict=True))
        last = max((place for place, index in enumerate(ids) if index >= 0), default=-1)
        # The tokens after the last message are the generation prompt.
        found = [role_of[index] if index >= 0 else "assistant" * (place > last) for place, index in enumerate(ids)]
        return [bool(role) and write in ("all", role) for role in found]


class Replay:
    """The definition of a chat: its turns, each run with new caches.

    Args:
        kind: The name of the golden adapter.
    """

    def __init__(self, kind: str):
        self.model, self.tokenizer = loaded(kind)
        self.granularity = self.model.attachment.config.memory_write_granularity
        self.template = ChatTemplate(self.tokenizer, enable_thinking=False)
        self.sets: list[States] = []
        self._after: dict[tuple[Told, ...], States] = {}
        self._texts: dict[tuple[Told, ...], list] = {}

    def before(self, turns: tuple[Told, ...]) -> States:
        """The memory before the last turn."""
        return self.after(turns[:-1]) if turns[-1].set_to is None else self.sets[turns[-1].set_to]

    def after(self, turns: tuple[Told, ...]) -> States:
        """The memory after the turns."""
        if not turns:
            return memory(make_prompt_cache(self.model))
        if turns not in self._after:
            cache, turn = self.view(turns), turns[-1]
            if turn.remembered:
                self.run(cache, turn.opening, turn.flags(turn.write))
            else:
                self.run_turn(cache, turn)
            self._after[turns] = dict(memory(cache))
        return self._after[turns]

    def view(self, turns: tuple[Told, ...]) -> list:
        """A cache with the memory before the last turn, and with the text that this turn sees."""
        *earlier, turn = turns
        said = [each for each in earlier if not each.remembered]
        if turn.history == "full" and not turn.remembered:
            cache = copy.deepcopy(self.text(tuple(earlier)))
        else:
            cache = make_prompt_cache(self.model)
        set_memory(cache, self.before(turns))
        if turn.history != "full" and said and not turn.remembered:
            start = said[0].opening.start
            tokens = [token for each in said for token in each.ids]
            wanted = max(0 if turn.history == "none" else turn.history, sum(len(each.ids) for each in loop(said, turn)))
            last = tokens[start:][-wanted:] if wanted else []
            if seen := tokens[:start] + last:
                self.run(cache, Span.unread(seen), [False] * len(seen))
        return cache

    def text(self, turns: tuple[Told, ...]) -> list:
        """A cache with the keys and values of all turns, each read with the memory before it."""
        if turns not in self._texts:
            cache = copy.deepcopy(self.text(turns[:-1])) if turns else make_prompt_cache(self.model)
            if turns and not turns[-1].remembered:
                set_memory(cache, self.before(turns))
                self.run_turn(cache, turns[-1])
            self._texts[turns] = cache
        return self._texts[turns]

    def run_turn(self, cache: list, turn: Told) -> None:
        if turn.write == "after":
            self.run(cache, turn.whole, [True] * len(turn.whole.ids))
            return
        replying = turn.write in ("all", "assistant")
        self.run(cache, turn.opening, turn.flags(turn.write))
        for span in (*(Span.unread([token]) for token in turn.reply), turn.ending):
            self.run(cache, span, [replying] * len(span.ids))

    def run(self, cache: list, span: Span, flags: list[bool]) -> mx.array | None:
        """Run tokens in one call of the model. Single tokens are written, or the means of spans."""
        if not span.ids:
            return None
        messages = [index if flag else -1 for index, flag in zip(span.messages, flags, strict=True)]
        sentences = [s if m >= 0 else -1 for m, s in zip(messages, span.sentences, strict=True)]
        units = {"token": [], "message_mean": messages, "sentence_mean": sentences}[self.granularity]
        if not any(flags):
            how = read_only(self.model)
        elif max(units, default=-1) >= 0:
            how = write_spans(self.model, [messages], [sentences])
        else:
            how = nullcontext() if all(flags) else write_mask(self.model, mx.array([flags]))
        with how:
            logits = self.model(mx.array([list(span.ids)]), cache=cache)
        mx.eval(logits, [entry.state for entry in cache])
        return logits[0, -1]

    def furthest_from_the_likeliest(self, turns: tuple[Told, ...], generated: Sequence[int]) -> float:
        """The largest distance, in logits, of a token generated in the last turn from the most likely token."""
        cache, turn = self.view(turns), turns[-1]
        reading = turn.write if turn.write in ("all", "user", "assistant") else "none"
        logits, worst = self.run(cache, turn.opening, turn.flags(reading)), 0.0
        for token in generated:
            worst = max(worst, (logits.max() - logits[token]).item())
            logits = self.run(cache, Span.unread([token]), [reading in ("all", "assistant")])
        return worst

    def opening(self, system: list[dict], said: list[Told], turn: Told) -> Span:
        """The tokens of a turn's messages, rendered behind all messages that the turn sees."""
        has_system = any(message["role"] == "system" for message in turn.dicts)
        before = loop(said, turn) if turn.history == "none" and not has_system else said
        known = [*system, *(message for each in before for message in spoken(each))]
        # Any number that is not smaller than the number of sentences: only the order within one pass matters.
        sentences = 100 * len(said)
        segments = self.template.opening([*known, *turn.dicts], sentences, new=len(turn.messages))
        if said and not before:
            return Span.of(segments, Span.of(segments).start)
        return Span.of(segments)

    def remembered(self, system: list[dict], turn: Told) -> Span:
        own = turn.dicts[0]["role"] == "system"
        return Span.of(self.template.whole(turn.dicts if own else [*system, *turn.dicts]))

    def ending(self, system: list[dict], turn: Told) -> Span:
        reply = {"role": "assistant", "content": turn.reply_text}
        return Span.of(self.template.ending([*system, *turn.dicts, reply]))


def loop(said: Sequence[Told], turn: Told) -> list[Told]:
    """The turns that a turn's tool results answer."""
    found: list[Told] = []
    for earlier in reversed(said):
        if turn.dicts[0]["role"] != "tool":
            break
        found.insert(0, earlier)
        turn = earlier
    return found


def spoken(turn: Told) -> list[dict]:
    return [*turn.dicts, {"role": "assistant", "content": turn.reply_text}]


_LOADED: dict[str, tuple] = {}


def loaded(kind: str) -> tuple:
    """A golden model. Its replies may also end with a token that the template does not use."""
    if kind not in _LOADED:
        model, tokenizer = load(backbone(), adapter=adapter(kind))
        tokenizer.add_eos_token(str(OTHER_END))
        _LOADED[kind] = model, tokenizer
    return _LOADED[kind]


OTHER_END = 17


class ModelError(RuntimeError):
    """An error in the model."""


@contextmanager
def failing(model: object, at: int | None, error: type[BaseException]) -> Iterator[None]:
    """A context in which call number `at` of the model, and all later calls, raise an error."""
    model_class, calls = type(model), 0
    original = model_class.__call__

    def call(self: object, *args: object, **kwargs: object) -> mx.array:
        nonlocal calls
        calls += 1
        if at is not None and calls >= at:
            raise error
        return original(self, *args, **kwargs)

    model_class.__call__ = call
    try:
        yield
    finally:
        model_class.__call__ = original


@dataclass(frozen=True)
class Manner:
    """The way in which a reply is asked for.

    Attributes:
        tokens: Its greatest length.
        rank: Take the token of this rank in each step, 0 for the likeliest.
        end: In which step one of the ending tokens is taken, and whether it is the template's.
        step: Tokens of the message at a time.
        close_after: Close the iterator after so many tokens.
        reading: Within `read_only(model)`.
        fault: The number of the model's call that fails, and with what.
    """

    tokens: int
    rank: int
    end: tuple[int, bool] | None
    step: int
    close_after: int | None
    reading: bool
    fault: tuple[int, type[BaseException]] | None

    def sampler(self, own_end: int) -> Callable[[mx.array], mx.array] | None:
        if self.rank == 0 and self.end is None:
            return None
        steps = 0

        def sample(logprobs: mx.array) -> mx.array:
            nonlocal steps
            steps += 1
            if self.end is not None and steps == self.end[0]:
                return mx.array([own_end if self.end[1] else OTHER_END])
            # A full order, so that rounding does not decide between equally likely tokens.
            return mx.argsort(-logprobs, axis=-1)[:, self.rank]

        return sample


faults = st.one_of(
    st.none(), st.none(), st.none(), st.tuples(st.integers(1, 9), st.sampled_from([ModelError, KeyboardInterrupt]))
)
manners = st.builds(
    Manner,
    tokens=st.integers(1, 4),
    rank=st.sampled_from([0, 0, 1]),
    end=st.none() | st.tuples(st.integers(1, 4), st.booleans()),
    step=st.sampled_from([2048, 7, 1]),
    close_after=st.none() | st.integers(0, 3),
    reading=st.sampled_from([False, False, False, True]),
    fault=faults,
)
greedy = Manner(tokens=3, rank=0, end=None, step=2048, close_after=None, reading=False, fault=None)
texts = st.sampled_from(
    [
        "Hi.",
        "One two. Three? Four!",
        "Is <|im_end|> a word?",
        "<|im_start|>assistant\nNo.<|im_end|>\n",
        "Naïve café — 日本語 🙂, Ωμέγα!\n\n  And more. ",
        "  \n two  spaces ",
        "<|endoftext|>",
        "a\u0301 \u200d \ufeff x",
        "\x00.",
    ]
)
message = st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "tool"]), texts)
said = st.one_of(
    texts,
    st.lists(message, min_size=1, max_size=2),
    texts.map(lambda text: [{"role": "developer", "content": "Rule."}, {"role": "user", "content": text}]),
)
transcript = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant"]), texts),
    min_size=1,
    max_size=3,
)
to_remember = st.one_of(
    texts, transcript, transcript.map(lambda messages: [{"role": "system", "content": "Notes."}, *messages])
)
histories = st.sampled_from(["full", "full", "none", 9, 40])
which = st.integers(0, 2)


def place_in_turns(turns: Sequence[Told], place: int) -> tuple[int, int]:
    """The turn of a message and its place in the turn. The reply comes after the turn's messages."""
    places = [
        (index, inner)
        for index, turn in enumerate(turns)
        if not turn.remembered
        for inner in range(len(turn.messages) + 1)
    ]
    return places[place]


def plain(given: str | list[dict]) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Messages in the form in which a chat keeps them."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    named = [each | {"role": "system"} if each["role"] == "developer" else each for each in given]
    return tuple(tuple(each.items()) for each in named)


@dataclass
class Pair:
    """A chat, and its expected content."""

    chat: ChatSession
    system: list[dict]
    history: str | int
    write: str
    turns: tuple[Told, ...] = ()
    set_to: int | None = None

    @property
    def said(self) -> list[Told]:
        return [turn for turn in self.turns if not turn.remembered]


def has_turns(pair: Pair) -> bool:
    return bool(pair.turns)


def has_reply(pair: Pair) -> bool:
    return bool(pair.turns) and not pair.turns[-1].remembered


def has_messages(pair: Pair) -> bool:
    return bool(pair.system or pair.said)


class ChatMachine(RuleBasedStateMachine):
    """Up to three chats that come from one, each with its replay."""

    kind = KINDS[0]

    @initialize(
        history=histories,
        system=st.sampled_from([None, "Be brief.", "A <|im_end|> é."]),
        write=st.sampled_from(WRITES),
        beginning=st.lists(st.tuples(texts, st.none() | st.integers(0, 9)), max_size=3),
    )
    def begin(self, history, system, write, beginning):
        self.replay = Replay(self.kind)
        self.folder = tempfile.TemporaryDirectory()
        chat = ChatSession(self.replay.model, self.replay.tokenizer, system=system, history=history, write=write)
        messages = [] if system is None else [{"role": "system", "content": system}]
        self.pairs = [Pair(chat, messages, history, write)]
        self.files = 0
        # The exact memory of each chat after the last step.
        self.seen: dict[int, States] = {}
        for text, seed in beginning:
            if seed is not None:
                self.set_memory(self.pairs[0], {seed % 3}, seed)
            self.say(self.pairs[0], text, greedy, None)

    def pair(self, number: int, fit: Callable[[Pair], bool] = lambda _: True) -> Pair:
        pairs = [pair for pair in self.pairs if fit(pair)]
        return pairs[number % len(pairs)]

    def any_pair(self, fit: Callable[[Pair], bool]) -> bool:
        return any(map(fit, self.pairs))

    def expected(self, pair: Pair) -> States:
        return self.replay.after(pair.turns) if pair.set_to is None else self.replay.sets[pair.set_to]

    def attempt(self, fault: tuple[int, type[BaseException]] | None, call: Callable[[], object]) -> object:
        """The result of a call; False if the planted fault came out of it."""
        at, error = (None, ModelError) if fault is None else fault
        try:
            with failing(self.replay.model, at, error):
                return call()
        except (ModelError, KeyboardInterrupt):
            assert fault is not None
            return False

    def changed(self, pair: Pair, **changes: object) -> None:
        """Check that the other chats are unchanged, bit for bit, and that this one equals its replay."""
        others = [(other, other.chat.memory) for other in self.pairs if other is not pair]
        for name, value in changes.items():
            setattr(pair, name, value)
        self.check(pair)
        for other, states in others:
            assert other.chat.messages == self.messages(other)
            assert all(mx.array_equal(state, self.seen[id(other)][layer]) for layer, state in states.items())
        self.seen = {id(each): each.chat.memory for each in self.pairs}

    def messages(self, pair: Pair) -> list[dict]:
        return pair.system + [message for turn in pair.said for message in spoken(turn)]

    def check(self, pair: Pair) -> None:
        chat = pair.chat
        assert chat.messages == self.messages(pair)
        assert chat.segments.ids == [token for turn in pair.said for token in turn.ids]
        assert (chat.history, chat.write) == (pair.history, pair.write)
        assert [turn.write for turn in chat.turns] == [turn.write for turn in pair.turns]
        expected, found = self.expected(pair), chat.memory
        assert expected.keys() == found.keys()
        for layer, state in found.items():
            assert distance(state, expected[layer]) <= TOLERANCE

    def run_stream(self, pair: Pair, stream: Callable[..., Iterator], manner: Manner) -> tuple[int, ...] | bool | None:
        """The tokens of a reply and of its end; None if it was closed before it began, False if it failed."""
        own_end = self.replay.tokenizer.encode("<|im_end|>", add_special_tokens=False)[0]
        tokens: list[int] = []

        def call() -> bool:
            # `stream` looks at read_only when it is called. The reply is generated within read_only too.
            with read_only(self.replay.model) if manner.reading else nullcontext():
                responses = stream(
                    max_tokens=manner.tokens, sampler=manner.sampler(own_end), prefill_step_size=manner.step
                )
                if manner.close_after == 0:
                    responses.close()
                for response in responses:
                    tokens.append(response.token)
                    if len(tokens) == manner.close_after:
                        responses.close()
                        break
            return True

        done = self.attempt(manner.fault, call)
        if not done or manner.close_after == 0:
            return False if not done else None
        return tuple(tokens)

    def replied(self, pair: Pair, turn: Told, tokens: tuple[int, ...], manner: Manner) -> Told:
        """The turn with its reply, after a check of the reply."""
        generated, ends = tokens, self.replay.tokenizer.eos_token_ids
        tokens = tokens[:-1] if tokens[-1] in ends else tokens
        text = self.replay.tokenizer.decode(list(tokens), skip_special_tokens=True)
        turn = replace(turn, reply=tokens, reply_text=text, history=pair.history)
        turn = replace(turn, ending=self.replay.ending(pair.system, turn))
        if manner.rank == 0 and manner.end is None:
            earlier = pair.turns[: len(pair.chat.turns) - 1]
            assert self.replay.furthest_from_the_likeliest((*earlier, turn), generated) <= NEARLY_THE_LIKELIEST
            assert len(generated) == manner.tokens or len(tokens) < len(generated) or manner.close_after is not None
        return turn

    @rule(number=which, given=said, manner=manners, write=st.none() | st.sampled_from(WRITES))
    def send(self, number, given, manner, write):
        self.say(self.pair(number), given, manner, write)

    @rule(number=which, given=said)
    def send_as_usual(self, number, given):
        self.say(self.pair(number), given, greedy, None)

    def say(self, pair: Pair, given: str | list[dict], manner: Manner, write: str | None) -> None:
        found = self.run_stream(pair, lambda **options: pair.chat.stream(given, write=write, **options), manner)
        if found is False or found is None:
            self.changed(pair)
            return
        write = "none" if manner.reading else pair.write if write is None else write
        turn = Told(plain(given), Span(), write, pair.history, pair.set_to)
        turn = replace(turn, opening=self.replay.opening(pair.system, pair.said, turn))
        turn = self.replied(pair, turn, found, manner)
        self.changed(pair, turns=(*pair.turns, turn), set_to=None)

    @precondition(lambda self: self.any_pair(has_reply))
    @rule(number=which, manner=manners)
    def regenerate(self, number, manner):
        pair = self.pair(number, has_reply)
        last = pair.turns[-1]
        found = self.run_stream(pair, pair.chat.stream_regenerate, manner)
        if found is False or found is None:
            self.changed(pair)
            return
        turn = replace(last, write="none" if manner.reading else last.write)
        turn = self.replied(pair, turn, found, manner)
        self.changed(pair, turns=(*pair.turns[:-1], turn), set_to=None)

    @precondition(lambda self: self.any_pair(has_turns))
    @rule(number=which, fault=faults)
    def undo(self, number, fault):
        pair = self.pair(number, has_turns)
        last = pair.turns[-1]
        text = self.attempt(fault, pair.chat.undo)
        if text is False:
            self.changed(pair)
            return
        assert text == "\n".join(message["content"] for message in last.dicts)
        self.changed(pair, turns=pair.turns[:-1], set_to=last.set_to)

    @rule(number=which, given=to_remember, write=st.sampled_from(["all", "user", "assistant"]), fault=faults)
    def remember(self, number, given, write, fault):
        pair = self.pair(number)
        if self.attempt(fault, lambda: pair.chat.remember(given, write=write)) is False:
            self.changed(pair)
            return
        turn = Told(plain(given), Span(), write, pair.history, pair.set_to, remembered=True)
        turn = replace(turn, opening=self.replay.remembered(pair.system, turn))
        self.changed(pair, turns=(*pair.turns, turn), set_to=None)

    @precondition(lambda self: self.any_pair(has_messages))
    @rule(number=which, place=st.integers(0, 30), text=texts, fault=faults)
    def edit(self, number, place, text, fault):
        pair = self.pair(number, has_messages)
        place %= len(self.messages(pair))
        if self.attempt(fault, lambda: pair.chat.edit(place, text)) is False:
            self.changed(pair)
            return
        if place < len(pair.system):
            self.edited_system(pair, text)
            return
        place -= len(pair.system)
        index, place = place_in_turns(pair.turns, place)
        turn = pair.turns[index]
        said = [each for each in pair.turns[:index] if not each.remembered]
        if place == len(turn.messages):
            ids = self.replay.tokenizer.encode(text, add_special_tokens=False)
            turn = replace(turn, reply=tuple(ids), reply_text=text, history=pair.history)
        else:
            changed = tuple((dict(turn.messages[place]) | {"content": text}).items())
            messages = (*turn.messages[:place], changed, *turn.messages[place + 1 :])
            turn = replace(turn, messages=messages, history=pair.history)
            turn = replace(turn, opening=self.replay.opening(pair.system, said, turn))
        later = (replace(each, history=pair.history) for each in pair.turns[index + 1 :])
        self.changed(pair, turns=(*pair.turns[:index], turn, *later))

    def edited_system(self, pair: Pair, text: str) -> None:
        system, turns, said = [{"role": "system", "content": text}], [], 0
        for each in pair.turns:
            turn = replace(each, history=pair.history)
            if turn.remembered:
                turn = replace(turn, opening=self.replay.remembered(system, turn))
            elif not said:
                turn = replace(turn, opening=self.replay.opening(system, [], turn))
            said += not turn.remembered
            turns.append(turn)
        self.changed(pair, system=system, turns=tuple(turns))

    @precondition(lambda self: len(self.pairs) < 3)
    @rule(number=which)
    def fork(self, number):
        pair = self.pair(number)
        other = replace(pair, chat=pair.chat.fork())
        self.pairs.append(other)
        self.check(other)
        self.seen = {id(each): each.chat.memory for each in self.pairs}

    @rule(number=which, save_kv=st.booleans())
    def save_and_load(self, number, save_kv):
        pair = self.pair(number)
        self.files += 1
        path = Path(self.folder.name) / f"{self.files}.safetensors"
        before = pair.chat.memory
        pair.chat.save(path, save_kv)
        pair.chat = ChatSession.load(self.replay.model, self.replay.tokenizer, path)
        assert all(mx.array_equal(state, before[layer]) for layer, state in pair.chat.memory.items())
        self.changed(pair)

    @rule(number=which, layers=st.sets(st.integers(0, 2), min_size=1), seed=st.integers(0, 99))
    def set_the_memory(self, number, layers, seed):
        self.set_memory(self.pair(number), layers, seed)

    def set_memory(self, pair: Pair, layers: set[int], seed: int) -> None:
        key = mx.random.key(seed)
        given = {layer: mx.random.normal(pair.chat.memory[layer].shape, key=key) * 0.3 for layer in layers}
        whole = self.expected(pair) | given
        pair.chat.memory = given
        self.replay.sets.append(whole)
        self.changed(pair, set_to=len(self.replay.sets) - 1)

    @rule(
        number=which, change=st.one_of(histories, histories, st.sampled_from(WRITES[:4]).map(str.upper), st.just(None))
    )
    def change(self, number, change):
        """Change the history or the write mode, or reset the chat."""
        pair = self.pair(number)
        if change is None:
            pair.chat.reset()
            self.changed(pair, turns=(), set_to=None)
        elif isinstance(change, str) and change.isupper():
            pair.chat.write = change.lower()
            self.changed(pair, write=change.lower())
        else:
            pair.chat.history = change
            self.changed(pair, history=change)

    def teardown(self):
        """Say something in each chat: the next turn shows whether the chat sees the right text."""
        if not hasattr(self, "pairs"):
            return
        for pair in self.pairs:
            self.say(pair, "Go on.", greedy, "all")
        self.folder.cleanup()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence(kind):
    run_state_machine_as_test(
        type("Machine", (ChatMachine,), {"kind": kind}),
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # Shrinking takes minutes, so it is only done on request.
            phases=[phase for phase in Phase if phase != Phase.shrink or "DELTAMEM_SHRINK" in os.environ],
            report_multiple_bugs=False,
        ),
    )
