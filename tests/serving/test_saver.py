"""When memories are saved (`--durability`)."""

import asyncio

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.serving.exchange import RefusedError
from tests.serving.conftest import Running, wait_until
from tests.sessions.test_session import loaded, same_memory

# Longer than any test takes.
NEVER = 10_000.0
SOON = 0.05


def turns_in(path) -> int:
    return len(ChatSession.load(*loaded(), path).turns)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "memories" / "anna.safetensors"


@pytest.fixture
def full_disk(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_deltamem.sessions.session.write_chat", full)
    return monkeypatch


def is_saved(server: Running) -> bool:
    return server.run(server.service.memory("anna"))[0].saved


def test_each_turn_is_on_disk_when_its_end_is_told(running, file):
    server = running()
    for count in (1, 2):
        _, done = server.ask("Hello.", memory="anna", chat=f"c{count}")
        assert done.saved
        assert turns_in(file) == count
    assert not server.ask("Hello.")[1].saved


def test_turns_wait_for_their_file(running, file):
    server = running(save_after=NEVER)
    _, done = server.ask("Hello.", memory="anna")
    assert done.written and not done.saved
    assert not file.exists()
    assert not is_saved(server) and server.engine.unsaved == 1
    assert "deltamem_unsaved_memories 1.0" in server.service.metrics()
    server.engine.stop(0)
    assert server.engine.unsaved == 0
    assert same_memory(ChatSession.load(*loaded(), file), server.memories.get("anna").chat, 0)


def test_the_end_within_a_long_text_saves_the_turns_before_it(running, file):
    server = running(save_after=NEVER)
    server.ask("Hello.", memory="anna")

    async def end() -> None:
        while not server.memories.get("anna").is_busy:
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().run_in_executor(None, server.engine.stop, 0)

    async def remembering() -> None:
        with pytest.raises(RefusedError, match="the server is ending"):
            await server.service.remember(
                "anna", ({"role": "user", "content": "A note of some words. " * 120},), "all", None
            )

    server.run(remembering(), end())
    assert turns_in(file) == 1 and server.engine.unsaved == 0


def test_an_idle_server_saves_when_it_is_time(running, file):
    server = running(save_after=SOON)
    server.ask("Hello.", memory="anna")
    wait_until(file.exists)
    wait_until(lambda: is_saved(server))
    assert turns_in(file) == 1 and server.engine.unsaved == 0


def test_a_memory_that_is_never_free_is_saved_too(running, file):
    server, saved = running(save_after=SOON), []

    async def always_two() -> None:
        asking = [asyncio.create_task(server.asking("Hello.", memory="anna", chat=f"{place}")) for place in range(2)]
        for place in range(2, 200):
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            saved.extend(task.result()[1].saved for task in done)
            asking = [each for each in asking if each not in done]
            if any(saved):
                break
            asking += [asyncio.create_task(server.asking("Hello.", memory="anna", chat=f"{place}")) for _ in done]
        await asyncio.gather(*asking)

    asyncio.run(always_two())
    assert any(saved) and file.exists()


@pytest.mark.parametrize("change", ["undo", "reset", "remember", "change", "fork", "exported"])
def test_a_change_is_saved_before_its_answer_with_the_turns_before_it(running, file, change):
    server = running(save_after=NEVER)
    run, service = server.run, server.service
    for index in range(2):
        server.ask("Hello.", memory="anna", chat=f"c{index}")
    changes = {
        "undo": lambda: service.undo("anna", None),
        "reset": lambda: service.reset("anna", None),
        "remember": lambda: service.remember("anna", ({"role": "user", "content": "A note."},), "all", None),
        "change": lambda: service.change("anna", None, "none", None),
        "fork": lambda: service.fork("anna", "ben", None),
        "exported": lambda: service.exported("anna"),
    }
    run(changes[change]())
    if change == "fork":
        assert turns_in(file.with_stem("ben")) == 2
        return
    assert turns_in(file) == {"undo": 1, "reset": 0, "remember": 3}.get(change, 2)
    assert is_saved(server)


def test_a_memory_that_is_not_saved_stays_in_ram(running):
    server = running(save_after=NEVER, most_bytes=1)
    for name in ("anna", "ben", "carl"):
        server.ask("Hello.", memory=name)
    assert {memory.name for memory in server.memories.loaded()} == {"anna", "ben", "carl"}
    [turns] = server.run(server.service.turns("anna"))
    assert len(turns) == 1


def test_a_deleted_memory_does_not_come_back(running, file):
    server = running(save_after=SOON)
    server.ask("Hello.", memory="anna")
    server.run(server.service.delete("anna", None))
    server.ask("Hello.", memory="ben")
    wait_until(file.with_stem("ben").exists)
    server.engine.stop(0)
    assert not file.exists()


def test_a_full_disk_is_told_with_the_next_turn_and_nothing_is_lost(running, file, full_disk):
    # It is not tried again by itself while the test goes on.
    full_disk.setattr("mlx_deltamem.serving.saver._PAUSE", 3600.0)
    server = running(save_after=SOON)
    server.ask("Hello.", memory="anna")
    # It could not be saved when it was time: the next turn is not taken.
    wait_until(lambda: server.engine._saver._paused_until > 0)
    with pytest.raises(RefusedError, match="No space left") as caught:
        server.ask("Again.", memory="anna", chat="new")
    assert caught.value.status == 507
    assert server.engine.unsaved == 1
    full_disk.undo()
    _, done = server.ask("Again.", memory="anna", chat="new")
    assert done.saved and turns_in(file) == 2


def test_a_save_that_failed_is_tried_again(running, file, full_disk):
    server = running(save_after=SOON)
    server.ask("Hello.", memory="anna")
    wait_until(lambda: server.engine._saver._paused_until > 0)
    full_disk.undo()
    wait_until(file.exists)
    assert turns_in(file) == 1


def test_the_end_says_how_many_memories_are_not_saved(running, full_disk):
    server = running(save_after=NEVER)
    for name in ("anna", "ben"):
        server.ask("Hello.", memory=name)
    server.engine.stop(0)
    assert server.engine.unsaved == 2
