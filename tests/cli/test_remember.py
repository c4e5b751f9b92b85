"""`/remember` of a long text, interrupted and given again; and the files that are read to be remembered."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.cli.memory_commands import MemoryCommands
from mlx_deltamem.cli.remembered import read_remembered
from mlx_deltamem.sessions.reading import prefill
from mlx_deltamem.show.console import Console
from mlx_deltamem.show.progress import TimeLeft
from tests.sessions.test_session import loaded

TEXT = "The key hangs behind the clock. The cat is grey, and it sleeps on the stove."


@pytest.mark.slow
def test_what_was_read_before_ctrl_c_stays_and_the_same_text_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(prefill, "_STRETCH", 16)
    file = tmp_path / "notes.txt"
    file.write_text(TEXT)
    chats = [ChatSession(*loaded("qwen3_tsw_qo"), history="none") for _ in range(2)]
    chats[0].remember(TEXT)
    said, changed = [], []
    copies = SimpleNamespace(chat=chats[1], changed=lambda: changed.append(True))
    commands = MemoryCommands(copies, {}, Console(), said.append, nullcontext)
    ends = prefill.stretch_ends(chats[0].model, chats[0].turns[-1].opening)
    total = ends[-1]
    with monkeypatch.context() as patched:
        for stop in (1, ends[1]):
            patched.setattr(TimeLeft, "after", after(stop))
            commands.remember(str(file))
    assert said == [
        "(stopped; the memory is as it was)",
        f"(stopped after {ends[1]:,} of {total:,} tokens; the same again goes on, and /undo takes it back)",
    ]
    assert len(changed) == 1
    commands.remember(str(file))
    assert said[-1] == f"remembered {total:,} tokens; /undo takes it back"
    assert len(chats[1].turns) == 1
    assert all(mx.array_equal(state, chats[0].memory[layer]) for layer, state in chats[1].memory.items())


def after(stop: int):
    """In place of `TimeLeft.after`: Ctrl-C when more than `stop` tokens have been read, or at once for 1."""

    def interrupt(_: TimeLeft, done: int, total: int) -> str:
        if done > stop or stop == 1:
            raise KeyboardInterrupt
        return ""

    return interrupt


def test_messages_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(ValueError, match=rf"{name}\.json is a {name}; expected a file"):
            read_remembered(tmp_path / f"{name}.json")
