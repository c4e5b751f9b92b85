"""A turn is kept in its memory once and exactly, or not at all."""

import asyncio
import json
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.serving.exchange import RefusedError
from tests.serving.conftest import chat_of, every_history, plain_chat
from tests.sessions.test_session import loaded, same_memory


@every_history
def test_a_message_is_written_exactly_once(running, history):
    server, chat = running(history=history), plain_chat(history)
    said: list[str] = []
    for text in ("My word is jade.", "Hello there.", "What is it?"):
        reply, done = server.ask(*said, text, memory="anna")
        assert reply == "".join(response.text for response in chat.stream(text, 8))
        said += [text, reply]
        assert done.written
        assert (done.memory, done.revision) == ("anna", len(chat.turns))
        if history == "full":
            assert done.prompt_tokens == sum(turn.length for turn in chat.turns[:-1]) + len(chat.turns[-1].opening.ids)
            assert done.read_tokens == len(chat.turns[-1].opening.ids)
        assert same_memory(chat_of(server, "anna"), chat, 0)


def test_errors_change_nothing(running):
    server = running()
    server.ask("Hello.", memory="anna")
    memory = chat_of(server, "anna").memory
    cases: list[tuple[list, dict, int]] = [
        ([], {"text": ""}, 400),
        ([{"role": "assistant", "content": "a"}], {}, 400),
        (["word " * 20_000], {}, 400),
    ]
    for said, options, status in cases:
        with pytest.raises(RefusedError) as caught:
            server.ask(*said, memory="anna", **options)
        assert caught.value.status == status
    with pytest.raises(RefusedError, match="brings a chat template"):
        server.ask("Hello.", memory="anna", template_options={"chat_template": "{{ 1 }}"})
    with pytest.raises(RefusedError, match="no turn"):
        server.ask("Hello.", memory="anna", continues="nothing")
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in memory.items())
    _, done = server.ask("Hello again.", memory="anna", chat="new")
    assert done.revision == 2


def test_tools_that_a_file_could_not_hold_are_refused(running, tmp_path):
    server = running()
    deep = json.loads('{"a":' * 97 + "1" + "}" * 97)
    _, done = server.ask("Hello.", memory="anna", tools=(deep,))
    assert done.saved
    with pytest.raises(RefusedError, match="nested too deeply") as caught:
        server.ask("Hello again.", memory="anna", tools=({"a": deep},))
    assert caught.value.status == 400
    again = ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors")
    assert again.messages == chat_of(server, "anna").messages and len(again.turns) == 1


def test_a_file_that_another_program_saved_is_a_conflict(running, tmp_path):
    server = running()
    server.ask("Hello.", memory="anna")
    path = tmp_path / "memories" / "anna.safetensors"
    other, anna = ChatSession.load(*loaded(), path), server.memories.get("anna")
    other.send("Mine.", 4)

    async def save_within_a_turn() -> None:
        while not anna.is_busy:
            await asyncio.sleep(0.001)
        other.save(path)

    with pytest.raises(RefusedError, match="saved by someone else") as caught:
        server.run(server.asking("Hello again.", memory="anna", max_tokens=200), save_within_a_turn())
    assert caught.value.status == 409
    # The turns of the other program are there, and the server goes on with them.
    server.ask("And now?", memory="anna")
    said = [turn.messages[0]["content"] for turn in chat_of(server, "anna").turns]
    assert said == ["Hello.", "Mine.", "And now?"]
    _, done = server.ask("Hello.", memory="ben")
    assert done.written


def test_a_disk_that_is_full(running, monkeypatch, tmp_path):
    server = running()
    server.ask("Hello.", memory="anna")

    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("mlx_deltamem.sessions.session.write_chat", full)
    with pytest.raises(RefusedError, match="No space left") as caught:
        server.ask("Hello again.", memory="anna")
    assert caught.value.status == 507
    assert str(tmp_path) not in str(caught.value)
    assert len(chat_of(server, "anna").turns) == 1
    monkeypatch.undo()
    _, done = server.ask("Hello again.", memory="anna")
    assert done.revision == 2
