"""The commands of the terminal chat about what is written, without a terminal."""

from contextlib import nullcontext

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.memory_commands import MemoryCommands
from mlx_deltamem.show.console import Console
from tests.sessions.test_session import loaded


def test_a_read_only_memory_is_saved_as_such(tmp_path):
    file = tmp_path / "chat.safetensors"
    copies = Copies(ChatSession(*loaded(), write="user"), file, save_kv=False)
    said: list[str] = []
    commands = MemoryCommands(copies, {}, Console(), said.append, nullcontext)
    for write in ("none", "user"):
        commands.toggle_read_only()
        assert ChatSession.load(*loaded(), file).write == write
    assert said == ["the memory is read only", "the memory is written again: user"]


@pytest.mark.parametrize("mode", ["after", "all"])
def test_the_mode_before_is_also_known_after_write_none(mode):
    copies = Copies(ChatSession(*loaded()), None, save_kv=False)
    commands = MemoryCommands(copies, {}, Console(), lambda _: None, nullcontext)
    for given in ("user", mode, "none", "none"):
        commands.write(given)
    commands.toggle_read_only()
    assert copies.chat.write == mode


def test_each_chat_has_its_own_mode_before():
    copies = Copies(ChatSession(*loaded(), write="user"), None, save_kv=False)
    commands = MemoryCommands(copies, {}, Console(), lambda _: None, nullcontext)
    commands.toggle_read_only()
    copies.fork()
    commands.write("after")
    commands.toggle_read_only()
    copies.number = 1
    commands.toggle_read_only()
    assert copies.chat.write == "user"
    copies.number = 2
    commands.toggle_read_only()
    assert copies.chat.write == "after"


def test_a_copy_of_a_read_only_chat_is_written_as_the_first_chat_was():
    copies = Copies(ChatSession(*loaded(), write="user"), None, save_kv=False)
    commands = MemoryCommands(copies, {}, Console(), lambda _: None, nullcontext)
    commands.toggle_read_only()
    copies.fork()
    commands.toggle_read_only()
    assert copies.chat.write == "user"
