"""Chats with a key shift, whose states have a row more than columns."""

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession, DeltaMemConfig, attach, load, make_prompt_cache, memory
from mlx_deltamem.cli.convert_session import convert_session
from mlx_deltamem.sessions.foreign.folder import write_reference_session
from mlx_deltamem.sessions.foreign.states import fitted_states, write_sidecar_states
from tests.conftest import backbone, distance, randomise
from tests.foreign import MESSAGES, reference_folder, states
from tests.sessions.test_session import every_history

REFUSED = r"the state of layer \d has shape \(1, 2, 9, 8\): it is of an adapter with key_shift"
_LOADED: list[tuple] = []


def loaded() -> tuple:
    if not _LOADED:
        model, tokenizer = load(backbone())
        attach(model, DeltaMemConfig(num_state_heads=2, delta_heads=("q", "o"), key_shift=True))
        randomise(model, 0.1)
        _LOADED.append((model, tokenizer))
    return _LOADED[0]


def told(history: str | int, *texts: str) -> ChatSession:
    chat = ChatSession(*loaded(), system="Be brief.", history=history)
    for text in texts:
        chat.send(text, 6)
    return chat


def assert_same(one: ChatSession, other: ChatSession) -> None:
    assert one.messages == other.messages
    assert all(distance(state, other.memory[layer]) <= 1e-5 for layer, state in one.memory.items())


def test_a_chat_writes_what_one_pass_over_its_tokens_writes():
    chat = told("full", "One.", "Two words.")
    assert {state.shape for state in chat.memory.values()} == {(1, 2, 9, 8)}
    cache = make_prompt_cache(chat.model)
    chat.model(mx.array([chat.segments.ids]), cache=cache)
    assert all(distance(state, chat.memory[layer]) <= 1e-5 for layer, state in memory(cache).items())


@pytest.mark.slow
@every_history
def test_going_back_and_on(history, tmp_path):
    chat = told(history, "One.", "Two words.", "And three!")
    whole = chat.fork()
    chat.regenerate(6)
    assert_same(chat, whole)
    chat.undo()
    assert_same(chat, told(history, "One.", "Two words."))
    chat.remember("A note.")
    chat.undo()
    chat.save(tmp_path / "chat.safetensors")
    again = ChatSession.load(*loaded(), tmp_path / "chat.safetensors")
    assert all(mx.array_equal(state, chat.memory[layer]) for layer, state in again.memory.items())
    for each in (chat, again):
        each.send("And three!", 6)
        assert_same(each, whole)


def test_its_memory_is_not_written_to_a_foreign_format(tmp_path):
    chat = told("full", "One.")
    chat.save(tmp_path / "chat.safetensors")
    for write in (
        lambda: write_reference_session(tmp_path / "a", MESSAGES, chat.memory),
        lambda: write_sidecar_states(tmp_path / "a.npz", chat.memory),
        lambda: convert_session(tmp_path / "chat.safetensors", tmp_path / "a", "torch"),
        lambda: convert_session(tmp_path / "chat.safetensors", tmp_path / "a.npz", "npz"),
    ):
        with pytest.raises(ValueError, match=REFUSED) as error:
            write()
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["chat.safetensors"]


def test_a_foreign_memory_is_not_its_memory(tmp_path):
    write_sidecar_states(tmp_path / "a.npz", states(rank=8))
    for path in (reference_folder(tmp_path / "a"), tmp_path / "a.npz"):
        with pytest.raises(ValueError, match="this model's adapter has key_shift") as error:
            ChatSession.load(*loaded(), path)
        assert "\n" not in str(error.value)
    shapes = loaded()[0].memory_layout.shapes
    assert not any(state.any() for state in fitted_states(tmp_path, {}, shapes))
