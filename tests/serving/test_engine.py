"""The engine's thread: other requests go on while a long text is remembered, and what was said is saved at the end."""

import asyncio

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.ranks.world import World
from mlx_deltamem.serving.exchange import Done, RefusedError
from tests.serving.conftest import READ, chat_of, plain_chat, wait_until
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import loaded, same_memory


def test_the_end_saves_what_was_said(running, tmp_path):
    server = running()

    async def leave() -> list:
        asking = asyncio.create_task(server.asking("Hello there.", memory="anna", max_tokens=100_000))
        while not server.engine.active:
            await asyncio.sleep(0.01)
        await asyncio.get_running_loop().run_in_executor(None, server.engine.stop, 0)
        return [await asking]

    [(_text, done)] = asyncio.run(leave())
    assert isinstance(done, Done)
    again = ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors")
    assert again.turns[0].reply_ids
    with pytest.raises(RefusedError, match="the server is ending"):
        server.ask("Hello.")


def test_a_reply_that_ends_within_what_the_client_gave_has_no_tokens(running):
    server = running()

    async def leave() -> Done | None:
        asking = asyncio.create_task(server.asking("Hello there.", "word " * 600, memory="anna", max_tokens=9))
        while not server.engine.active:
            await asyncio.sleep(0.01)
        await asyncio.get_running_loop().run_in_executor(None, server.engine.stop, 0)
        return (await asking)[1]

    done = asyncio.run(leave())
    assert isinstance(done, Done)
    assert (done.finish_reason, done.reply_tokens) == ("length", 0)


LONG = ({"role": "user", "content": "A note of some words. " * 120},)


@pytest.mark.slow
def test_other_requests_begin_and_end_while_a_long_text_is_remembered(running, monkeypatch):
    server = running()
    ended: list[str] = []

    def remember(chat: ChatSession, *arguments: object, **options: object) -> None:
        remember_before(chat, *arguments, **options)
        ended.append("remembered")

    remember_before = ChatSession.remember
    monkeypatch.setattr(ChatSession, "remember", remember)

    async def asking(*said: str, **options: object) -> None:
        while not server.memories.get("anna", make=True).is_busy:
            await asyncio.sleep(0.001)
        _, done = await server.asking(*said, **options)
        ended.append(options["memory"])
        assert (done.revision == 0) == (options.get("mode") is READ)

    before, _ = plain_chat(), server.ask("My word is jade.", memory="anna")
    [info, *_] = server.run(
        server.service.remember("anna", LONG, "all", None),
        asking("Hello.", memory="ben", max_tokens=2),
        # It reads the memory from before the text.
        server.asking("What is it?", memory="anna", mode=READ, max_tokens=2),
        server.asking("What is it?", memory="anna", max_tokens=2),
    )
    assert ended == ["ben", "remembered"]
    assert info.turns == 2
    assert [turn.remembered for turn in chat_of(server, "anna").turns] == [False, True, False]
    before.send("My word is jade.", 8)
    before.remember(list(LONG))
    before.conversation = "other"
    before.send("What is it?", 2)
    assert same_memory(chat_of(server, "anna"), before, TOLERANCE_AGAIN)


def test_a_server_that_ends_does_not_finish_a_long_text(running):
    server = running()
    server.ask("My word is jade.", memory="anna")
    memory = chat_of(server, "anna").memory

    async def end() -> None:
        while not server.memories.get("anna").is_busy:
            await asyncio.sleep(0.001)
        server.engine.cut()

    async def remembering() -> None:
        with pytest.raises(RefusedError, match="the server is ending"):
            await server.service.remember("anna", LONG, "all", None)

    server.run(remembering(), end())
    assert len(chat_of(server, "anna").turns) == 1
    assert all((chat_of(server, "anna").memory[layer] == state).all() for layer, state in memory.items())


def test_an_idle_engine_has_not_stalled(running):
    server = running()
    for chat in ("c1", "c2"):
        # Nothing came for a long time.
        server.engine._progress_at -= 1000.0
        assert server.engine.stalled_seconds == 0.0
        _, done = server.ask("Hello.", memory="anna", chat=chat, max_tokens=2)
        assert isinstance(done, Done)
        wait_until(lambda: server.engine.stalled_seconds == 0.0)


def test_an_error_in_one_of_several_ranks_ends_its_engine(running, monkeypatch):
    """The others wait for it in MLX: to run the replies again, each alone, it would need them."""
    server = running()

    def fail() -> None:
        raise RuntimeError("no memory")

    async def ask() -> None:
        asking = asyncio.create_task(server.asking("Hello.", memory="anna"))
        with pytest.raises(RuntimeError, match="no memory"):
            await asyncio.get_running_loop().run_in_executor(None, server.engine.wait)
        asking.cancel()

    monkeypatch.setattr(server.engine._replies, "_world", World(0, 2))
    monkeypatch.setattr(server.engine._replies._batch, "step", fail)
    asyncio.run(ask())
    assert not server.engine.inbox.is_accepting
