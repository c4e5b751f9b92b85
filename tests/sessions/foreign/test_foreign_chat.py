"""Chats that other implementations saved go on in a `ChatSession`."""

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession, load
from mlx_deltamem.sessions.foreign.folder import write_reference_session
from mlx_deltamem.sessions.foreign.states import write_sidecar_states
from tests.conftest import adapter, backbone, distance, golden, golden_names
from tests.foreign import MESSAGES, reference_folder, states
from tests.sessions.test_session import KINDS, told


@pytest.mark.parametrize("name", [name for name in golden_names("sessions") if "rebuild" not in name])
def test_a_golden_chat_of_the_reference_goes_on_as_it_did_there(name, tmp_path):
    info, data = golden("sessions", name)
    *_, before, last = info["turns"]
    number = len(info["turns"]) - 1
    start = f"turn{number - 1}.state."
    tensors = {f"model.layers.{key[len(start) :]}.self_attn": x for key, x in data.items() if key.startswith(start)}
    messages = info["final"]["messages"][:-2]
    folder = reference_folder(tmp_path / "theirs", tensors, messages, before["full_ids_after_turn"])
    model, tokenizer = load(backbone(info["backbone"]), adapter=adapter(info["adapter"]))
    chat = ChatSession.load(model, tokenizer, folder)
    assert chat.messages == messages
    assert chat.segments.ids == before["full_ids_after_turn"]
    reply = chat.send(last["user"], info["max_new_tokens"], read_only=not last["write_enabled"])
    assert reply == last["assistant"]
    assert chat.segments.ids == last["full_ids_after_turn"]
    for layer, state in chat.memory.items():
        expected = data[f"turn{number}.state.{layer}"]
        assert distance(state if expected.ndim == 4 else state[:, 0], expected) <= 2e-5
    assert not (folder / "pwned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind, tmp_path):
    chat = told(kind)
    write_reference_session(tmp_path / "theirs", chat.messages, chat.memory, ids=chat.segments.ids)
    again = ChatSession.load(chat.model, chat.tokenizer, tmp_path / "theirs")
    assert again.messages == chat.messages
    assert again.segments.ids == chat.segments.ids
    assert all(mx.array_equal(state, chat.memory[layer]) for layer, state in again.memory.items())
    assert again.send("Go on.", 8) == chat.send("Go on.", 8)
    again.undo()
    again.undo()
    assert again.messages == chat.messages[:3]
    again.save(tmp_path / "ours.safetensors")
    assert ChatSession.load(chat.model, chat.tokenizer, tmp_path / "ours.safetensors").messages == again.messages


def test_tokens_that_are_not_the_templates_give_way_to_those_that_are(tmp_path):
    model, tokenizer = load(backbone(), adapter=adapter())
    folder = reference_folder(tmp_path / "theirs")
    # The states have rank 4, this adapter has rank 8.
    with pytest.raises(ValueError, match="theirs"):
        ChatSession.load(model, tokenizer, folder)
    write_reference_session(tmp_path / "fits", MESSAGES, states(rank=8), ids=(1, 2, 3))
    chat = ChatSession.load(model, tokenizer, tmp_path / "fits")
    assert chat.messages == MESSAGES
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert chat.segments.ids == tokenizer.encode(text, add_special_tokens=False)


def test_a_file_of_states_is_a_memory_to_begin_from(tmp_path):
    model, tokenizer = load(backbone(), adapter=adapter())
    memory = states(rank=8)
    write_sidecar_states(tmp_path / "state.npz", memory)
    chat = ChatSession.load(model, tokenizer, tmp_path / "state.npz")
    assert chat.messages == []
    assert chat.send("What is it?", 6) == ChatSession(model, tokenizer, memory=memory).send("What is it?", 6)
    chat.undo()
    assert all(mx.array_equal(state, memory[layer]) for layer, state in chat.memory.items())
    chat.save(tmp_path / "ours.safetensors")
    again = ChatSession.load(model, tokenizer, tmp_path / "ours.safetensors")
    assert again.send("What is it?", 6) == ChatSession(model, tokenizer, memory=memory).send("What is it?", 6)


def test_a_foreign_file_is_not_written_over(tmp_path):
    model, tokenizer = load(backbone(), adapter=adapter())
    write_sidecar_states(tmp_path / "state.npz", states(rank=8))
    chat = ChatSession.load(model, tokenizer, tmp_path / "state.npz")
    with pytest.raises(ValueError, match=r"does not end in \.safetensors"):
        chat.save(tmp_path / "state.npz")
