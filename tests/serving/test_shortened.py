"""Turns that do not fit into the model's window beside the whole text of their chat."""

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.serving.exchange import RefusedError
from mlx_deltamem.serving.shortened import shortened_note
from mlx_deltamem.sessions.text.segments import start_length
from tests.serving.conftest import READ, chat_of
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import loaded, new_chat, same_memory
from tests.sessions.test_tools import CALL, QUESTION, chat_with_tools, scripted

SYSTEM = "Be brief."
# Of some 60 and 150 tokens.
NOTED, LONG = "Noted. " * 20, "Another word. " * 40


def note_of(tokens: int) -> str:
    return f"the chat is longer than the model's window; the last {tokens} tokens are seen"


NO_TEXT_SEEN = "the chat is longer than the model's window; none of its earlier text is seen"


def told() -> ChatSession:
    chat = new_chat(system=SYSTEM)
    chat.read_exchange("My word is jade.", NOTED)
    return chat


def set_window(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(loaded()[0].args, "max_position_embeddings", tokens)


@pytest.mark.parametrize("room", [0, 7, 16, 40])
@pytest.mark.parametrize("history", ["full", 50])
def test_a_message_longer_than_half_the_window_sees_what_fits_beside_it(running, monkeypatch, room, history):
    server, chat = running(history=history), told()
    start, opening = start_length(chat.turns[0].opening), len(chat.new_turn(LONG).opening.ids)
    window = start + opening + room
    assert opening > window // 2 and chat.turns[0].length > room + start
    set_window(monkeypatch, window)
    # The largest half of a half ... of the window, or of the history, that fits.
    halves = [(window if history == "full" else history) >> times for times in range(1, 12)]
    shown = next((tokens for tokens in halves if 0 < tokens <= room), 0)
    _, done = server.ask("My word is jade.", NOTED, LONG, memory="anna", system=SYSTEM, max_tokens=2)
    assert done.note == (note_of(shown) if shown else NO_TEXT_SEEN)
    assert done.prompt_tokens == start + shown + opening
    kept = chat_of(server, "anna")
    # The next reply may see more again.
    assert (len(kept.turns), kept.history) == (2, history)
    monkeypatch.undo()
    chat.history = shown or "none"
    chat.send(LONG, 2)
    assert same_memory(kept, chat, TOLERANCE_AGAIN)


def test_each_exchange_and_the_message_see_what_fits_beside_them(running, monkeypatch):
    server, chat = running(), told()
    chat.read_exchange(LONG, "It is.")
    start, second = start_length(chat.turns[0].opening), chat.turns[1].length
    window = start + second + 20
    set_window(monkeypatch, window)
    _, done = server.ask("My word is jade.", NOTED, LONG, "It is.", "And what is it?", memory="anna", system=SYSTEM)
    assert done.note == note_of(window // 2)
    assert done.prompt_tokens == start + window // 2 + len(chat_of(server, "anna").turns[2].opening.ids)
    monkeypatch.undo()
    shown = next(window >> times for times in range(1, 12) if window >> times <= 20)
    chat = told()
    chat.history = shown
    chat.read_exchange(LONG, "It is.")
    chat.history = window // 2
    chat.read_exchange("And what is it?", chat_of(server, "anna").turns[-1].reply)
    assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)


def test_a_message_longer_than_the_window_is_refused_and_changes_nothing(running, monkeypatch):
    server = running()
    reply, _ = server.ask("My word is jade.", memory="anna", system=SYSTEM)
    before = chat_of(server, "anna").memory
    opening = len(chat_of(server, "anna").new_turn(LONG).opening.ids)
    # Alone it would fit into the second one, without the visible start.
    for window in (opening - 1, opening):
        set_window(monkeypatch, window)
        with pytest.raises(RefusedError, match="the model's window is") as caught:
            server.ask("My word is jade.", reply, LONG, memory="anna", system=SYSTEM)
        assert caught.value.status == 400
    chat = chat_of(server, "anna")
    assert (len(chat.turns), chat.history) == (1, "full")
    assert all((chat.memory[layer] == state).all() for layer, state in before.items())


def test_each_reply_that_only_reads_says_that_less_is_seen(running, monkeypatch):
    server = running()
    server.ask("Hello.", memory="anna")
    said = ["My word is jade.", NOTED]
    window = told().turns[0].length + 20
    set_window(monkeypatch, window)
    for text in ("And what is it?", "Is it so?"):
        reply, done = server.ask(*said, text, memory="anna", system=SYSTEM, mode=READ)
        assert done.note == note_of(window // 2)
        said += [text, reply]


def test_a_long_chat_that_only_reads_goes_on_when_the_memory_has_changed(running, monkeypatch):
    server = running()
    server.ask("Hello.", memory="anna")
    said = ["My word is jade.", NOTED, LONG]
    start, opening = start_length(told().turns[0].opening), len(told().new_turn(LONG).opening.ids)
    window = start + opening + 20
    set_window(monkeypatch, window)
    reply, _ = server.ask(*said, memory="anna", mode=READ, system=SYSTEM, max_tokens=2)
    server.ask("Good day.", memory="anna")
    # The earlier turns run again, and read the memory of now.
    _, done = server.ask(*said, reply, "Is it?", memory="anna", mode=READ, system=SYSTEM)
    assert done.note == note_of(window // 2)
    assert len(server.memories.get("anna").readers._readers[0].own) == 3


def test_the_calls_that_results_answer_count_as_seen():
    chat = chat_with_tools()
    chat.send(QUESTION, **scripted(chat, f"Let me look.{CALL}"))
    chat.history = 1
    turn = chat.new_turn({"role": "tool", "content": "21 degrees"})
    seen = chat.turns[0].length - start_length(chat.turns[0].opening)
    assert shortened_note(chat, "full", turn) == note_of(seen)
    assert shortened_note(chat, 1, turn) is None
