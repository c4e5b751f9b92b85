"""The chats of one terminal: which file each has, and what is in no file."""

from pathlib import Path

import pytest

from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.kept import KeptChats
from mlx_deltamem.sessions.foreign.folder import write_reference_session
from mlx_deltamem.sessions.foreign.states import write_sidecar_states
from tests.conftest import adapter, backbone


@pytest.fixture(scope="module")
def model():
    return load(backbone(), adapter=adapter())


@pytest.fixture(scope="module")
def other(model) -> ChatSession:
    """Another chat, with a turn and a title."""
    chat = ChatSession(*model, system="Be brief.", history="none", write="user")
    chat.send("My name is Anna.", 2)
    chat.title = "Anna"
    return chat


def say(copies: Copies) -> None:
    copies.chat.send("Hello", 2)
    copies.changed()


def unsaved(copies: Copies) -> list[str]:
    return [str(error) for error in copies.save_all(lambda _: None)]


@pytest.mark.parametrize("is_there", [False, True])
def test_the_file_of_an_empty_chat_goes_on_with_the_next(model, other, tmp_path, is_there):
    file = tmp_path / "m.safetensors"
    if is_there:
        ChatSession(*model).save(file)
    copies = Copies(ChatSession.load(*model, file) if is_there else ChatSession(*model), file, save_kv=False)
    assert copies.begin(other.fork()) is None
    assert (len(copies), copies.file) == (1, file)
    say(copies)
    assert unsaved(copies) == []
    found = ChatSession.load(*model, file)
    assert found.messages == copies.chat.messages
    assert (len(found.turns), found.title, found.system, found.write) == (2, "Anna", "Be brief.", "user")


def test_a_chat_that_has_turns_keeps_its_file(model, other, tmp_path):
    file = tmp_path / "m.safetensors"
    copies = Copies(ChatSession(*model), file, save_kv=False)
    say(copies)
    before = file.read_bytes()
    copies.begin(other.fork())
    assert copies.file is None
    assert unsaved(copies) == []
    say(copies)
    assert unsaved(copies) == ["this chat is in no file (turns: 2); /save FILE saves it"]
    copies.fork()
    assert unsaved(copies) == ["copy 1 is in no file (turns: 2); /fork 1 and then /save FILE save it"]
    copies.number = 1
    assert unsaved(copies) == ["copy 1 is in no file (turns: 2); /save FILE saves it"]
    copies.save(tmp_path / "n.safetensors")
    assert unsaved(copies) == []
    assert file.read_bytes() == before


def test_a_set_memory_is_not_nothing(model, tmp_path):
    copies = Copies(ChatSession(*model, memory=ChatSession(*model).memory), tmp_path / "m.safetensors", save_kv=False)
    assert copies.begin(ChatSession(*model)) == 1
    assert copies.file is None


def test_a_user_who_wants_no_file_is_not_warned(model, other):
    copies = Copies(ChatSession(*model), None, save_kv=False)
    copies.begin(other.fork())
    say(copies)
    assert unsaved(copies) == []


def test_kept_chats_have_a_file_each(model, other, tmp_path):
    kept = KeptChats(tmp_path)
    first = kept.new_file()
    copies = Copies(ChatSession(*model), first, save_kv=False, kept=kept)
    say(copies)
    copies.begin(other.fork())
    say(copies)
    assert unsaved(copies) == []
    assert {first, copies.file} == set(tmp_path.iterdir())


@pytest.fixture(params=["folder", "states.npz"])
def foreign(request, other, tmp_path) -> Path:
    """The other chat, as other implementations save it."""
    path = tmp_path / request.param
    if path.suffix:
        write_sidecar_states(path, other.memory)
    else:
        write_reference_session(path, other.messages, other.memory)
    return path


def content(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in (path, *path.glob("*")) if file.is_file()}


def test_a_chat_of_another_implementation_is_kept_in_a_new_file(model, foreign, tmp_path):
    before = content(foreign)
    kept = KeptChats(tmp_path / "chats")
    copies = Copies(ChatSession(*model), kept.new_file(), save_kv=False, kept=kept)
    assert copies.load(foreign) is None
    assert unsaved(copies) == []
    assert list(kept.folder.iterdir()) == [copies.file]
    say(copies)
    assert unsaved(copies) == []
    assert ChatSession.load(*model, copies.file).messages == copies.chat.messages
    assert content(foreign) == before


@pytest.mark.parametrize("session", [None, "m.safetensors"])
def test_a_chat_of_another_implementation_has_no_file_where_none_is_kept(model, foreign, tmp_path, session):
    before = content(foreign)
    copies = Copies(ChatSession(*model), session and tmp_path / session, save_kv=False)
    assert copies.load(foreign) is None
    assert (copies.file, unsaved(copies)) == (None, [])
    say(copies)
    assert [error.endswith("/save FILE saves it") for error in unsaved(copies)] == ([True] if session else [])
    copies.save(tmp_path / "own.safetensors")
    assert unsaved(copies) == []
    assert content(foreign) == before


def test_a_chat_of_another_implementation_that_has_not_changed_gives_way(model, foreign, tmp_path):
    file = tmp_path / "own.safetensors"
    ChatSession(*model).save(file)
    copies = Copies(ChatSession(*model), None, save_kv=False)
    copies.load(foreign)
    assert copies.load(file) is None
    copies.load(foreign)
    say(copies)
    assert copies.load(file) == 1
