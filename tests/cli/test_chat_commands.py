"""The commands of the terminal chat, without a terminal."""

from contextlib import nullcontext

import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.cli.chat_commands import ChatCommands
from mlx_deltamem.cli.copies import Copies
from mlx_deltamem.cli.kept import KeptChats
from mlx_deltamem.show.console import Console
from tests.sessions.test_session import loaded


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_chat_that_is_forgotten_has_no_title(tmp_path, is_kept):
    kept = KeptChats(tmp_path) if is_kept else None
    file = tmp_path / "chat.safetensors"
    copies = Copies(ChatSession(*loaded(), system="Be brief."), file, save_kv=False, kept=kept)
    commands = ChatCommands(copies, {}, Console(), lambda _: True, nullcontext)
    copies.chat.send("Anna has a secret.", 2)
    commands.do("/name The secret of Anna")
    commands.do("/reset")
    assert file.exists() is not is_kept
    # The next turn has its own file, or is written to the same one.
    copies.chat.send("Hello.", 2)
    copies.changed()
    again = ChatSession.load(*loaded(), file)
    assert (again.title, again.system) == ("", "Be brief.")


def test_a_reply_that_calls_a_tool_is_shown(capsys):
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    turn = {"messages": [{"role": "user", "content": "Hi"}], "reply": "", "tool_calls": [call]}
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    content = {"format": "mlx_deltamem chat", "version": 1, "turns": [turn], "template_options": {"tools": tools}}
    chat = ChatSession.from_dict(*loaded(), content)
    commands = ChatCommands(Copies(chat, None, save_kv=False), {}, Console(), lambda _: True, nullcontext)
    commands.do("/messages")
    shown = "".join(capsys.readouterr())
    assert "1 assistant: (calls look_up)" in shown
