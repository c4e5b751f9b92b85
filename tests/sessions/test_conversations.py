"""Several conversations with one memory: what the model sees, and what stays exact."""

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.turns.turn import segments_of
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import HISTORIES, loaded, new_chat, same_memory

every_history = pytest.mark.parametrize("history", HISTORIES)


def said_in(chat: ChatSession, *turns: tuple[str, str]) -> ChatSession:
    for conversation, text in turns:
        chat.conversation = conversation
        chat.send(text, 6)
    return chat


def with_the_memory_of(chat: ChatSession, history: str | int) -> ChatSession:
    """A new chat that begins with the memory of another."""
    return ChatSession(*loaded(), system="Be brief.", history=history, memory=chat.memory)


@every_history
def test_a_conversation_sees_its_own_text_and_the_memory_of_all(history):
    chat = said_in(new_chat(history=history), ("a", "My word is jade."))
    other = with_the_memory_of(chat, history)
    said_in(chat, ("b", "Hello there."))
    other.send("Hello there.", 6)
    assert chat.messages == other.messages
    assert chat.segments == other.segments
    assert same_memory(chat, other, 0)
    # The first conversation goes on with the memory that the second has written.
    alone = said_in(new_chat(history=history), ("", "My word is jade."))
    alone.memory = chat.memory
    said_in(chat, ("a", "What is it?"))
    alone.send("What is it?", 6)
    assert chat.messages == alone.messages
    assert same_memory(chat, alone, TOLERANCE_AGAIN)


@every_history
def test_turns_of_any_conversation_are_taken_back_exactly(history):
    chat = said_in(new_chat(history=history), ("a", "My word is jade."), ("b", "Hello there."))
    memory, messages = chat.memory, chat.messages
    said_in(chat, ("a", "And mine is oak."))
    assert chat.undo() == "And mine is oak."
    chat.conversation = "b"
    assert chat.messages == messages
    assert all((chat.memory[layer] == state).all() for layer, state in memory.items())
    said_in(chat, ("b", "How are you?"))
    once = chat.messages
    chat.undo()
    said_in(chat, ("b", "How are you?"))
    assert chat.messages == once


@every_history
@pytest.mark.parametrize("early", [False, True])
def test_another_reply_in_another_conversation_does_not_change_the_one_that_goes_on(history, early, tmp_path):
    chat = said_in(new_chat(history=history), ("a", "My word is jade."), ("b", "Hello there."))
    chat.save(tmp_path / "chat.safetensors")
    # A chat from a file has to read the message again.
    for each in (chat, ChatSession.load(*loaded(), tmp_path / "chat.safetensors")):
        expected = said_in(each.fork(), ("a", "What is it?"))
        each.conversation = "a"
        for _ in each.stream_regenerate(6):
            if early:
                break
        if not early:
            assert each.conversation == "a"
            each.send("What is it?", 6)
            assert each.messages == expected.messages
            assert same_memory(each, expected, TOLERANCE_AGAIN)
        assert each.conversation == "a"


@every_history
def test_a_message_of_an_earlier_conversation_is_edited(history):
    turns = ("a", "My word is oak."), ("b", "Hello there."), ("a", "What is it?")
    expected = said_in(new_chat(history=history), ("a", "My word is jade."), *turns[1:])
    chat = said_in(new_chat(history=history), *turns)
    chat.edit(1, "My word is jade.")
    assert chat.messages[1]["content"] == "My word is jade."
    assert [turn.opening.ids for turn in chat.turns] == [turn.opening.ids for turn in expected.turns]
    assert chat.conversation == "a"
    # The replies stay as they were; with the same replies the memory is the same.
    if [turn.reply for turn in chat.turns] == [turn.reply for turn in expected.turns]:
        assert same_memory(chat, expected, TOLERANCE_AGAIN)


@every_history
@pytest.mark.parametrize("save_kv", [False, True])
def test_saved_and_loaded(history, save_kv, tmp_path):
    chat = said_in(
        new_chat(history=history),
        ("a", "My word is jade."),
        ("b", "Hello there."),
        ("a", "How are you?"),
        ("b", "Bye."),
    )
    chat.save(tmp_path / "chat.safetensors", save_kv)
    again = ChatSession.load(*loaded(), tmp_path / "chat.safetensors")
    assert again.conversation == "b"
    assert [turn.conversation for turn in again.turns] == ["a", "b", "a", "b"]
    for conversation in ("b", "a"):
        for each in (chat, again):
            said_in(each, (conversation, "What is it?"))
        assert again.messages == chat.messages
        assert same_memory(again, chat, TOLERANCE_AGAIN)
    while chat.turns:
        assert again.undo() == chat.undo()
        assert same_memory(again, chat, TOLERANCE_AGAIN)


def test_one_conversation_is_stored_as_before(tmp_path):
    chat = said_in(new_chat(), ("", "Hello."))
    chat.save(tmp_path / "one.safetensors")
    assert b'\\"format_version\\": 2' in (tmp_path / "one.safetensors").read_bytes()
    said_in(chat, ("b", "Hello.")).save(tmp_path / "two.safetensors")
    assert b'\\"format_version\\": 3' in (tmp_path / "two.safetensors").read_bytes()


@every_history
def test_another_visible_start_is_read_and_nothing_is_written_again(history):
    chat = said_in(new_chat(history=history), ("a", "My word is jade."), ("a", "Hello there."))
    memory = chat.memory
    template = ChatTemplate(chat.tokenizer)
    chat._state.set_start("You are a pirate. Say arr.", template)
    assert all((chat.memory[layer] == state).all() for layer, state in memory.items())
    fresh = new_chat(history=history, system="You are a pirate. Say arr.")
    expected = fresh._state.text.opening([], [{"role": "user", "content": "x"}]).ids
    length = len(expected) - len(new_chat(system=None)._state.text.opening([], [{"role": "user", "content": "x"}]).ids)
    assert length > 0
    forked = chat.fork()
    said_in(chat, ("a", "What is it?"))
    if history == "full":
        own = sum(turn.length for turn in chat.turns)
        assert chat._state.cache[0].offset == own + len(chat._state.starts["a"]) - _start(chat)
    chat.undo()
    assert all((chat.memory[layer] == state).all() for layer, state in memory.items())
    # Back to the prompt that the conversation began with.
    forked._state.set_start("Be brief.", template)
    assert not forked._state.starts
    plain = said_in(new_chat(history=history), ("a", "My word is jade."), ("a", "Hello there."), ("a", "What is it?"))
    said_in(forked, ("a", "What is it?"))
    assert forked.messages == plain.messages
    assert same_memory(forked, plain, TOLERANCE_AGAIN)


def _start(chat: ChatSession) -> int:
    opening = chat.turns[0].opening
    return next(place for place, message in enumerate(opening.message_ids) if message >= 0)


def test_the_name_must_be_text():
    chat = new_chat()
    for name in (None, 3, "\ud800"):
        with pytest.raises(ValueError, match=r"the name of the conversation is .*; expected text"):
            chat.conversation = name


def test_tokens_of_one_conversation():
    chat = said_in(new_chat(), ("a", "One."), ("b", "Two."))
    assert segments_of(chat.turns).ids == segments_of(chat.turns, "a").ids + segments_of(chat.turns, "b").ids
