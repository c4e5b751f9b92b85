"""The memory after a turn equals its definition, for each write mode and each kind of adapter."""

import functools
import itertools
from collections.abc import Sequence
from contextlib import nullcontext

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem import ChatSession, DeltaMemConfig, make_prompt_cache, memory, read_only, set_memory, write_mask
from mlx_deltamem import write_spans as with_spans
from mlx_deltamem.core.access import Access
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.spans import Spans
from mlx_deltamem.recurrence.engines import engine_for
from mlx_deltamem.recurrence.fused import FusedEngine
from mlx_deltamem.sessions.reading import prefill as prefill_module
from mlx_deltamem.sessions.reading.prefill import write_text
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.segments import Segments, part, token_roles
from mlx_deltamem.sessions.turns.turn import Turn
from mlx_deltamem.sessions.turns.writing import WRITES
from tests.conftest import distance
from tests.core.test_layer import SHAPE, make_memory
from tests.recurrence.host_kernels import needs_compiler
from tests.sessions.test_session import every_history, every_kind, loaded, same_memory

# Sums of float32 in another order.
TOLERANCE = 1e-5
SYSTEM = "Be brief."
States = dict[int, mx.array]


def chat_of(kind: str, history: str | int, write: str = "all") -> ChatSession:
    """A chat with a memory that is not empty."""
    chat = ChatSession(*loaded(kind), system=SYSTEM, history=history, write=write)
    for key, text in zip(("all", "user"), ("My cat is Tom. He is grey!", "Yes."), strict=True):
        chat.send(text, 4, write=key)
    return chat


def seen_by(chat: ChatSession, turn: Turn, history: str | int) -> list[int]:
    """The tokens that are seen before a turn, with another history than `full`: the visible start and the last ones."""
    ids = [token for earlier in chat.turns[: chat.turns.index(turn)] for token in earlier.segments.ids]
    start = next(place for place, index in enumerate(chat.turns[0].opening.message_ids) if index >= 0)
    wanted = 0 if history == "none" else history
    return ids[:start] + (ids[start:][-wanted:] if wanted else [])


def cache_before(chat: ChatSession, history: str | int) -> list:
    """A new cache with the content that the chat's cache has when the last turn begins."""
    *earlier, turn = chat.turns
    cache = make_prompt_cache(chat.model)
    if history == "full":
        for each in earlier:
            set_memory(cache, by_layer(each.before.states))
            run_turn(chat.model, cache, each)
    set_memory(cache, by_layer(turn.before.states))
    if history != "full":
        with read_only(chat.model):
            chat.model(mx.array([seen_by(chat, turn, history)]), cache=cache)
    return cache


def by_layer(states: Sequence[mx.array]) -> States:
    return {layer: state for layer, state in enumerate(states) if state.size}


def run_turn(model: object, cache: list, turn: Turn) -> None:
    """Run a turn that is written as it is read: the messages, each token of the reply, the ending."""
    roles = token_roles(turn.opening, turn.messages, min(i for i in turn.opening.message_ids if i >= 0))
    written = [turn.write in ("all", role) for role in roles]
    replying = turn.write in ("all", "assistant")
    call(model, cache, turn.opening, written)
    for token in turn.reply_ids:
        call(model, cache, Segments([token], [-1], [-1]), [replying])
    call(model, cache, turn.ending, [replying] * len(turn.ending.ids))


def call(model: object, cache: list, segments: Segments, written: Sequence[bool]) -> None:
    """Run tokens in one call of the model, with write_mask and write_spans."""
    messages = [index if flag else -1 for index, flag in zip(segments.message_ids, written, strict=True)]
    sentences = [s if m >= 0 else -1 for m, s in zip(messages, segments.sentence_ids, strict=True)]
    kind = model.attachment.config.memory_write_granularity
    units = {"token": [-1], "message_mean": messages, "sentence_mean": sentences}[kind]
    spans = with_spans(model, [messages], [sentences]) if max(units, default=-1) >= 0 else nullcontext()
    with spans, write_mask(model, mx.array([list(written)])):
        model(mx.array([segments.ids]), cache=cache)


@pytest.mark.slow
@every_kind
@every_history
@pytest.mark.parametrize("write", ["all", "user", "assistant"])
def test_a_turn_that_is_written_as_it_is_read(kind, history, write):
    """All tokens; or those of the user's messages; or the reply, the generation prompt and the ending."""
    chat = chat_of(kind, history, write)
    chat.send("What is it called, then? Tell me.", 5)
    cache = cache_before(chat, history)
    run_turn(chat.model, cache, chat.turns[-1])
    assert all(distance(state, chat.memory[layer]) <= TOLERANCE for layer, state in memory(cache).items())


@pytest.mark.slow
@every_kind
@every_history
def test_nothing_is_written(kind, history):
    chat = chat_of(kind, history, "none")
    before = chat.memory
    chat.send("What is it called, then? Tell me.", 5)
    chat.regenerate(3)
    assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())
    assert set(chat.drift[-1].kept.values()) == {1.0}
    assert set(chat.drift[-1].changed.values()) == {0.0}


@pytest.mark.slow
@every_kind
@every_history
def test_a_turn_that_is_written_when_it_has_ended(kind, history):
    """It is read with the memory from before it, and then written in one pass that begins with that memory."""
    chat = chat_of(kind, history, "after")
    other = chat.fork()
    reply = chat.send("What is it called, then? Tell me.", 5)
    assert other.send("What is it called, then? Tell me.", 5, read_only=True) == reply
    cache, turn = cache_before(chat, history), chat.turns[-1]
    call(chat.model, cache, turn.segments, [True] * len(turn.segments.ids))
    assert all(distance(state, chat.memory[layer]) <= TOLERANCE for layer, state in memory(cache).items())


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("write", WRITES)
def test_the_first_turn_begins_with_the_visible_start(kind, write):
    """With `all` and `after` the visible start is written; it belongs to no message."""
    chat = ChatSession(*loaded(kind), system=SYSTEM, write=write)
    chat.send("Hello there. How are you?", 4)
    cache, turn = make_prompt_cache(chat.model), chat.turns[0]
    if write == "after":
        call(chat.model, cache, turn.segments, [True] * len(turn.segments.ids))
    else:
        run_turn(chat.model, cache, turn)
    assert all(distance(state, chat.memory[layer]) <= TOLERANCE for layer, state in memory(cache).items())


def test_a_message_without_sentences_is_written_by_token_and_alone():
    """A sentence adapter has no sentences if the template changes the content's tokens. Other roles are not written."""
    model, _ = loaded("qwen3_ssw_sent")
    segments = Segments(list(range(3, 12)), [-1, -1, 0, 0, 0, 0, -1, -1, -1], [-1] * 9)
    flags = [index >= 0 for index in segments.message_ids]
    cache, expected = make_prompt_cache(model), make_prompt_cache(model)
    prefill_module.prefill(model, cache, segments, flags, step=4)
    with write_mask(model, mx.array([flags])):
        model(mx.array([segments.ids]), cache=expected)
    assert all(distance(state, memory(expected)[layer]) <= TOLERANCE for layer, state in memory(cache).items())


@every_kind
@pytest.mark.parametrize("history", ["none", 20])
def test_the_visible_start_is_read_again_with_the_memory(kind, history):
    """In the second turn, its keys and values are those of a new cache that is read with the memory from before it."""
    chat = ChatSession(*loaded(kind), system=SYSTEM, history=history)
    chat.send("My cat is Tom.", 4)
    now = chat.memory
    start = next(place for place, index in enumerate(chat.turns[0].opening.message_ids) if index >= 0)
    chat.send("So?", 4)
    fresh, empty = make_prompt_cache(chat.model), make_prompt_cache(chat.model)
    set_memory(fresh, now)
    with read_only(chat.model):
        for cache in (fresh, empty):
            chat.model(mx.array([chat.turns[0].opening.ids[:start]]), cache=cache)
    # The first layer's keys and values do not depend on the memory, those of later layers do.
    for layer, (found, expected, before) in enumerate(zip(chat._state.cache[:-1], fresh, empty, strict=False)):
        keys, values = (each[:, :, :start] for each in found.state[:2])
        assert distance(keys, expected.state[0][:, :, :start]) <= TOLERANCE
        assert distance(values, expected.state[1][:, :, :start]) <= TOLERANCE
        assert layer == 0 or distance(keys, before.state[0][:, :, :start]) > 100 * TOLERANCE


TRANSCRIPT = [
    {"role": "user", "content": "My cat is called Tom. He is grey."},
    {"role": "assistant", "content": "What a fine cat! How old is he?"},
    {"role": "user", "content": "Four. He likes fish, and he sleeps on the stove."},
    {"role": "assistant", "content": "Noted."},
]


def in_stretches(kind: str, segments: Segments, written: list[bool], seen: int, states: States) -> States:
    """The memory after a text in stretches, one token at a time. Each begins with the visible start."""
    model, _ = loaded(kind)
    start = next(place for place, index in enumerate(segments.message_ids) if index >= 0)
    borders = [0, *range(start + seen, len(segments.ids), seen), len(segments.ids)]
    for begin, end in itertools.pairwise(borders):
        cache = make_prompt_cache(model)
        set_memory(cache, states)
        if begin:
            with read_only(model):
                model(mx.array([segments.ids[:start]]), cache=cache)
        for place in range(begin, end):
            call(model, cache, part(segments, slice(place, place + 1)), [written[place]])
        states = dict(memory(cache))
    return states


def remembered_segments(messages: list[dict]) -> tuple[Segments, list[str]]:
    """The tokens of a transcript behind the chat's system prompt, and the role of each token."""
    segments = ChatTemplate(loaded()[1], enable_thinking=False).whole(
        [{"role": "system", "content": SYSTEM}, *messages]
    )
    roles = [messages[index]["role"] if index >= 0 else "system" for index in segments.message_ids]
    return segments, roles


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_tsw_qo", "qwen3_msw4"])
@pytest.mark.parametrize("write", ["all", "user", "assistant"])
@pytest.mark.parametrize("stretch", [7, 30, 2048])
@every_history
def test_a_remembered_text_is_written_in_stretches(kind, write, stretch, history, monkeypatch):
    monkeypatch.setattr(prefill_module, "_STRETCH", stretch)
    chat = chat_of(kind, history)
    before, told = chat.memory, []
    chat.remember(TRANSCRIPT, write=write, prefill_step_size=5, progress=lambda *x: told.append(x))
    segments, roles = remembered_segments(TRANSCRIPT)
    written = [role != "system" and write in ("all", role) for role in roles]
    expected = in_stretches(kind, segments, written, stretch, before)
    assert all(distance(state, chat.memory[layer]) <= TOLERANCE for layer, state in expected.items())
    total = len(segments.ids)
    assert told[0] == (0, total) and told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    chat.undo()
    assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_ssw_msg", "qwen3_ssw_sent"])
@pytest.mark.parametrize("write", ["all", "user", "assistant"])
def test_a_remembered_text_is_written_in_the_means_of_its_messages_or_sentences(kind, write, monkeypatch):
    """A short text is written in one pass. In a long text, means go across stretches."""
    chat = chat_of(kind, "full")
    before = chat.memory
    segments, roles = remembered_segments(TRANSCRIPT)
    cache = make_prompt_cache(chat.model)
    set_memory(cache, before)
    call(chat.model, cache, segments, [role != "system" and write in ("all", role) for role in roles])
    chat.remember(TRANSCRIPT, write=write, prefill_step_size=9)
    assert all(distance(state, chat.memory[layer]) <= TOLERANCE for layer, state in memory(cache).items())
    chat.undo()
    # The first layer's input is the tokens themselves: its memory does not depend on what is seen.
    monkeypatch.setattr(prefill_module, "_STRETCH", 7)
    chat.remember(TRANSCRIPT, write=write, prefill_step_size=4)
    assert distance(memory(cache)[0], chat.memory[0]) <= TOLERANCE
    chat.undo()
    assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())


def test_stretches_keep_within_the_window(monkeypatch):
    """The visible start and a stretch are together no longer than the model's window."""
    chat = chat_of("qwen3_tsw_qo", "none")
    monkeypatch.setattr(chat.model.args, "max_position_embeddings", 40)
    lengths = []
    original = type(chat.model).__call__

    def watching(self, tokens, *args, cache=None, **kwargs):
        found = original(self, tokens, *args, cache=cache, **kwargs)
        lengths.append(cache[0].offset)
        return found

    monkeypatch.setattr(type(chat.model), "__call__", watching)
    chat.remember("A long text. " * 30)
    assert max(lengths) == 40


@pytest.mark.slow
@every_kind
@every_history
def test_a_remembered_text_is_not_seen(kind, history):
    """The text that the model sees is the same before and after."""
    chat = chat_of(kind, history)
    messages, segments, before = chat.messages, chat.segments, chat.memory
    chat.remember("A note.")
    assert (chat.messages, chat.segments) == (messages, segments)
    chat.memory = before
    other = chat_of(kind, history)
    assert chat.send("What is it called?", 5) == other.send("What is it called?", 5)
    assert same_memory(chat, other, TOLERANCE)


@pytest.mark.slow
@every_kind
@every_history
def test_two_memories_are_swapped_between_topics_in_two_lines(kind, history):
    chat = ChatSession(*loaded(kind), system=SYSTEM, history=history)
    topics = {"cats": chat.memory, "ships": chat.memory}
    for topic, text in (("cats", "Tom is grey."), ("ships", "The Ada is red."), ("cats", "He is four.")):
        chat.memory = topics[topic]
        chat.remember(text)
        topics[topic] = chat.memory
    alone = ChatSession(*loaded(kind), system=SYSTEM, history=history)
    alone.remember("Tom is grey.")
    alone.remember("He is four.")
    assert all(mx.array_equal(state, topics["cats"][layer]) for layer, state in alone.memory.items())
    begun = ChatSession(*loaded(kind), system=SYSTEM, history=history, memory=topics["cats"])
    assert begun.send("Who is Tom?", 4) == alone.send("Who is Tom?", 4)
    # The chat is back at the memory that was set, which the first text led to.
    chat.undo()
    assert all(mx.array_equal(state, alone.turns[1].before.states[layer]) for layer, state in chat.memory.items())


# write_mask in batches: of one layer's memory over all variants, and of whole models.

VARIANTS = [
    {"couple_lambda": couple, "state_update_mode": mode, "rankwise_gates": rankwise, "num_state_heads": heads}
    for couple, mode, rankwise, heads in itertools.product(
        (True, False), ("standard", "lambda_outside", "no_lambda"), (True, False), (1, 2)
    )
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
every_dtype = pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=lambda d: str(d)[9:])
LENGTH = 9


def tolerance(dtype: mx.Dtype) -> float:
    """Projections of half precision are rounded after sums in another order, which a batch may have."""
    return {mx.float32: TOLERANCE, mx.float16: 2e-3, mx.bfloat16: 2e-2}[dtype]


def batch_of(layer: DeltaMemory, dtype: mx.Dtype, rows: int = 4) -> tuple[mx.array, mx.array]:
    return (mx.random.normal((rows, LENGTH, SHAPE.hidden)) * 0.5).astype(dtype), mx.random.normal(
        (rows, *layer.state_shape)
    ) * 0.5


def reads_of(layer: DeltaMemory, x: mx.array, state: mx.array, access: Access) -> tuple[mx.array, mx.array]:
    """The reads of some tokens, as the correction of a projection, and the state after them."""
    reads, state = layer.read_and_write(x, state, access)
    return reads.correct("o_proj", mx.zeros((*x.shape[:2], SHAPE.o), x.dtype)), state


def check_rows(layer: DeltaMemory, dtype: mx.Dtype, padded: bool) -> None:
    """Rows that only read, rows in which some tokens write, and rows that write: in one batch and alone."""
    x, state = batch_of(layer, dtype)
    pads = [0, 2, 3, 1] if padded else [0] * 4
    mask = mx.arange(LENGTH) >= mx.array(pads)[:, None] if padded else None
    written = mx.random.uniform(shape=(4, LENGTH)) > 0.5
    written = mx.where(
        mx.array([[True], [False], [True], [False]]), written, mx.array([[True], [True], [True], [False]])
    )
    reads, after = reads_of(layer, x, state, Access(mask=mask, written=written))
    assert mx.array_equal(after[3], state[3])
    for row, pad in enumerate(pads):
        alone, flags, place = state[row : row + 1], written[row, pad:].tolist(), pad
        for flag, group in itertools.groupby(flags):
            end = place + len(list(group))
            expected, alone = reads_of(layer, x[row : row + 1, place:end], alone, Access(writing=flag))
            assert distance(reads[row : row + 1, place:end], expected) <= tolerance(dtype) * 10
            place = end
        assert distance(after[row : row + 1], alone) <= tolerance(dtype)
        assert not reads[row, :pad].any()


@every_variant
@every_dtype
@pytest.mark.parametrize("padded", [False, True])
def test_tokens_that_only_read_beside_tokens_that_write(variant, dtype, padded):
    check_rows(make_memory(DeltaMemConfig(rank=4, delta_heads=("o",), **variant)).eval(), dtype, padded)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(VARIANTS)))
def test_the_same_through_the_fused_kernels(number, kernels_on_host):
    """Each variant in one type, in turn with and without padding: each kernel takes a second to compile."""
    dtype, padded = (mx.float32, mx.float16, mx.bfloat16)[number % 3], number // 2 % 2 == 0
    layer = make_memory(DeltaMemConfig(rank=4, delta_heads=("o",), **VARIANTS[number])).eval()
    assert isinstance(engine_for(layer.variant, dtype, training=False, masked=padded), FusedEngine)
    check_rows(layer, dtype, padded)


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 10**6), length=st.integers(1, 300))
def test_a_row_that_writes_nothing_keeps_its_state_bit_for_bit(data, seed, length):
    """Whatever the other rows do, in short and long texts, by token and by spans."""
    mx.random.seed(seed)
    variant = data.draw(st.sampled_from(VARIANTS))
    layer = make_memory(DeltaMemConfig(rank=4, **variant)).eval()
    x = mx.random.normal((3, length, SHAPE.hidden))
    state = mx.random.normal((3, *layer.state_shape)) * data.draw(st.sampled_from([1e-6, 1.0, 1e4]))
    written = mx.array(
        [[True] * length, [False] * length, data.draw(st.lists(st.booleans(), min_size=length, max_size=length))]
    )
    ids = [[0] * length, [1] * length, [2] * length]
    config = DeltaMemConfig(memory_write_granularity="message_mean")
    for access in (
        Access(written=written),
        Access(mask=mx.array([[True] * length, [True] * length, [False] * length]), written=written),
        Access(units=Spans(ids, None, config).units(3, length, written)),
    ):
        _, after = layer.read_and_write(x, state, access)
        assert mx.array_equal(after[1], state[1])


@every_kind
@pytest.mark.parametrize("padding", [None, [0, 3, 5]])
def test_read_only_rows_beside_writing_ones_in_a_model(kind, padding):
    """In batches with padding and with spans, each row gives the same as alone."""
    model, _ = loaded(kind)
    pads = padding or [0, 0, 0]
    tokens = mx.random.randint(3, 250, (3, 14))
    ids = [[-1, -1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 1, 2, 2]] * 3
    flags = [[True] * 14, [False] * 14, [False] * 9 + [True] * 5]
    cache = make_prompt_cache(model, left_padding=pads)
    first = {layer: mx.random.normal(state.shape) * 0.2 for layer, state in memory(cache).items()}
    set_memory(cache, first)
    with with_spans(model, ids, ids), write_mask(model, mx.array(flags)):
        logits = model(tokens, cache=cache)
    for row, pad in enumerate(pads):
        alone = make_prompt_cache(model)
        set_memory(alone, {layer: state[row : row + 1] for layer, state in first.items()})
        spans = [index if flag else -1 for index, flag in zip(ids[row], flags[row], strict=True)][pad:]
        how = read_only(model) if not any(flags[row]) else with_spans(model, [spans], [spans])
        masked = write_mask(model, mx.array([flags[row][pad:]])) if any(flags[row]) else nullcontext()
        with how, masked:
            expected = model(tokens[row : row + 1, pad:], cache=alone)
        # Attention with padding sums in another order, and the logits are as large as 50.
        assert distance(logits[row : row + 1, pad:], expected) <= 2e-3
        for layer, state in memory(cache).items():
            if not any(flags[row]):
                assert mx.array_equal(state[row], first[layer][row])
            assert distance(state[row : row + 1], memory(alone)[layer]) <= 2 * TOLERANCE


@every_kind
def test_a_mask_of_rows_holds_for_every_call(kind):
    """A mask `[B, 1]`, for prefill and for single tokens, as in a server."""
    model, _ = loaded(kind)
    cache = make_prompt_cache(model, left_padding=[0, 0])
    first = {layer: mx.random.normal(state.shape) * 0.2 for layer, state in memory(cache).items()}
    set_memory(cache, first)
    with write_mask(model, mx.array([[True], [False]])):
        for length in (6, 1, 1):
            model(mx.random.randint(3, 250, (2, length)), cache=cache)
    for layer, state in memory(cache).items():
        assert mx.array_equal(state[1], first[layer][1])
        assert distance(state[0], first[layer][0]) > 0.01


@pytest.mark.parametrize("shape", [(1, 5), (2, 6), (3, 1), (2,)])
def test_masks_that_do_not_fit(shape):
    model, _ = loaded()
    cache = make_prompt_cache(model, left_padding=[0, 0])
    with (
        pytest.raises(ValueError, match="write_mask got"),
        write_mask(model, mx.ones(shape, mx.bool_)),
    ):
        model(mx.random.randint(3, 250, (2, 5)), cache=cache)


@pytest.mark.slow
@every_kind
def test_a_text_is_written_with_the_same_result_whatever_the_step(kind):
    model, _ = loaded(kind)
    segments, roles = remembered_segments(TRANSCRIPT)
    empty = list(make_prompt_cache(model)[-1].cache)
    write = functools.partial(write_text, model, empty, segments, [role == "user" for role in roles])
    expected = write()
    for step in (1, 11):
        assert all(distance(a, b) <= TOLERANCE for a, b in zip(write(step=step), expected, strict=True))
