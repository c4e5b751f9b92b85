"""The commands on chats of the reference and of the other MLX port."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession, convert, inspect
from mlx_deltamem.adapters.torch.reader import load_torch
from mlx_deltamem.sessions.foreign.folder import read_foreign_session
from mlx_deltamem.sessions.foreign.states import read_sidecar_states, write_sidecar_states
from tests.command_line import assert_refused, run_command
from tests.foreign import named, reference_folder, same, states
from tests.sessions.test_session import told


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> tuple[ChatSession, Path]:
    """A chat and its session file."""
    path = tmp_path_factory.mktemp("ours") / "chat.safetensors"
    chat = told()
    chat.save(path)
    return chat, path


@pytest.fixture
def run(monkeypatch, capsys, tmp_path) -> Callable[..., str]:
    """Run a command in this process. It returns the printed text, or the error line."""
    monkeypatch.chdir(tmp_path)

    def run(module: object, *arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        if not code:
            module.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as exit_:
            module.main()
        captured = capsys.readouterr()
        assert (exit_.value.code, captured.out) == (code, "")
        return captured.err

    return run


def refused(run: Callable[..., str], module: object, *arguments: object) -> str:
    line = run(module, *arguments, code=2)
    assert line.startswith("error: ")
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.slow
def test_a_chat_of_ours_as_a_user_converts_it(chat, tmp_path):
    chat, path = chat
    result = run_command("convert", "--session", path, tmp_path / "theirs", "--to", "torch", "--dtype", "bfloat16")
    assert result.returncode == 0, result.stderr
    assert f"Read {path}: 2 turns (a session file of mlx_deltamem)" in result.stdout
    assert f"Wrote {tmp_path / 'theirs'}: 2 turns and a memory of 3 layers (the PyTorch reference's" in result.stdout
    found = read_foreign_session(tmp_path / "theirs")
    assert [{"role": "system", "content": found.system}, *found.messages] == chat.messages
    assert found.ids == chat.segments.ids
    assert same(found.states, {n: s.astype(mx.bfloat16).astype(mx.float32) for n, s in chat.memory.items()})
    again = run_command("convert", "--session", path, tmp_path / "theirs", "--to", "torch")
    assert_refused(again, "exists already; delete it or name another folder")


def test_a_chat_between_others(chat, run):
    chat, path = chat
    run(convert, "--session", path, "theirs", "--to", "torch")
    printed = run(convert, "--session", "theirs", "memory.npz", "--to", "npz")
    assert printed.splitlines() == [
        "Read theirs: 2 turns (the PyTorch reference's session folder)",
        "Wrote memory.npz: a memory of 3 layers (the other MLX port's file of states)",
    ]
    assert same(read_sidecar_states(Path("memory.npz")), chat.memory)
    run(convert, "--session", "memory.npz", "again", "--to", "torch")
    again = read_foreign_session(Path("again"))
    assert (again.messages, again.ids) == ([], None)
    assert same(again.states, chat.memory)
    assert load_torch("again/delta_state.pt").keys() == load_torch("theirs/delta_state.pt").keys()


def test_what_cannot_be_converted_is_refused(chat, run):
    path = chat[1]
    reference_folder(Path("four"), named(states(4)))
    assert "without its model, because the file holds its fingerprints: use ChatSession.load" in refused(
        run, convert, "--session", "four", "ours.safetensors"
    )
    assert "has 4 state heads" in refused(run, convert, "--session", "four", "a.npz", "--to", "npz")
    assert "does not end in .npz" in refused(run, convert, "--session", path, "a", "--to", "npz")
    assert "--dtype goes with" in refused(
        run, convert, "--session", path, "a.npz", "--to", "npz", "--dtype", "bfloat16"
    )
    assert "there is no session file" in refused(run, convert, "--session", "nothing", "a", "--to", "torch")
    assert "goes with --session" in refused(run, convert, "--torch-path", "four", "--to", "npz")
    for option in ("--mlx-path", "--upload-repo"):
        assert f"{option} is for adapters" in refused(
            run, convert, "--session", path, "a", "--to", "mlx", option, "b/c"
        )
    (Path("four") / "delta_state.pt").write_bytes(b"\x80\x04.")
    assert "is a plain pickle" in refused(run, convert, "--session", "four", "a", "--to", "torch")
    assert "one of the arguments" in run(convert, "--to", "torch", code=2)
    assert sorted(path.name for path in Path().iterdir()) == ["four"]


def in_two_conversations(chat: ChatSession) -> None:
    chat.conversation = "other"
    chat.read_exchange("My word is oak.", "Noted.")


def with_two_messages(chat: ChatSession) -> None:
    chat.read_exchange([{"role": "user", "content": text} for text in ("My word is oak.", "What is it?")], "Oak.")


def with_a_call(chat: ChatSession) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "oak"}}}
    chat.read_exchange("What is it?", "I will look.", tool_calls=[call])


@pytest.mark.parametrize(
    ("tell", "problem"),
    [
        (in_two_conversations, "has several conversations, and the PyTorch reference's session folder has one"),
        (with_two_messages, "has a turn of user, user; the PyTorch reference's session folder holds one message"),
        (with_a_call, "has a reply with tool calls, and the PyTorch reference's session folder has texts only"),
    ],
)
def test_what_a_session_folder_cannot_hold_is_refused_and_its_memory_is_written(tell, problem, run):
    chat = told()
    tell(chat)
    chat.save("chat.safetensors")
    line = refused(run, convert, "--session", "chat.safetensors", "theirs", "--to", "torch")
    assert problem in line and "--to npz writes the memory alone" in line
    assert not Path("theirs").exists()
    assert "Read chat.safetensors: 3 turns" in run(convert, "--session", "chat.safetensors", "a.npz", "--to", "npz")
    assert same(read_sidecar_states(Path("a.npz")), chat.memory)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 4])
def test_a_session_folder_is_inspected(heads, run):
    memory = states(heads, layers=(0, 5))
    reference_folder(Path("theirs"), named(memory, mx.bfloat16))
    shown = " ".join(run(inspect, "theirs", "--plot", "a.svg").split())
    assert "format the PyTorch reference's session folder turns 1, in all 3 tokens system prompt yes" in shown
    assert f"memory {heads}x4x4 float32 in 2 layers: {heads * 4 * 4 * 4 * 2} bytes" in shown
    assert "carte" not in shown
    assert Path("a.svg").stat().st_size
    assert "2 user" not in shown
    assert "1 user: Où est la carte?" in run(inspect, "theirs", "--messages")
    found = json.loads(run(inspect, "theirs", "--json"))
    assert (found["kind"], found["turns"], found["tokens"], found["messages"]) == ("foreign session", 1, 3, None)
    stored = memory[5].astype(mx.bfloat16).astype(mx.float32)
    assert [state["layer"] for state in found["states"]] == [0, 5]
    assert found["states"][1]["norm"] == pytest.approx(mx.linalg.norm(stored.reshape(-1)).item(), rel=1e-5)


def test_a_file_of_states_is_inspected(run):
    write_sidecar_states(Path("memory.npz"), states())
    shown = " ".join(run(inspect, "memory.npz").split())
    assert "format the other MLX port's file of states turns none in it system prompt none" in shown
    found = json.loads(run(inspect, "memory.npz", "--json"))
    assert (found["state_shape"], found["tokens"]) == ([1, 4, 4], None)


def test_what_cannot_be_inspected_is_refused(chat, run):
    reference_folder(Path("theirs"), {}, [], [])
    assert "memory empty" in " ".join(run(inspect, "theirs").split())
    assert "nothing to draw" in refused(run, inspect, "theirs", "--plot", "a.png")
    assert "session folder; expected a session that a chat of" in refused(run, inspect, "diff", "theirs", chat[1])
    assert "--model goes with one adapter" in refused(run, inspect, "theirs", "--model", "x")
    assert "there is no file nothing.npz" in refused(run, inspect, "nothing.npz")
    Path("bad.npz").write_bytes(b"PK")
    assert "bad.npz: the zip archive is truncated or damaged" in refused(run, inspect, "bad.npz")
    (Path("theirs") / "session.json").unlink()
    assert "it lacks session.json; copy the whole folder" in refused(run, inspect, "theirs")
