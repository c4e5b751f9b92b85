"""Long texts to remember: interrupted and continued, and in flat memory."""

import functools
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.sessions.reading import prefill as prefill_module
from mlx_deltamem.sessions.reading.remembering import turn_to_remember
from tests.conftest import distance
from tests.sessions.test_session import loaded
from tests.sessions.turns.test_writing import TRANSCRIPT, chat_of

KIND = "qwen3_tsw_qo"


def stopping(tokens: int) -> Callable[[int, int], None]:
    """A progress callback that interrupts when this many tokens have been read."""

    def progress(done: int, _: int) -> None:
        if done >= tokens:
            raise KeyboardInterrupt

    return progress


def interrupted(chat: ChatSession, tokens: int, **options: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        chat.remember(TRANSCRIPT, keep_read=True, prefill_step_size=5, progress=stopping(tokens), **options)


@functools.cache
def ends() -> list[int]:
    """The numbers of tokens after each stretch of the transcript."""
    chat = chat_of(KIND, "none")
    chat.remember(TRANSCRIPT)
    return prefill_module.stretch_ends(chat.model, chat.turns[-1].opening)


def assert_same(chat: ChatSession, expected: ChatSession) -> None:
    """The memory and the drift of two chats are the same. The tokens were read in the same calls."""
    assert len(chat.turns) == len(expected.turns)
    assert chat.turns[-1].opening == expected.turns[-1].opening
    assert all(mx.array_equal(state, expected.memory[layer]) for layer, state in chat.memory.items())
    for found, drift in (
        (chat.drift[-1].kept, expected.drift[-1].kept),
        (chat.drift[-1].changed, expected.drift[-1].changed),
    ):
        assert found == pytest.approx(drift, abs=1e-5)


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill_module, "_STRETCH", 12)


@pytest.mark.slow
@pytest.mark.parametrize("history", ["full", "none"])
@pytest.mark.parametrize("write", ["all", "user"])
# The stretches after which it is interrupted; the second time in the same stretch as the first, or later.
@pytest.mark.parametrize("stretches", [(1,), (0, 2), (0, 0, 1)])
def test_a_text_goes_on_where_it_was_interrupted(stretches, write, history):
    whole, chat = chat_of(KIND, history), chat_of(KIND, history)
    whole.remember(TRANSCRIPT, write=write, prefill_step_size=5)
    before, turns = chat.memory, len(chat.turns)
    assert len(ends()) > 3
    for stretch in stretches:
        interrupted(chat, ends()[stretch] + 5, write=write)
        assert len(chat.turns) == turns + 1
        assert len(chat.turns[-1].opening.ids) == ends()[stretch]
    chat.remember(TRANSCRIPT, write=write, prefill_step_size=5)
    assert_same(chat, whole)
    chat.undo()
    assert len(chat.turns) == turns
    assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())


@pytest.mark.slow
def test_an_interrupted_text_is_a_turn_as_any_other(tmp_path: Path):
    whole, chat = chat_of(KIND, "none"), chat_of(KIND, "none")
    whole.remember(TRANSCRIPT, prefill_step_size=5)
    before = chat.memory
    interrupted(chat, ends()[1] + 5)
    assert any(not mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())
    chat.save(tmp_path / "chat.safetensors")
    # A new process goes on with it.
    again = ChatSession.load(*loaded(KIND), tmp_path / "chat.safetensors")
    again.remember(TRANSCRIPT, prefill_step_size=5)
    assert_same(again, whole)
    # Or it replies, and then the text begins from the start.
    chat.send("So?", 4)
    chat.remember(TRANSCRIPT, prefill_step_size=5)
    assert len(chat.turns) == len(whole.turns) + 2
    assert chat.turns[-1].opening == whole.turns[-1].opening


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stretches", "keep"), [(KIND, 0, True), (KIND, 2, False), ("qwen3_ssw_msg", 2, True)])
def test_nothing_is_kept_before_the_first_border_nor_of_means_nor_unasked(kind, stretches, keep):
    chat = chat_of(kind, "full")
    before, turns = chat.memory, chat.turns
    with pytest.raises(KeyboardInterrupt):
        chat.remember(TRANSCRIPT, keep_read=keep, prefill_step_size=5, progress=stopping(ends()[stretches] - 1))
    assert chat.turns == turns
    assert all(mx.array_equal(state, before[layer]) for layer, state in chat.memory.items())


@pytest.mark.slow
def test_another_text_or_a_memory_that_was_set_does_not_go_on():
    for change in (lambda chat: setattr(chat, "memory", chat.memory), lambda _: None):
        chat = chat_of(KIND, "none")
        interrupted(chat, ends()[1] + 5)
        count = len(chat.turns)
        change(chat)
        text = TRANSCRIPT if chat.state.memory_set else TRANSCRIPT[:-1]
        chat.remember(text, prefill_step_size=5)
        assert len(chat.turns) == count + 1


@pytest.mark.slow
@pytest.mark.parametrize("history", ["full", "none"])
def test_another_system_prompt_reads_no_more_of_an_interrupted_text(history):
    prompts = "Be brief.", "Answer in as few words as you can."
    chat, expected, whole = (ChatSession(*loaded(KIND), system=prompts[each], history=history) for each in (0, 1, 1))
    whole.remember(TRANSCRIPT, prefill_step_size=5)
    for each in (chat, expected):
        text = turn_to_remember(each.state, TRANSCRIPT, "all").opening
        interrupted(each, prefill_module.stretch_ends(each.model, text)[2] + 5)
    chat.edit(0, prompts[1])
    assert chat.turns[-1].opening == expected.turns[-1].opening
    assert len(chat.turns[-1].opening.ids) < len(whole.turns[-1].opening.ids)
    assert all(distance(state, expected.memory[layer]) < 1e-5 for layer, state in chat.memory.items())
    # The same text goes on there. The edit had read it to its end, and this read it once more.
    chat.remember(TRANSCRIPT, prefill_step_size=5)
    assert len(chat.turns) == 1
    assert chat.turns[-1].opening == whole.turns[-1].opening
    assert all(distance(state, whole.memory[layer]) < 1e-5 for layer, state in chat.memory.items())


def peak_of(words: int) -> tuple[int, int]:
    """The tokens of a text of numbers, and the most memory that reading them took, in bytes."""
    chat = ChatSession(*loaded(KIND), history="none")
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    chat.remember(" ".join(map(str, range(words))))
    return len(chat.turns[-1].opening.ids), mx.get_peak_memory() - before


@pytest.mark.slow
def test_a_long_text_takes_no_more_memory_than_a_short_one(monkeypatch):
    monkeypatch.setattr(prefill_module, "_STRETCH", 512)
    (few, low), (many, high) = peak_of(600), peak_of(6000)
    assert few > 1000 and many > 20_000
    # Besides the calls of the model, only the tokens themselves are in memory.
    assert high <= low * 1.05 + 64 * many
