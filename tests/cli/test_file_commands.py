"""The commands of the terminal chat about files, without a terminal."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.file_commands import FileCommands
from mlx_deltamem.cli.kept import KeptChats
from mlx_deltamem.sessions.foreign.states import write_sidecar_states
from mlx_deltamem.show.console import Console
from tests.conftest import adapter, backbone

NO_FILE = "this chat has no file yet (/save FILE)"


class Commands(FileCommands):
    """The commands of a chat in a folder.

    Attributes:
        said: The lines that were printed.
    """

    def __init__(self, copies: Copies):
        self.copies = copies
        self.said: list[str] = []
        super().__init__(copies, Console(), self.said.append, nullcontext)


@pytest.fixture
def chat(tmp_path, monkeypatch) -> ChatSession:
    """A chat with a turn. The present folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    chat = ChatSession(*load(backbone(), adapter=adapter()))
    chat.send("My name is Anna.", 2)
    return chat


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_command_that_begins_a_chat_says_if_it_has_no_file(chat, tmp_path, is_kept):
    kept = KeptChats(tmp_path / "chats") if is_kept else None
    for begin in (FileCommands.new, lambda each: each.branch("1"), lambda each: each.import_("x.json")):
        file = tmp_path / "m.safetensors" if kept is None else kept.new_file()
        commands = Commands(Copies(chat.fork(), file, save_kv=False, kept=kept))
        if not (tmp_path / "x.json").exists():
            commands.export("x.json")
        commands.said.clear()
        begin(commands)
        assert len(commands.said) == (1 if is_kept else 2)
        assert (NO_FILE in commands.said) is not is_kept


def test_an_empty_chat_that_is_not_kept_is_not_said_to_be_saved(chat, tmp_path):
    kept = KeptChats(tmp_path / "chats")
    file = kept.new_file()
    commands = Commands(Copies(chat.fork(), file, save_kv=False, kept=kept))
    commands.save("")
    commands.copies.chat.reset()
    commands.save("")
    assert not file.exists()
    commands.save("elsewhere.safetensors")
    assert Path("elsewhere.safetensors").exists()
    assert commands.said == [f"saved to {file}", "an empty chat is not kept", "saved to elsewhere.safetensors"]


def test_where_a_chat_of_another_implementation_goes_is_said(chat, tmp_path):
    write_sidecar_states(tmp_path / "states.npz", chat.memory)
    commands = Commands(Copies(chat.fork(), None, save_kv=False))
    commands.load("states.npz")
    assert commands.said[1:] == [NO_FILE]
    kept = KeptChats(tmp_path / "chats")
    commands = Commands(Copies(chat.fork(), kept.new_file(), save_kv=False, kept=kept))
    commands.load("states.npz")
    assert commands.said[1:] == [f"its file is {commands.copies.file}; states.npz stays as it is"]


def test_a_link_that_leads_nowhere_is_not_replaced(chat, tmp_path):
    (tmp_path / "link.md").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"link\.md exists already \(a link that leads nowhere\)"):
        Commands(Copies(chat, None, save_kv=False)).export("link.md")
    assert (tmp_path / "link.md").readlink() == Path("nowhere")


@pytest.mark.parametrize("ending", [".json", ".md"])
def test_only_regular_files_are_imported(chat, tmp_path, ending):
    os.mkfifo(tmp_path / f"pipe{ending}")
    (tmp_path / f"device{ending}").symlink_to("/dev/zero")
    commands = Commands(Copies(chat, None, save_kv=False))
    for name in ("pipe", "device"):
        with pytest.raises(ValueError, match=f"{name}{ending} is a {name}; expected a file"):
            commands.import_(f"{name}{ending}")
    assert commands.copies.chat is chat


@pytest.mark.parametrize(
    "content",
    [
        '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]',
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}',
        "## User\n\nHi\n\n## Assistant\n\nHello.\n",
    ],
)
def test_messages_are_read_as_the_chat_that_imports_them_is(chat, content):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    how = {"history": "none", "write": "user", "tools": tools, "enable_thinking": True}
    template = f"{{# A copy of it. #}}{chat.tokenizer.chat_template}"
    begun = ChatSession(chat.model, chat.tokenizer, chat_template=template, **how)
    commands = Commands(Copies(begun, None, save_kv=False))
    name = "x.md" if content.startswith("#") else "x.json"
    Path(name).write_text(content)
    commands.import_(name)
    imported = commands.copies.chat
    expected = ChatSession(chat.model, chat.tokenizer, **how)
    expected.read_exchange("Hi", "Hello.")
    assert imported.to_dict() == expected.to_dict()
    assert imported.segments == expected.segments


@pytest.mark.parametrize("ending", [".md", ".json"])
def test_a_reply_with_any_character_comes_back(chat, ending):
    chat.read_exchange("Hi", "a\0b\ufeff\r\n\x1b")
    commands = Commands(Copies(chat, None, save_kv=False))
    commands.export(f"x{ending}")
    commands.import_(f"x{ending}")
    assert commands.copies.chat is not chat
    assert commands.copies.chat.messages == chat.messages


def test_an_empty_chat_has_no_markdown(chat):
    empty = ChatSession(chat.model, chat.tokenizer)
    commands = Commands(Copies(empty, None, save_kv=False))
    with pytest.raises(ValueError, match=r"no text yet, and Markdown has nothing else; export it to a \.json file"):
        commands.export("x.md")
    assert not Path("x.md").exists()
    commands.export("x.json")
    commands.import_("x.json")
    assert commands.copies.chat.to_dict() == empty.to_dict()


@pytest.mark.parametrize(("content", "kind"), [("5", "a number"), ('"Hi"', "a text"), ("null", "nothing")])
def test_what_is_no_chat_is_named(chat, content, kind):
    Path("x.json").write_text(content)
    with pytest.raises(ValueError, match=f"the chat is {kind} without messages"):
        Commands(Copies(chat, None, save_kv=False)).import_("x.json")


def test_a_number_of_many_digits_is_told_in_one_short_line(chat):
    with pytest.raises(ValueError, match=r"/branch got '9999.*expected the number of a reply") as raised:
        Commands(Copies(chat, None, save_kv=False)).branch("9" * 5000)
    assert len(str(raised.value)) < 300
