"""The memories of a server: their files, and those in RAM."""

from collections.abc import Mapping

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.serving.exchange import RefusedError
from tests.serving.conftest import READ, chat_of
from tests.sessions.test_sequences import TOLERANCE as TOLERANCE_AGAIN
from tests.sessions.test_session import loaded, same_memory


def test_the_file_is_a_session(running, tmp_path):
    server = running()
    reply, _ = server.ask("My word is jade.", memory="anna")
    chat = ChatSession.load(*loaded(), tmp_path / "memories" / "anna.safetensors")
    assert chat.messages[1]["content"].strip() == reply.strip()
    assert same_memory(chat, chat_of(server, "anna"), 0)
    # The other way round.
    chat.undo()
    chat.send("Mine is oak.", 4)
    chat.save(tmp_path / "memories" / "ben.safetensors")
    server.ask("Hello.", memory="ben")
    chat.conversation = chat_of(server, "ben").conversation
    chat.send("Hello.", 8)
    assert same_memory(chat, chat_of(server, "ben"), TOLERANCE_AGAIN)


def test_a_memory_that_another_program_has_saved_is_read_again(running, tmp_path):
    server, file = running(), tmp_path / "memories" / "anna.safetensors"
    server.ask("My word is jade.", memory="anna")
    # Who watches the memory goes on watching it.
    heard: list[Mapping[str, object]] = []
    server.memories.get("anna").listeners.append(heard.append)
    # A request that only reads makes a memory, which has no file.
    server.ask("Hello.", memory="ben", mode=READ)
    chat = ChatSession.load(*loaded(), file)
    chat.send("Mine is oak.", 4)
    chat.save(file)
    file.with_name("ben.safetensors").write_bytes(file.read_bytes())
    for name in ("anna", "ben"):
        _, done = server.ask("Hello.", memory=name)
        said = [turn.messages[0]["content"] for turn in chat_of(server, name).turns]
        assert (done.saved, said) == (True, ["My word is jade.", "Mine is oak.", "Hello."])
    assert [event["event"] for event in heard if event["event"] == "turn"] == ["turn"] * 2


def test_a_memory_whose_file_is_gone_is_saved_again(running, tmp_path):
    server, file = running(), tmp_path / "memories" / "anna.safetensors"
    server.ask("My word is jade.", memory="anna")
    file.unlink()
    server.ask("Hello.", memory="anna")
    assert len(ChatSession.load(*loaded(), file).turns) == 2


def test_only_names_that_can_be_used_are_listed(running, tmp_path):
    server = running()
    server.ask("Hello.", memory="anna")
    for name in ("Anna B", ".import-1", "bad"):
        (tmp_path / "memories" / f"{name}.safetensors").write_bytes(b"nothing")
    # The names are those of the files, which are not read.
    assert server.run(server.service.memory_names())[0] == ["anna", "bad"]
    assert [info.name for info in server.run(server.service.memories())[0]] == ["anna"]


def test_what_a_killed_server_has_left_of_an_import_is_deleted(running, tmp_path):
    left = tmp_path / "memories" / ".import-0123456789abcdef.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half of a memory")
    running()
    assert not left.exists()


def test_a_damaged_file_is_back_after_an_import_that_was_killed(running, tmp_path):
    folder = tmp_path / "memories"
    folder.mkdir()
    # One import was killed before its memory was saved, and one after that.
    for file in (".aside-anna", ".aside-bob", "bob"):
        (folder / f"{file}.safetensors").write_bytes(file.encode())
    running()
    left = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    left |= {file.name: file.read_bytes() for file in folder.glob(".aside-*")}
    assert left == {"anna.safetensors": b".aside-anna", "bob.safetensors": b"bob"}


def test_a_damaged_file_is_refused_and_the_others_go_on(running, tmp_path):
    server = running()
    (tmp_path / "memories" / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(RefusedError, match=r"the memory cannot be used: bad\.safetensors") as caught:
        server.ask("Hello.", memory="bad")
    assert caught.value.status == 422
    assert [info.name for info in server.run(server.service.memories())[0]] == []
    server.ask("Hello.", memory="good")
    assert [info.name for info in server.run(server.service.memories())[0]] == ["good"]


def test_a_link_to_itself_is_refused_and_the_others_go_on(running, tmp_path):
    server = running()
    loop = tmp_path / "memories" / "loop.safetensors"
    loop.symlink_to(loop)
    with pytest.raises(RefusedError, match=r"loop\.safetensors is a link that leads to itself") as caught:
        server.ask("Hello.", memory="loop")
    assert caught.value.status == 507 and str(tmp_path) not in str(caught.value)
    server.ask("Hello.", memory="good")


def test_a_disk_may_not_tell_names_apart(running, tmp_path, monkeypatch):
    server = running()
    server.ask("Hello.", memory="anna")
    # This disk does.
    server.ask("Hello.", memory="Anna")
    server.run(server.service.delete("Anna", None))
    monkeypatch.setattr(server.memories._folder, "_ignores_case", True)
    for action in (server.asking("Hello.", memory="Anna"), server.service.create("ANNA", None, None)):
        with pytest.raises(RefusedError, match="there is a memory anna, and this disk takes A") as caught:
            server.run(action)
        assert caught.value.status == 409
    server.ask("Hello.", memory="anna")
    server.ask("Hello.", memory="Hanna")


def test_memories_leave_ram_and_come_back(running):
    server = running(most_bytes=1)
    for name in ("anna", "ben", "carl", "anna", "ben"):
        server.ask(f"Hello {name}.", memory=name, chat=name)
    assert len(server.memories.loaded()) <= 2
    # The second question of a chat of the same id takes the first one's place.
    assert [len(chat_of(server, name).turns) for name in ("anna", "ben", "carl")] == [1, 1, 1]


def test_the_texts_of_all_chats_of_a_memory_are_counted(running):
    server = running()
    server.ask("Hello there.", memory="anna", chat="a")
    memory = server.memories.get("anna")
    text, one = memory.chat.state.kept_bytes, memory.counted
    assert one == memory.nbytes > text > 0
    server.ask("Hello again.", memory="anna", chat="b")
    new = sum(entry.nbytes for entry in memory.chat.state.filled_cache)
    assert memory.chat.state.kept_bytes == text + new
    assert memory.counted == memory.nbytes >= one + new


def test_one_server_for_a_folder(running, tmp_path):
    running()
    with pytest.raises(ValueError, match="another server uses"):
        running()
