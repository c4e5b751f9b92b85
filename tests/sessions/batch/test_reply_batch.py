"""Replies of several chats generated together, compared with the same replies one after the other."""

import gc

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_sampler

from mlx_deltamem.sessions.batch.batched_reply import BatchedReply, NewReply
from mlx_deltamem.sessions.batch.reply_batch import ReplyBatch
from mlx_deltamem.sessions.replies.reply import ReplySettings
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.writing import WRITES
from tests.conftest import distance
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import every_history, every_kind, loaded, new_chat, same_memory

TEXTS = ("My word is jade!", "Hello there. How are you?", "One.", "The river is wide and old, they say.")
# Rows of a batch are summed in another order than single rows.
TOLERANCE = 1e-4


def run(
    batch: ReplyBatch, asked: list[tuple[ChatSession, str, int]], at_once: bool = True, **options
) -> list[list[str]]:
    """Send all messages, read in one pass or one by one; returns the texts of the responses, by chat."""
    rows: dict[BatchedReply, int] = {}
    parts: list[list[str]] = [[] for _ in asked]
    new = [NewReply(chat, chat.new_turn(text), ReplySettings(tokens, **options)) for chat, text, tokens in asked]
    for each, begun in batch.begin_all(new) if at_once else ((each, batch.begin(each)) for each in new):
        assert not isinstance(begun, Exception), begun
        row, first = begun
        rows[row] = new.index(each)
        if first is not None:
            parts[rows[row]].append(first.text)
    while len(batch):
        for row, response in batch.step():
            if row in rows:
                parts[rows[row]].append(response.text)
    return parts


@every_history
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("write", WRITES)
def test_as_one_after_the_other(history, write, at_once):
    batch = ReplyBatch(*loaded(), most=4)
    chats = [new_chat(history=history) for _ in TEXTS]
    alone = [new_chat(history=history) for _ in TEXTS]
    for chat in (*chats, *alone):
        chat.write = write
    for lengths in ((12, 3, 1, 20), (5, 9, 14, 2)):
        parts = run(batch, list(zip(chats, TEXTS, lengths, strict=True)), at_once)
        for chat, other, text, tokens, shown in zip(chats, alone, TEXTS, lengths, parts, strict=True):
            responses = list(other.stream(text, tokens))
            assert chat.messages == other.messages
            assert chat.segments == other.segments
            assert shown == [response.text for response in responses]
            assert same_memory(chat, other, TOLERANCE)
        drifts = [(chat.drift[-1], other.drift[-1]) for chat, other in zip(chats, alone, strict=True)]
        assert all(one.kept == pytest.approx(two.kept, abs=TOLERANCE) for one, two in drifts)
    # The caches are as after a turn in the chat itself.
    for chat, other in zip(chats, alone, strict=True):
        chat.send("And now?", 4)
        other.send("And now?", 4)
        assert chat.messages == other.messages
        assert same_memory(chat, other, TOLERANCE)
        chat.undo()
        chat.undo()
        chat.undo()
        assert not any(mx.abs(state).max().item() for state in chat.memory.values())


@every_kind
def test_every_kind_of_adapter(kind):
    batch = ReplyBatch(*loaded(kind))
    chats, alone = [new_chat(kind) for _ in TEXTS], [new_chat(kind) for _ in TEXTS]
    run(batch, [(chat, text, 8) for chat, text in zip(chats, TEXTS, strict=True)])
    for chat, other, text in zip(chats, alone, TEXTS, strict=True):
        other.send(text, 8)
        assert chat.messages == other.messages
        assert same_memory(chat, other, TOLERANCE)


def test_one_reply_is_that_of_the_chat_bit_for_bit():
    batch = ReplyBatch(*loaded())
    chat, other = new_chat(), new_chat()
    for text in TEXTS:
        run(batch, [(chat, text, 10)])
        other.send(text, 10)
        assert chat.messages == other.messages
        assert same_memory(chat, other, 0)


def test_replies_join_while_others_go_on():
    batch = ReplyBatch(*loaded())
    first, second, expected = new_chat(), new_chat(), new_chat()
    row, _ = batch.begin(NewReply(first, first.new_turn(TEXTS[0]), ReplySettings(20)))
    for _ in range(5):
        batch.step()
    run(batch, [(second, TEXTS[1], 10)])
    assert row.is_ended
    for chat, text, tokens in ((first, TEXTS[0], 20), (second, TEXTS[1], 10)):
        expected = new_chat()
        expected.send(text, tokens)
        assert chat.messages == expected.messages
        assert same_memory(chat, expected, TOLERANCE)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_ended_early(steps):
    batch = ReplyBatch(*loaded())
    chat, other, third = new_chat(), new_chat(), new_chat()
    row, _ = batch.begin(NewReply(chat, chat.new_turn(TEXTS[0]), ReplySettings(20)))
    kept, _ = batch.begin(NewReply(third, third.new_turn(TEXTS[1]), ReplySettings(7)))
    for _ in range(steps):
        batch.step()
    count = max(1, len(row.tokens.ids))
    batch.end(row)
    batch.end(row)
    assert len(chat.turns[-1].reply_ids) == count
    stream = other.stream(TEXTS[0], 20)
    for _ in range(count):
        next(stream)
    stream.close()
    assert chat.messages == other.messages
    assert same_memory(chat, other, TOLERANCE)
    while not kept.is_ended:
        batch.step()
    assert len(third.turns) == 1


@pytest.mark.parametrize("steps", [0, 3])
@every_history
def test_aborted(history, steps):
    batch = ReplyBatch(*loaded())
    chat, other = new_chat(history=history), new_chat(history=history)
    for each in (chat, other):
        each.send("Hello.", 5)
    row, _ = batch.begin(NewReply(chat, chat.new_turn(TEXTS[0]), ReplySettings(20)))
    with pytest.raises(ValueError, match="a reply is under way"):
        batch.begin(NewReply(chat, row.turn, ReplySettings(20)))
    for _ in range(steps):
        batch.step()
    batch.abort(row)
    assert len(batch) == 0
    assert chat.messages == other.messages
    for each in (chat, other):
        each.send("And now?", 5)
    assert chat.messages == other.messages
    assert same_memory(chat, other, TOLERANCE_AGAIN)


def test_a_failure_ends_only_the_reply_that_fails():
    model, tokenizer = loaded()
    batch = ReplyBatch(model, tokenizer)
    calls = 0

    def failing(logprobs: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("no")
        return mx.argmax(logprobs, axis=-1)

    good, bad, expected = new_chat(), new_chat(), new_chat()
    batch.begin(NewReply(good, good.new_turn(TEXTS[0]), ReplySettings(12)))
    batch.begin(NewReply(bad, bad.new_turn(TEXTS[1]), ReplySettings(12, sampler=failing)))
    failed = []
    while len(batch):
        try:
            batch.step()
        except RuntimeError:
            failed += batch.rebuild()
    [(row, error)] = failed
    assert row.new.chat is bad
    assert str(error) == "no"
    assert not bad.turns
    expected.send(TEXTS[0], 12)
    assert good.messages == expected.messages
    assert same_memory(good, expected, TOLERANCE)


def step_all(batch: ReplyBatch) -> tuple[dict[ChatSession, list[str]], list[ChatSession]]:
    """Go on to the end, also after failures; returns the last responses by chat, and the chats that failed."""
    last: dict[ChatSession, list[str]] = {}
    failed = []
    while len(batch):
        try:
            for row, response in batch.step():
                if response.finish_reason is not None:
                    last.setdefault(row.new.chat, []).append(response.finish_reason)
        except RuntimeError:
            failed += [row.new.chat for row, _ in batch.rebuild()]
    return last, failed


def test_what_follows_a_reply_runs_in_the_steps_of_the_others(monkeypatch):
    model, _ = loaded()
    batch, shapes = ReplyBatch(*loaded()), []
    chats, alone = [new_chat() for _ in range(3)], [new_chat() for _ in range(3)]
    plain = type(model).__call__

    def noted(self, tokens, *arguments, **options):
        shapes.append(tokens.shape)
        return plain(self, tokens, *arguments, **options)

    lengths = (3, 12, 14)
    asked = zip(chats, TEXTS, lengths, strict=False)
    list(batch.begin_all([NewReply(chat, chat.new_turn(text), ReplySettings(tokens)) for chat, text, tokens in asked]))
    monkeypatch.setattr(type(model), "__call__", noted)
    last, _ = step_all(batch)
    monkeypatch.undo()
    # The last token of the messages, and then one step for each token of the longest turn. Only the last reply may end
    # after the others, and then its ending is read in one pass.
    assert all(shape == (rows, 1) for shape, rows in zip(shapes[:4], (3, 3, 3, 3), strict=True))
    assert all(length == 1 for _, length in shapes[:-1])
    assert len(shapes) <= 1 + max(turn.length - len(turn.opening.ids) for chat in chats for turn in chat.turns)
    assert all(len(reasons) == 1 for reasons in last.values()) and len(last) == 3
    for chat, other, text, tokens in zip(chats, alone, TEXTS, lengths, strict=False):
        other.send(text, tokens)
        assert chat.messages == other.messages
        assert chat.segments == other.segments
        assert same_memory(chat, other, TOLERANCE)
        assert chat.turns[-1].between.text.offsets == other.turns[-1].between.text.offsets
        pairs = zip(chat.turns[-1].between.states, other.turns[-1].between.states, strict=True)
        assert all(distance(one, two) <= TOLERANCE for one, two in pairs)
        assert chat.regenerate(tokens) == other.regenerate(tokens)


def held_bytes(chats: list[ChatSession]) -> int:
    """The bytes of the arrays that only the last chat of the list holds, which is dropped."""
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    chats.clear()
    gc.collect()
    return before - mx.get_active_memory()


@pytest.mark.parametrize("fails_at", [1, 3, 4, 5, 6])
def test_a_failure_while_another_reply_ends(fails_at):
    batch, calls = ReplyBatch(*loaded()), 0

    def failing(logprobs: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        if calls >= fails_at:
            raise RuntimeError("no")
        return mx.argmax(logprobs, axis=-1)

    ends, bad, goes_on = new_chat(), new_chat(), new_chat()
    for chat, tokens, sampler in ((ends, 3, None), (bad, 30, failing), (goes_on, 9, None)):
        batch.begin(NewReply(chat, chat.new_turn(TEXTS[0]), ReplySettings(tokens, sampler=sampler)))
    last, failed = step_all(batch)
    assert failed == [bad] and not bad.turns
    assert {chat: len(reasons) for chat, reasons in last.items()} == {ends: 1, goes_on: 1}
    for chat, tokens in ((ends, 3), (goes_on, 9)):
        expected = new_chat()
        expected.send(TEXTS[0], tokens)
        assert chat.messages == expected.messages
        assert chat.segments == expected.segments
        assert same_memory(chat, expected, TOLERANCE)
        assert chat.drift[-1].kept == pytest.approx(expected.drift[-1].kept, abs=TOLERANCE)


@pytest.mark.parametrize("steps", [4, 5, 6])
def test_ended_while_its_ending_runs(steps):
    batch = ReplyBatch(*loaded())
    chat, other, expected = new_chat(), new_chat(), new_chat()
    row, _ = batch.begin(NewReply(chat, chat.new_turn(TEXTS[0]), ReplySettings(3)))
    batch.begin(NewReply(other, other.new_turn(TEXTS[1]), ReplySettings(30)))
    for _ in range(steps):
        batch.step()
    batch.end(row)
    expected.send(TEXTS[0], 3)
    assert chat.segments == expected.segments
    assert same_memory(chat, expected, TOLERANCE)


def test_a_chat_keeps_nothing_of_the_other_rows():
    """Its arrays are parts of those of the batch, which are much larger."""
    batch = ReplyBatch(*loaded())
    chats, alone = [new_chat() for _ in range(8)], [new_chat()]
    for index in range(len(chats)):
        new = NewReply(chats[index], chats[index].new_turn(TEXTS[0]), ReplySettings(20 if index else 4))
        batch.begin(new)
    step_all(batch)
    alone[0].send(TEXTS[0], 4)
    assert chats[0].segments == alone[0].segments
    del batch, new, chats[1:]
    assert 0 < held_bytes(chats) <= held_bytes(alone)


def test_stop_texts_and_samplers_of_each_reply():
    batch = ReplyBatch(*loaded())
    chats, alone = [new_chat() for _ in range(3)], [new_chat() for _ in range(3)]
    reply = new_chat().send(TEXTS[0], 12)
    stop = reply[3:5]
    first, _ = batch.begin(NewReply(chats[0], chats[0].new_turn(TEXTS[0]), ReplySettings(12, stop=["\x00", stop])))
    second, _ = batch.begin(NewReply(chats[1], chats[1].new_turn(TEXTS[0]), ReplySettings(12)))
    mx.random.seed(1)
    batch.begin(NewReply(chats[2], chats[2].new_turn(TEXTS[0]), ReplySettings(12, sampler=make_sampler(temp=1.0))))
    while len(batch):
        batch.step()
    assert first.tokens.is_stopped
    assert (first.tokens.stop_text, second.tokens.stop_text) == (stop, None)
    alone[0].send(TEXTS[0], 12, stop=stop)
    alone[1].send(TEXTS[0], 12)
    for chat, other in zip(chats[:2], alone[:2], strict=True):
        assert chat.messages == other.messages
        assert same_memory(chat, other, TOLERANCE)
    assert len(chats[2].turns[0].reply_ids) <= 12


def test_options_that_batches_lack_run_beside_them():
    batch = ReplyBatch(*loaded())
    chat, other, beside = new_chat(), new_chat(), new_chat()
    options = {"quantized_kv_start": 7}
    batch.begin(NewReply(chat, chat.new_turn(TEXTS[0]), ReplySettings(8, options=options)))
    batch.begin(NewReply(beside, beside.new_turn(TEXTS[1]), ReplySettings(8)))
    while len(batch):
        batch.step()
    other.send(TEXTS[0], 8, **options)
    assert chat.messages == other.messages
    assert len(beside.turns) == 1


def test_a_full_batch_refuses():
    batch = ReplyBatch(*loaded(), most=1)
    one, two = new_chat(), new_chat()
    row, _ = batch.begin(NewReply(one, one.new_turn("Hello."), ReplySettings(30)))
    if not row.is_ended:
        with pytest.raises(ValueError, match="the batch has 1 replies"):
            batch.begin(NewReply(two, two.new_turn("Hello."), ReplySettings(30)))
    assert distance(two.memory[0], mx.zeros_like(two.memory[0])) == 0


def test_a_reply_that_cannot_begin_leaves_the_others():
    """Its sampler fails at the first token, or its chat has a reply under way."""
    batch = ReplyBatch(*loaded())
    chats, expected = [new_chat() for _ in range(3)], [new_chat() for _ in range(3)]

    def failing(logprobs: mx.array) -> mx.array:
        raise RuntimeError("no")

    samplers = [None, failing, None]
    new = [
        NewReply(chat, chat.new_turn(text), ReplySettings(6, sampler=sampler))
        for chat, text, sampler in zip(chats, TEXTS, samplers, strict=False)
    ]
    begun = batch.begin_all([*new, new[0]])
    assert [isinstance(result, Exception) for _, result in begun] == [False, False, False, True]
    failed = []
    while len(batch):
        try:
            batch.step()
        except RuntimeError:
            failed += batch.rebuild()
    assert [row.new for row, _ in failed] == [new[1]]
    assert not chats[1].turns
    assert chats[1].send(TEXTS[1], 6) == expected[1].send(TEXTS[1], 6)
    for index in (0, 2):
        expected[index].send(TEXTS[index], 6)
        assert same_memory(chats[index], expected[index], TOLERANCE)
        assert chats[index].messages == expected[index].messages


def test_long_messages_are_read_in_smaller_groups():
    batch = ReplyBatch(*loaded())
    chats, alone = [new_chat() for _ in TEXTS], [new_chat() for _ in TEXTS]
    new = [
        NewReply(chat, chat.new_turn(text * 3), ReplySettings(4, prefill_step_size=step))
        for chat, text, step in zip(chats, TEXTS, (200, 200, 9, 200), strict=True)
    ]
    assert not any(isinstance(begun, Exception) for _, begun in batch.begin_all(new))
    while len(batch):
        batch.step()
    for chat, other, text in zip(chats, alone, TEXTS, strict=True):
        other.send(text * 3, 4)
        assert chat.messages == other.messages
        assert same_memory(chat, other, TOLERANCE)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]])
def test_replies_that_use_no_memory_are_those_of_the_frozen_model(texts):
    """The model then runs at the cost of the frozen one. A row that writes joins them later."""
    batch = ReplyBatch(*loaded())
    chats, alone = [new_chat() for _ in texts], [new_chat() for _ in texts]
    for chat in (*chats, *alone):
        chat.write = "none"
    rows = [NewReply(chat, chat.new_turn(text), ReplySettings(9)) for chat, text in zip(chats, texts, strict=True)]
    begun = [row for _, begun in batch.begin_all(rows) if not isinstance(begun, Exception) for row in begun[:1]]
    assert len(begun) == len(texts) and all(row.is_off for row in begun if not row.is_ended)
    batch.step()
    writing, other = new_chat(), new_chat()
    batch.begin(NewReply(writing, writing.new_turn("One."), ReplySettings(5)))
    while len(batch):
        batch.step()
    other.send("One.", 5)
    assert writing.messages == other.messages
    assert same_memory(writing, other, TOLERANCE)
    for chat, one, text in zip(chats, alone, texts, strict=True):
        one.send(text, 9)
        assert chat.messages == one.messages
        assert not any(mx.any(state).item() for state in chat.memory.values())
