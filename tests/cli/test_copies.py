"""The chats of one terminal: which file each has, and what is in no file."""

import pytest

from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.kept import KeptChats
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
