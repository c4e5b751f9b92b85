"""Training writes what a chat writes, on the golden models."""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import GenerationResponse

from mlx_deltamem import ChatSession
from mlx_deltamem.sessions.reading.prefill import write_text
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.turns.writing import WRITES
from mlx_deltamem.training import passes
from mlx_deltamem.training.batch import Batch
from mlx_deltamem.training.batches import BatchMaker
from mlx_deltamem.training.episodes import EpisodeMaker
from mlx_deltamem.training.records import Record
from mlx_deltamem.training.rules import EpisodeRules
from mlx_deltamem.training.segments.write_pass import write_states
from tests.conftest import distance
from tests.sessions.template.test_chat_template import chat
from tests.sessions.test_session import loaded

KINDS = ["qwen3_tsw_qo", "qwen3_msw4"]
MEANS = ["qwen3_ssw_msg", "qwen3_ssw_sent"]
TOLD = chat("I am Ann. I keep bees.", "Hello, Ann!", "My word is jade.", "I see. Thank you.", system="Be brief.")
ASKED = chat("Who am I?", "You are Ann.")
every_write = pytest.mark.parametrize("write", WRITES)


def batch_of(kind: str, messages: Sequence[Message] = (*TOLD, *ASKED), count: int = 1, **rules: object) -> Batch:
    """A batch of one chat several times, and another chat of another length."""
    model, tokenizer = loaded(kind)
    other = Record("there", (TOLD[0], *chat("Hi.", "Hello."), *ASKED))
    maker = EpisodeMaker(tokenizer, EpisodeRules(questions_per_write=1, **rules), strict=True)
    return BatchMaker(model.attachment.config).batch(maker.episodes([Record("here", tuple(messages)), other])[:count])


def states_of(model: nn.Module, batch: Batch, row: int = 0) -> dict[int, mx.array]:
    states = passes.write(model, batch, lambda *_: None)
    return {layer: state[row : row + 1] for layer, state in enumerate(states) if state.size}


def replying(session: ChatSession, text: str, reply: str) -> Iterator[GenerationResponse]:
    """Send a message to which the model gives a fixed reply."""
    ids = session.tokenizer.encode(reply, add_special_tokens=False)
    rest = iter(ids)
    yield from session.stream(text, len(ids), sampler=lambda _: mx.array([next(rest, 0)]))


def say(session: ChatSession, messages: Sequence[Message]) -> list[mx.array]:
    """Have a chat of given messages and replies; return the log-probabilities of the tokens of each reply."""
    texts = [message["content"] for message in messages]
    return [
        response.logprobs
        for said, reply in zip(texts[::2], texts[1::2], strict=True)
        for response in replying(session, said, reply)
    ]


@pytest.mark.parametrize("kind", KINDS)
@every_write
def test_a_history_gives_the_states_of_a_chat(write, kind):
    model, tokenizer = loaded(kind)
    session = ChatSession(model, tokenizer, system="Be brief.", write=write)
    say(session, TOLD[1:])
    for count in (1, 2):
        states = states_of(model, batch_of(kind, count=count, write=write))
        assert all(state.any() for state in states.values()) == (write != "none")
        assert all(distance(state, states[layer]) <= 1e-5 for layer, state in session.memory.items())


@pytest.mark.slow
@pytest.mark.parametrize("system", ["Be brief.", None])
@pytest.mark.parametrize("kind", KINDS)
@every_write
def test_turn_by_turn_equals_a_chat_that_does_not_see_its_turns(write, kind, system):
    model, tokenizer = loaded(kind)
    session = ChatSession(model, tokenizer, system=system, write=write, history="none")
    told = TOLD if system else TOLD[1:]
    say(session, told[-4:])
    for count in (1, 2):
        batch = batch_of(kind, [*told, *ASKED], count, write=write, turn_by_turn=True)
        assert (len(batch.history) > 1) == (write != "none")
        assert all(distance(state, session.memory[layer]) <= 1e-5 for layer, state in states_of(model, batch).items())
    states = passes.of_rows(passes.write(model, batch, lambda *_: None), batch.rows)
    logits = passes.read(model, states, batch.asked, writes=batch.writes)
    for place, expected in enumerate(say(session, ASKED)):
        assert distance(nn.log_softmax(logits[0, place]), expected.reshape(-1)) <= 2e-5


def test_turn_by_turn_in_segments():
    model, _ = loaded()
    batch = batch_of("qwen3_tsw_qo", count=2, turn_by_turn=True)
    one, other = (passes.write(model, batch, lambda *_: None, segment) for segment in (0, 5))
    assert all(distance(*pair) <= 1e-5 for pair in zip(one, other, strict=True))
    # The writes of the first layer depend on the tokens alone.
    in_one_pass = passes.write(model, batch_of("qwen3_tsw_qo", count=2), lambda *_: None)
    assert distance(one[-1], in_one_pass[-1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("write", ["all", "user", "assistant"])
@pytest.mark.parametrize("kind", [*KINDS, *MEANS])
def test_a_history_gives_the_states_of_a_written_text(kind, write):
    model, tokenizer = loaded(kind)
    segments = ChatTemplate(tokenizer, enable_thinking=False).whole(TOLD)
    roles = [TOLD[index + 1]["role"] if index >= 0 else "system" for index in segments.message_ids]
    empty = [mx.zeros((1, *shape)) for shape in model.memory_layout.shapes]
    expected = write_text(model, empty, segments, [write in ("all", role) for role in roles])
    batch = batch_of(kind, count=2, write=write)
    states = states_of(model, batch)
    assert all(distance(expected[layer], state) <= 1e-5 for layer, state in states.items())
    ((ids, lengths, written, _),) = batch.history
    in_segments = write_states(model, ids, lengths, batch.shares, 7, written)
    assert all(distance(expected[layer], in_segments[layer][:1]) <= 1e-5 for layer in states)


@pytest.mark.slow
@pytest.mark.parametrize("recent", [1, 3])
@every_write
def test_a_text_is_read_as_in_a_chat(write, recent):
    model, tokenizer = loaded()
    batch = batch_of("qwen3_tsw_qo", count=2, write=write, recent_messages=recent)
    states = passes.of_rows(passes.write(model, batch, lambda *_: None), batch.rows)
    logits = passes.read(model, states, batch.asked, writes=batch.writes)
    told = {layer: state[:1] for layer, state in enumerate(states) if state.size}
    # `after` writes an exchange when it has ended, so that a single text is only read.
    chat_write = "none" if write == "after" else write
    session = ChatSession(model, tokenizer, system="Be brief.", write=chat_write, memory=told)
    visible = [*TOLD, *ASKED][-1 - recent :]
    say(session, visible[:-2])
    said = say(session, visible[-2:])
    for place, expected in enumerate(said):
        assert distance(nn.log_softmax(logits[0, place]), expected.reshape(-1)) <= 2e-5


def test_another_write_mode_gives_other_logits():
    model, _ = loaded()
    found = {}
    for write in WRITES:
        batch = batch_of("qwen3_tsw_qo", write=write)
        states = passes.of_rows(passes.write(model, batch, lambda *_: None), batch.rows)
        found[write] = passes.read(model, states, batch.asked, writes=batch.writes)
    names = list(found)
    pairs = [(one, other) for index, one in enumerate(names) for other in names[:index]]
    assert all(distance(found[one], found[other]) > 1e-4 for one, other in pairs)
