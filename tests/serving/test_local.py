"""Requests of the HTTP side that are not for replies, such as to change or to list memories."""

import asyncio

import pytest

from mlx_deltamem.serving.exchange import RefusedError
from mlx_deltamem.serving.watching import Event
from tests.serving.conftest import chat_of, plain_chat, wait_until
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import same_memory


def test_a_damaged_memory_can_be_replaced_and_deleted(running, tmp_path, monkeypatch):
    server, folder = running(), tmp_path / "memories"
    run, service = server.run, server.service
    server.ask("My word is jade.", memory="anna")
    [content] = run(service.exported("anna"))
    for name in ("bad", "worse"):
        (folder / f"{name}.safetensors").write_bytes(b"nothing")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mlx_deltamem.sessions.session.write_chat", full)
        with pytest.raises(RefusedError, match="No space left"):
            run(service.imported("bad", content, None))
    assert (folder / "bad.safetensors").read_bytes() == b"nothing"
    [info] = run(service.imported("bad", content, None))
    assert info.turns == 1
    assert same_memory(chat_of(server, "bad"), chat_of(server, "anna"), 0)
    with pytest.raises(RefusedError, match="cannot be used"):
        run(service.delete("worse", "a revision"))
    run(service.delete("worse", None))
    assert {path.name for path in folder.iterdir()} == {".lock", "anna.safetensors", "bad.safetensors"}
    # Between the try to delete and the deletion of a damaged file, another client has replaced it.
    server.memories.delete_damaged("bad")
    with pytest.raises(RefusedError, match="there is no memory bad"):
        run(service.memory("bad"))


def test_an_import_that_cannot_be_saved_changes_nothing(running, monkeypatch):
    server = running()
    run, service = server.run, server.service
    server.ask("My word is jade.", memory="anna")
    server.ask("Hello there.", memory="ben")
    [content], memory = run(service.exported("ben")), chat_of(server, "anna").memory

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_deltamem.sessions.session.write_chat", full)
    with pytest.raises(RefusedError, match="No space left"):
        run(service.imported("anna", content, None))
    assert chat_of(server, "anna").turns[0].messages[0]["content"] == "My word is jade."
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in memory.items())


def test_operations_on_memories(running):
    server = running()
    run, service = server.run, server.service
    [info] = run(service.create("anna", "none", "after"))
    assert (info.history, info.write, info.turns) == ("none", "after", 0)
    with pytest.raises(RefusedError, match="there is a memory anna already"):
        run(service.create("anna", None, None))
    server.ask("My word is jade.", memory="anna")
    [info] = run(service.memory("anna"))
    [turns] = run(service.turns("anna"))
    assert next(message["content"] for message in turns[0].messages) == "My word is jade."
    run(service.fork("anna", "ben", None))
    with pytest.raises(RefusedError, match="revision") as caught:
        run(service.undo("ben", "other"))
    assert caught.value.status == 412
    run(service.undo("ben", None))
    with pytest.raises(RefusedError, match="no turn to take back"):
        run(service.undo("ben", None))
    run(service.remember("ben", ({"role": "user", "content": "A note."},), "all", None))
    [content] = run(service.exported("ben"))
    [copied] = run(service.imported("carl", content, None))
    assert copied.turns == 1
    assert same_memory(chat_of(server, "carl"), chat_of(server, "ben"), 0)
    [replaced] = run(service.imported("anna", content, None))
    assert replaced.turns == 1
    with pytest.raises(RefusedError, match="not a session"):
        run(service.imported("anna", b"rubbish", None))
    run(service.reset("carl", None))
    assert not chat_of(server, "carl").turns
    [changed] = run(service.change("carl", 20, None, None))
    assert changed.history == 20
    [names] = run(service.memories())
    assert [info.name for info in names] == ["anna", "ben", "carl"]
    run(service.delete("carl", None))
    with pytest.raises(RefusedError, match="there is no memory carl"):
        run(service.memory("carl"))
    [heat], [drift] = run(service.heatmap("ben")), run(service.drift("ben"))
    assert len(heat["layers"]) == len(chat_of(server, "ben").memory)
    assert len(drift["turns"]) == 1
    assert "deltamem_reply_tokens_total" in service.metrics()


def test_an_import_is_told_to_those_who_watch_and_brings_its_title(running):
    server = running()
    service = server.service
    server.ask("Hello.", memory="anna")
    server.ask("Hello again.", memory="ben", max_tokens=3)
    other = server.memories.get("ben")
    other.chat.title = "Birds"
    other.save()
    heard: list[Event] = []
    server.memories.get("anna").listeners.append(heard.append)
    [content] = server.run(service.exported("ben"))
    [replaced] = server.run(service.imported("anna", content, None))
    assert heard == [{"event": "turn", "id": "", "revision": replaced.revision}]
    assert chat_of(server, "anna").title == "Birds"
    with pytest.raises(RefusedError, match="not a session"):
        server.run(service.imported("anna", b"rubbish", None))
    assert len(heard) == 1


def test_a_memory_is_watched_token_by_token(running):
    server = running()
    server.ask("Hello.", memory="anna", chat="c")

    async def watch() -> list:
        events, found = server.service.events("anna"), []
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.2)
        text, _ = await server.asking("My word is jade.", memory="anna", chat="d", max_tokens=5)
        found.append(await first)
        while found[-1]["event"] != "turn":
            found.append(await anext(events))
        await events.aclose()
        return [text, found]

    text, found = asyncio.run(watch())
    tokens = [event for event in found if event["event"] == "token"]
    assert "".join(event["text"] for event in tokens) == text[: sum(len(event["text"]) for event in tokens)]
    assert len(tokens) >= 4
    layers = {str(layer) for layer in chat_of(server, "anna").memory}
    for event in tokens:
        assert event["norms"].keys() == layers
        assert all(0 <= value <= 1 for value in event["beta"].values())
    # mlx-lm runs one token ahead, so the first one has no gates.
    assert any(event["beta"].keys() == layers for event in tokens)
    assert tokens[0]["heat"] != tokens[-1]["heat"]
    # The engine forgets the listener between two steps.
    wait_until(lambda: not server.memories.get("anna").listeners)
    chat = plain_chat()
    chat.send("Hello.", 8)
    chat.conversation = "d"
    chat.send("My word is jade.", 5)
    assert same_memory(chat_of(server, "anna"), chat, TOLERANCE_AGAIN)
