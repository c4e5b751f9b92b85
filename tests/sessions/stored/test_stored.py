import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import load_prompt_cache

from mlx_deltamem import ChatSession, DeltaMemConfig, attach, load
from mlx_deltamem.adapters.fingerprint import origin_of
from mlx_deltamem.sessions.stored.chat import FORMAT_VERSION
from tests.conftest import adapter, backbone, distance
from tests.families import tiny_model
from tests.sessions.test_session import HISTORIES, every_history, every_kind, loaded, new_chat, same_memory, told

GO_ON = "What is it, then?"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "chat.safetensors"


@pytest.mark.slow
@every_kind
@every_history
@pytest.mark.parametrize("save_kv", [False, True])
def test_a_loaded_chat_goes_on_as_the_saved_one(kind, history, save_kv, path):
    chat = told(kind, history)
    chat.save(path, save_kv)
    again = ChatSession.load(*loaded(kind), path)
    assert again.messages == chat.messages
    assert again.segments == chat.segments
    assert again.history == chat.history
    assert all(mx.array_equal(state, chat.memory[layer]) for layer, state in again.memory.items())
    assert [sorted(drift.kept) for drift in again.drift] == [sorted(drift.kept) for drift in chat.drift]
    assert again.send(GO_ON, 12) == chat.send(GO_ON, 12)
    assert same_memory(again, chat, 2e-5)


@pytest.mark.slow
@every_kind
@every_history
@pytest.mark.parametrize("save_kv", [False, True])
def test_a_loaded_chat_can_go_back(kind, history, save_kv, path):
    chat = told(kind, history)
    chat.save(path, save_kv)
    again = ChatSession.load(*loaded(kind), path)
    again.regenerate(10)
    assert again.messages == chat.messages
    again.undo()
    never = told(kind, history, "Hello there. How are you?")
    assert same_memory(again, never, 2e-5)
    assert again.send(GO_ON, 10) == never.send(GO_ON, 10)


@every_kind
def test_text_after_a_remembered_text_is_run_again_with_its_memory(kind, path):
    chat = new_chat(kind)
    chat.remember("My cat is Tom. He is grey.")
    chat.send("Hello there. How are you?", 6)
    chat.save(path)
    again = ChatSession.load(*loaded(kind), path)
    for each in (chat, again):
        each.send(GO_ON, 1, read_only=True)
    for found, expected in zip(again._state.cache[:-1], chat._state.cache[:-1], strict=True):
        assert distance(found.keys, expected.keys) <= 2e-5
        assert distance(found.values, expected.values) <= 2e-5


_CONTINUE = """
import sys
import tools.openblas
from mlx_deltamem import ChatSession, load
model, tokenizer = load(sys.argv[1], adapter=sys.argv[2])
for path in sys.argv[3:]:
    chat = ChatSession.load(model, tokenizer, path)
    chat.send("What is it, then?", 12)
    print(chat.segments.ids)
"""


@pytest.mark.slow
@every_kind
def test_a_new_process_goes_on_token_for_token(kind, tmp_path):
    chats, paths = [], []
    for history in HISTORIES:
        for save_kv in (False, True):
            chats.append(told(kind, history))
            paths.append(tmp_path / f"{history}-{save_kv}.safetensors")
            chats[-1].save(paths[-1], save_kv)
    command = [sys.executable, "-c", _CONTINUE, backbone(), adapter(kind), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for chat, line in zip(chats, result.stdout.splitlines(), strict=True):
        chat.send(GO_ON, 12)
        assert json.loads(line) == chat.segments.ids


def test_the_file_is_one_mlx_lm_reads_and_only_its_owner(path):
    chat = told()
    chat.save(path, save_kv=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    entries = load_prompt_cache(str(path))
    assert [type(entry).__name__ for entry in entries] == ["KVCache"] * 3 + ["ArraysCache"] * 2
    assert mx.array_equal(entries[3].cache[0], chat.memory[0])


def test_an_empty_chat_can_be_saved(path):
    new_chat().save(path)
    again = ChatSession.load(*loaded(), path)
    assert again.messages == [{"role": "system", "content": "Be brief."}]
    assert again.send("Hello", 5) == new_chat().send("Hello", 5)


@pytest.mark.slow
@every_history
@pytest.mark.parametrize("call", [1, 3, 6])
def test_an_error_while_text_is_run_again_loses_nothing(history, call, path, monkeypatch):
    chat = told("qwen3_tsw_qo", history, "One.", "Two.", "Three.")
    chat.save(path)
    again = ChatSession.load(*loaded(), path)
    messages, calls = again.messages, 0
    original = type(again.model).__call__

    def failing(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(again.model), "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        again.send(GO_ON, 10)
    monkeypatch.undo()
    assert again.messages == messages
    assert same_memory(again, chat)
    assert again.send(GO_ON, 10) == chat.send(GO_ON, 10)


def test_saving_again_replaces_the_file(path):
    chat = told()
    chat.save(path)
    chat.send("More.", 4)
    chat.save(path)
    again = ChatSession.load(*loaded(), path)
    assert again.messages == chat.messages
    again.send("And more.", 4)
    again.save(path)


def test_someone_elses_file_is_not_replaced(path):
    mine, theirs = told(), told()
    mine.save(path)
    with pytest.raises(ValueError, match="was saved by someone else"):
        theirs.save(path)
    again = ChatSession.load(*loaded(), path)
    again.send("Theirs.", 4)
    again.save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="was saved by someone else"):
        mine.save(path)
    with pytest.raises(ValueError, match="was saved by someone else"):
        mine.fork().save(path)
    assert path.read_bytes() == before
    mine.save(path.with_name("other.safetensors"))


def test_of_all_who_go_on_from_one_file_the_first_may_save(path):
    told().save(path)
    outcomes = []
    for chat in [ChatSession.load(*loaded(), path) for _ in range(4)]:
        try:
            chat.save(path)
            outcomes.append("saved")
        except ValueError:
            outcomes.append("refused")
    assert outcomes == ["saved", "refused", "refused", "refused"]


def test_a_file_that_is_no_session_is_not_replaced(path):
    path.write_text("precious")
    with pytest.raises(ValueError, match="is there already and is not a session"):
        told().save(path)
    assert path.read_text() == "precious"


def test_a_link_stays_a_link(path, tmp_path):
    chat = told()
    chat.save(path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    chat.send("More.", 3)
    chat.save(link)
    assert link.is_symlink()
    assert ChatSession.load(*loaded(), path).messages == chat.messages


def test_a_link_that_leads_to_itself_is_an_error_of_the_system(path):
    path.symlink_to(path)
    chat = new_chat()
    for use in (chat.save, lambda each: ChatSession.load(*loaded(), each)):
        with pytest.raises(OSError):
            use(path)


def test_places_where_nothing_can_be_saved(tmp_path):
    chat = told()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        chat.save(tmp_path / "no" / "chat.safetensors")
    with pytest.raises(ValueError, match=r"does not end in \.safetensors"):
        chat.save(tmp_path / "chat.txt")
    with pytest.raises(FileNotFoundError, match="there is no session file"):
        ChatSession.load(*loaded(), tmp_path / "chat.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="is read-only"):
        told().save(tmp_path / "chat.safetensors")


_FULL_DISK = """
import resource, signal, sys
import tools.openblas
from mlx_deltamem import ChatSession, load
model, tokenizer = load(sys.argv[1], adapter=sys.argv[2])
chat = ChatSession.load(model, tokenizer, sys.argv[3])
chat.send("More.", 4)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    chat.save(sys.argv[3])
except OSError as error:
    print(f"refused: {error}")
chat.send("Still going.", 4)
print(len(chat.messages))
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(path):
    told().save(path)
    before = path.read_bytes()
    command = [sys.executable, "-c", _FULL_DISK, backbone(), adapter(), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "refused: " in result.stdout
    assert "could not be written" in result.stdout
    assert result.stdout.splitlines()[-1] == "9"
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_adapter_backbone_or_tokenizer_is_refused_with_both_fingerprints(path):
    chat = told()
    chat.save(path)
    ours = origin_of(chat.model, chat.tokenizer)
    other = loaded("qwen3_ssw_msg")
    with pytest.raises(ValueError, match="made with another adapter") as error:
        ChatSession.load(*other, path)
    assert ours.adapter in str(error.value)
    assert origin_of(*other).adapter in str(error.value)
    model, tokenizer = load(backbone(), adapter=adapter())
    model.model.norm.weight = model.model.norm.weight + 0.5
    with pytest.raises(ValueError, match="made with another backbone"):
        ChatSession.load(model, tokenizer, path)
    model, tokenizer = load(backbone(), adapter=adapter())
    tokenizer.add_eos_token("17")
    with pytest.raises(ValueError, match="made with another tokenizer"):
        ChatSession.load(model, tokenizer, path)


def test_a_newer_format_is_refused(path, monkeypatch):
    chat = told()
    newer = FORMAT_VERSION + 1
    monkeypatch.setattr("mlx_deltamem.sessions.stored.chat.WITH_ONE_CONVERSATION", newer)
    chat.save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"is of session format {newer}; this mlx_deltamem .* reads"):
        ChatSession.load(*loaded(), path)


def test_an_altered_text_is_noticed(path):
    told().save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"My word is jade!", b"My word is gold!"))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        ChatSession.load(*loaded(), path)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused(data, path):
    if not path.exists():
        told().save(path)
    content = bytearray(path.read_bytes())
    damaged = path.with_name("damaged.safetensors")
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] ^= data.draw(st.integers(1, 255))
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a session|is damaged|is of session format|was made with") as error:
        ChatSession.load(*loaded(), damaged)
    assert "\n" not in str(error.value)


_SAVING = """
import sys
import tools.openblas
from mlx_deltamem import ChatSession, load
model, tokenizer = load(sys.argv[1], adapter=sys.argv[2])
chat = ChatSession.load(model, tokenizer, sys.argv[3])
print("ready", flush=True)
while True:
    chat.save(sys.argv[3])
"""


@pytest.mark.slow
def test_kills_while_saving_lose_no_session(path):
    """A few kills. tools/measure/kill_saves.py does hundreds."""
    chat = told()
    chat.save(path)
    random = np.random.default_rng(0)
    for _ in range(6):
        command = [sys.executable, "-c", _SAVING, backbone(), adapter(), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(random.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
        assert ChatSession.load(*loaded(), path).messages == chat.messages
    again = ChatSession.load(*loaded(), path)
    again.save(path)
    # The files that the killed processes left are removed.
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_chat_that_could_not_be_loaded_again_does_not_replace_its_file(path):
    chat = new_chat()
    chat.send("Hello there.", 2)
    chat.save(path)
    # Both names are the same text in JSON.
    chat._state.template.options["size"] = {1: "a", "1": "b"}
    with pytest.raises(
        ValueError, match=r"chat\.safetensors was not saved, because .* '1' twice .*; expected a chat within"
    ):
        chat.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert ChatSession.load(*loaded(), path).messages == chat.messages
    del chat._state.template.options["size"]
    chat.send("Hello again.", 2)
    chat.save(path)
    assert ChatSession.load(*loaded(), path).messages == chat.messages


@pytest.mark.slow
def test_a_long_chat_with_a_large_memory_is_a_small_file(path):
    """36 layers of rank 8 and 200 turns without keys and values: under 1 MB."""
    small = tiny_model("qwen3")
    model = type(small)(replace(small.args, num_hidden_layers=36, vocab_size=288)).eval()
    attach(model, DeltaMemConfig(delta_heads=("q", "o")))
    chat = ChatSession(model, loaded()[1], history="none")
    chat.send("My name is Anna and I keep bees in the north of Norway, where it is cold.", 20)
    chat._state.turns = [chat._state.turns[0].as_earlier()] * 200
    chat.save(path)
    assert path.stat().st_size < 1_000_000
    again = ChatSession.load(model, loaded()[1], path)
    assert len(again.messages) == 400
    assert all(distance(state, chat.memory[layer]) == 0 for layer, state in again.memory.items())
    for _ in range(30):
        again.undo()
    assert len(again.messages) == 340
