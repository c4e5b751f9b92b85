"""A chat that is being read, run again or replied to is not changed, saved or copied by anyone else."""

import threading
from collections.abc import Callable

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.sessions.batch.batched_reply import NewReply
from mlx_deltamem.sessions.batch.reply_batch import ReplyBatch
from mlx_deltamem.sessions.replies.reply import ReplySettings
from tests.sessions.test_session import every_history, told

TEXT = "One two three four five six seven."
# Work with a progress callback, and work in which the hook is the first call of the model.
WORKS: dict[str, Callable[[ChatSession, Callable[..., None]], object]] = {
    "send": lambda chat, hook: chat.send(TEXT, 4, prefill_step_size=3, prompt_progress_callback=hook),
    "remember": lambda chat, hook: chat.remember(TEXT, prefill_step_size=3, progress=hook),
    "after": lambda chat, hook: chat.send(TEXT, 4, write="after", prompt_progress_callback=hook),
}
HOOKED: dict[str, Callable[[ChatSession], object]] = {
    "read_exchange": lambda chat: chat.read_exchange(TEXT, "Yes."),
    "edit": lambda chat: chat.edit(1, TEXT),
    "edit_system": lambda chat: chat.edit(0, TEXT),
    "regenerate": lambda chat: chat.regenerate(4),
}


def changes(chat: ChatSession, path) -> dict[str, Callable[[], object]]:
    other = ChatSession(chat.model, chat.tokenizer)
    return {
        "undo": chat.undo,
        "reset": chat.reset,
        "send": lambda: chat.send("x", 2),
        "stream": lambda: next(iter(chat.stream("x", 2))),
        "regenerate": lambda: chat.regenerate(2),
        "read_exchange": lambda: chat.read_exchange("x", "y"),
        "remember": lambda: chat.remember("x"),
        "edit": lambda: chat.edit(1, "x"),
        "save": lambda: chat.save(path / "chat.safetensors", save_kv=True),
        "to_dict": chat.to_dict,
        "fork": chat.fork,
        "take_over": lambda: chat.take_over(other),
        "taken_over": lambda: other.take_over(chat),
        "history": lambda: setattr(chat, "history", "none"),
        "system": lambda: setattr(chat, "system", "x"),
        "memory": lambda: setattr(chat, "memory", chat.memory),
        "conversation": lambda: setattr(chat, "conversation", "other"),
    }


def all_refused(chat: ChatSession, path) -> None:
    for name, change in changes(chat, path).items():
        with pytest.raises(ValueError, match="a reply is under way, or the reading of a text; wait") as error:
            pytest.fail(f"{name} gave {change()!r}")
        assert "\n" not in str(error.value)


def assert_same(one: ChatSession, other: ChatSession) -> None:
    assert (one.messages, one.segments) == (other.messages, other.segments)
    assert all(mx.array_equal(state, other.memory[layer]) for layer, state in one.memory.items())


@pytest.mark.slow
@every_history
@pytest.mark.parametrize("work", WORKS)
def test_a_progress_callback_cannot_change_the_chat(work, history, tmp_path):
    chat, alone = told("qwen3_tsw_qo", history), told("qwen3_tsw_qo", history)
    calls = []
    WORKS[work](chat, lambda done, total: calls.append(all_refused(chat, tmp_path)))
    WORKS[work](alone, lambda done, total: None)
    assert calls
    assert_same(chat, alone)
    # It is free again.
    chat.undo()
    alone.undo()
    assert_same(chat, alone)


@pytest.mark.slow
@pytest.mark.parametrize("work", HOOKED)
def test_nobody_changes_a_chat_that_is_run_again(work, tmp_path, monkeypatch):
    chat, alone = told(), told()
    HOOKED[work](alone)
    original, calls = type(chat.model).__call__, []

    def hooked(self, *given, **options):
        if not calls:
            calls.append(True)
            all_refused(chat, tmp_path)
        return original(self, *given, **options)

    monkeypatch.setattr(type(chat.model), "__call__", hooked)
    HOOKED[work](chat)
    assert calls
    assert_same(chat, alone)
    chat.undo()


def test_another_thread_cannot_change_the_chat():
    chat, alone = told(), told()
    errors: list[Exception] = []

    def undo() -> None:
        try:
            chat.undo()
        except ValueError as error:
            errors.append(error)

    def progress(done: int, total: int) -> None:
        thread = threading.Thread(target=undo)
        thread.start()
        thread.join()

    chat.remember(TEXT, progress=progress)
    alone.remember(TEXT)
    assert len(errors) == 2
    assert_same(chat, alone)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("work", WORKS)
def test_a_chat_is_free_after_an_error(work, fails):
    chat, alone = told(), told()

    def fail(done: int, total: int) -> None:
        raise fails("no")

    with pytest.raises(fails, match="no"):
        WORKS[work](chat, fail)
    assert_same(chat, alone)
    assert chat.send("Go on.", 4) == alone.send("Go on.", 4)


@pytest.mark.slow
@every_history
def test_other_chats_of_a_batch_go_on_and_change_while_one_is_read(history):
    reading, replying, idle = (told("qwen3_tsw_qo", history) for _ in range(3))
    batch = ReplyBatch(reading.model, reading.tokenizer)
    steps = []

    def progress(done: int, total: int) -> None:
        with pytest.raises(ValueError, match="under way"):
            reading.undo()
        with pytest.raises(ValueError, match="under way"):
            batch.begin(NewReply(reading, turn, ReplySettings(4)))
        if len(steps) < 3:
            steps.append(batch.step())
        idle.send("Hi", 2)

    turn = reading.new_turn(TEXT)
    batch.begin(NewReply(replying, replying.new_turn("Hi"), ReplySettings(2)))
    batch.begin(NewReply(reading, turn, ReplySettings(4, prefill_step_size=3, progress=progress)))
    # The reply of the other chat has begun and ended in the meantime, and the chat goes on.
    assert len(replying.turns) == 3
    replying.send("And now?", 2)
    with pytest.raises(ValueError, match="under way"):
        reading.undo()
    while len(batch):
        batch.step()
    alone = told("qwen3_tsw_qo", history)
    assert reading.turns[-1].reply == alone.send(TEXT, 4)
    reading.undo()
    assert len(idle.turns) > 3


@pytest.mark.slow
@pytest.mark.parametrize(("work", "kept"), [("remember", True), ("send", False)])
def test_a_copy_is_made_of_the_chat_before_the_work(work, kept):
    chat, alone = told(), told()
    snapshot, copies = chat.state.snapshot(), []
    WORKS[work](chat, lambda done, total: copies.append(chat.fork_at(snapshot)))
    assert [each.state.cache is not None for each in copies] == [kept] * len(copies)
    for copy in (copies[0], copies[-1]):
        assert copy.messages == alone.messages
        assert copy.send("Go on.", 4) == alone.fork().send("Go on.", 4)
