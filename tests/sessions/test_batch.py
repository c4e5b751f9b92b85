"""Replies of several chats generated together, compared with the same replies one after the other."""

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_sampler

from mlx_deltamem.sessions.batch import BatchedReply, ReplyBatch
from mlx_deltamem.sessions.reply import ReplySettings
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.writing import WRITES
from tests.conftest import distance
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import every_history, every_kind, loaded, new_chat, same_memory

TEXTS = ("My word is jade!", "Hello there. How are you?", "One.", "The river is wide and old, they say.")
# Rows of a batch are summed in another order than single rows.
TOLERANCE = 1e-4


def run(batch: ReplyBatch, asked: list[tuple[ChatSession, str, int]], **options) -> list[list[str]]:
    """Send all messages at once; returns the texts of the responses, by chat."""
    rows: dict[BatchedReply, int] = {}
    parts: list[list[str]] = [[] for _ in asked]
    for index, (chat, text, tokens) in enumerate(asked):
        row, first = batch.begin(chat, chat.new_turn(text), ReplySettings(tokens, **options))
        rows[row] = index
        if first is not None:
            parts[index].append(first.text)
    while len(batch):
        for row, response in batch.step():
            if row in rows:
                parts[rows[row]].append(response.text)
    return parts


@every_history
@pytest.mark.parametrize("write", WRITES)
def test_as_one_after_the_other(history, write):
    batch = ReplyBatch(*loaded(), most=4)
    chats = [new_chat(history=history) for _ in TEXTS]
    alone = [new_chat(history=history) for _ in TEXTS]
    for chat in (*chats, *alone):
        chat.write = write
    for lengths in ((12, 3, 1, 20), (5, 9, 14, 2)):
        parts = run(batch, list(zip(chats, TEXTS, lengths, strict=True)))
        for chat, other, text, tokens, shown in zip(chats, alone, TEXTS, lengths, parts, strict=True):
            responses = list(other.stream(text, tokens))
            assert chat.messages == other.messages
            assert chat.segments == other.segments
            assert shown == [response.text for response in responses]
            assert same_memory(chat, other, TOLERANCE)
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
    row, _ = batch.begin(first, first.new_turn(TEXTS[0]), ReplySettings(20))
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
    row, _ = batch.begin(chat, chat.new_turn(TEXTS[0]), ReplySettings(20))
    kept, _ = batch.begin(third, third.new_turn(TEXTS[1]), ReplySettings(7))
    for _ in range(steps):
        batch.step()
    count = len(row.tokens.ids)
    batch.end(row)
    batch.end(row)
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
    row, _ = batch.begin(chat, chat.new_turn(TEXTS[0]), ReplySettings(20))
    with pytest.raises(ValueError, match="a reply is under way"):
        batch.begin(chat, row.turn, ReplySettings(20))
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
    batch.begin(good, good.new_turn(TEXTS[0]), ReplySettings(12))
    batch.begin(bad, bad.new_turn(TEXTS[1]), ReplySettings(12, sampler=failing))
    failed = []
    while len(batch):
        try:
            batch.step()
        except RuntimeError:
            failed += batch.rebuild()
    [(row, error)] = failed
    assert row.chat is bad
    assert str(error) == "no"
    assert not bad.turns
    expected.send(TEXTS[0], 12)
    assert good.messages == expected.messages
    assert same_memory(good, expected, TOLERANCE)


def test_stop_texts_and_samplers_of_each_reply():
    batch = ReplyBatch(*loaded())
    chats, alone = [new_chat() for _ in range(3)], [new_chat() for _ in range(3)]
    reply = new_chat().send(TEXTS[0], 12)
    stop = reply[3:5]
    first, _ = batch.begin(chats[0], chats[0].new_turn(TEXTS[0]), ReplySettings(12, stop=["\x00", stop]))
    second, _ = batch.begin(chats[1], chats[1].new_turn(TEXTS[0]), ReplySettings(12))
    mx.random.seed(1)
    batch.begin(chats[2], chats[2].new_turn(TEXTS[0]), ReplySettings(12, sampler=make_sampler(temp=1.0)))
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
    batch.begin(chat, chat.new_turn(TEXTS[0]), ReplySettings(8, options=options))
    batch.begin(beside, beside.new_turn(TEXTS[1]), ReplySettings(8))
    while len(batch):
        batch.step()
    other.send(TEXTS[0], 8, **options)
    assert chat.messages == other.messages
    assert len(beside.turns) == 1


def test_a_full_batch_refuses():
    batch = ReplyBatch(*loaded(), most=1)
    one, two = new_chat(), new_chat()
    row, _ = batch.begin(one, one.new_turn("Hello."), ReplySettings(30))
    if not row.is_ended:
        with pytest.raises(ValueError, match="the batch has 1 replies"):
            batch.begin(two, two.new_turn("Hello."), ReplySettings(30))
    assert distance(two.memory[0], mx.zeros_like(two.memory[0])) == 0
