"""The visible start of new chats, read once for all chats that begin with it."""

import mlx.core as mx
import pytest

from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.use import observing
from mlx_deltamem.sessions.batch.reply_batch import ReplyBatch
from mlx_deltamem.sessions.reading import starts
from mlx_deltamem.sessions.reading.prefill import prefill
from mlx_deltamem.sessions.reading.starts import Starts, new_start
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.sessions.turns.drift import Drift, KeepGateMeans, joined_drift
from tests.sessions.batch.test_reply_batch import TEXTS, TOLERANCE, run
from tests.sessions.test_session import every_history, loaded, same_memory

SYSTEM = "You are brief, and you know the names of all rivers."


def chat(system: str | None = SYSTEM, kind: str = "qwen3_tsw_qo", **options) -> ChatSession:
    return ChatSession(*loaded(kind), system=system, **options)


@every_history
def test_the_same_start_is_read_once(history, forwarded):
    batch, read = ReplyBatch(*loaded()), []
    chats = [chat(history=history) for _ in TEXTS]
    for each, text in zip(chats, TEXTS, strict=True):
        forwarded.clear()
        run(batch, [(each, text, 4)])
        read.append(each.turns[0].length - sum(forwarded))
        other = chat(history=history)
        other.send(text, 4)
        # Bit for bit: alone, the start is a pass of its own too.
        assert each.messages == other.messages and same_memory(each, other, 0)
        assert each.drift[0].kept == pytest.approx(other.drift[0].kept, rel=1e-6)
    length = new_start(chat().state, chat().new_turn("One."))
    assert length > 10
    assert read == [0, length, length, length]


def test_chats_of_one_pass_begin_with_the_kept_start():
    batch = ReplyBatch(*loaded())
    chats, alone = [chat() for _ in TEXTS], [chat() for _ in TEXTS]
    run(batch, [(each, text, 6) for each, text in zip(chats, TEXTS, strict=True)])
    for each, other, text in zip(chats, alone, TEXTS, strict=True):
        other.send(text, 6)
        assert each.messages == other.messages
        assert same_memory(each, other, TOLERANCE)
        assert each.drift[0].kept == pytest.approx(other.drift[0].kept, abs=TOLERANCE)
        each.undo()
        assert not any(mx.abs(state).max().item() for state in each.memory.values())


@pytest.mark.parametrize("change", ["memory", "remembered", "gone on", "means"])
def test_only_a_new_chat_with_an_empty_memory_shares_its_start(change):
    changed = chat(kind="qwen3_ssw_msg" if change == "means" else "qwen3_tsw_qo", history="none")
    if change == "memory":
        changed.memory = {layer: mx.ones_like(state) for layer, state in changed.memory.items()}
    elif change == "remembered":
        changed.remember("The river is wide.")
    elif change == "gone on":
        changed.send("One.", 2)
    assert not new_start(changed.state, changed.new_turn("Two."))


def test_other_tokens_and_other_marks_are_other_starts(forwarded):
    model, _ = loaded()
    found = []
    known = Starts()
    for ids, written in (([5, 6, 7], True), ([5, 6, 7], False), ([5, 6], True), ([5, 6, 7], True)):
        cache = make_prompt_cache(model)
        forwarded.clear()
        known.read(model, cache, Segments.without_spans(ids), [written] * len(ids))
        found.append(sum(forwarded))
        alone = make_prompt_cache(model)
        prefill(model, alone, Segments.without_spans(ids), written, want_logits=False)
        assert cache[0].offset == alone[0].offset == len(ids)
        assert all(map(mx.array_equal, cache[-1].cache, alone[-1].cache))
        # What the chat goes on with does not reach the kept start.
        prefill(model, cache, Segments.without_spans([9, 8]), True, want_logits=False)
    assert found == [3, 3, 2, 0]


@pytest.mark.parametrize("most, tokens", [(2, 1000), (10, 5)])
def test_the_starts_that_are_kept_are_bounded(monkeypatch, forwarded, most, tokens):
    monkeypatch.setattr(starts, "_MOST", most)
    monkeypatch.setattr(starts, "_MOST_TOKENS", tokens)
    model, _ = loaded()
    known, found = Starts(), []
    for ids in ([1, 2], [3, 4], [5, 6], [5, 6], [1, 2], [1, 2, 3, 4, 5, 6], [1, 2]):
        forwarded.clear()
        known.read(model, make_prompt_cache(model), Segments.without_spans(ids), [True] * len(ids))
        found.append(sum(forwarded))
    # The oldest goes first; a start that is longer than all that may be kept is not kept.
    assert found == [2, 2, 2, 0, 2, 6, 0]


def test_gates_of_two_passes_have_the_mean_of_one():
    model, _ = loaded()
    ids = list(range(3, 20))
    with observing(model, whole := KeepGateMeans()):
        prefill(model, make_prompt_cache(model), Segments.without_spans(ids), want_logits=False)
    cache = make_prompt_cache(model)
    with observing(model, first := KeepGateMeans()):
        prefill(model, cache, Segments.without_spans(ids[:6]), want_logits=False)
    with observing(model, rest := KeepGateMeans()):
        prefill(model, cache, Segments.without_spans(ids[6:]), want_logits=False)
    # Sums in another order, of numbers between 0 and 1.
    joined = joined_drift((Drift(first.means(), {}), 6), (Drift(rest.means(), {}), len(ids) - 6))
    assert joined.kept == pytest.approx(whole.means(), rel=1e-5)
