"""Chats on models with caches that cannot all be cut: sliding windows, and recurrent layers."""

import pytest

from mlx_deltamem import ChatSession, DeltaMemConfig, attach
from tests.conftest import distance, randomise
from tests.families import FAMILIES, tiny_model
from tests.sessions.test_session import HISTORIES, loaded

UNEVEN = ["gemma3_text", "gpt_oss", "olmo3", "qwen3_next", "llama"]


@pytest.fixture(params=UNEVEN)
def model(request, monkeypatch):
    # The vocabulary of the golden tokenizer.
    monkeypatch.setitem(FAMILIES, request.param, FAMILIES[request.param] | {"vocab_size": 288})
    made = tiny_model(request.param)
    attach(made, DeltaMemConfig(rank=4, delta_heads=("q", "o")))
    randomise(made, 0.1)
    return made


def told(model, history, *texts: str) -> ChatSession:
    chat = ChatSession(model, loaded()[1], system="Be brief.", history=history)
    for text in texts:
        chat.send(text, 6)
    return chat


def assert_same(one: ChatSession, other: ChatSession) -> None:
    assert one.messages == other.messages
    assert all(distance(state, other.memory[layer]) <= 1e-4 for layer, state in one.memory.items())


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
def test_going_back_and_on(model, history, tmp_path):
    chat = told(model, history, "One.", "Two words.", "And three!")
    whole = chat.fork()
    chat.regenerate(6)
    assert_same(chat, whole)
    chat.undo()
    assert_same(chat, told(model, history, "One.", "Two words."))
    chat.undo()
    assert_same(chat, told(model, history, "One."))
    chat.send("Two words.", 6)
    chat.send("And three!", 6)
    assert_same(chat, whole)
    for save_kv in (False, True):
        path = tmp_path / f"{save_kv}.safetensors"
        chat.save(path, save_kv)
        again, here = ChatSession.load(model, loaded()[1], path), chat.fork()
        assert again.send("Go on.", 6) == here.send("Go on.", 6)
        assert_same(again, here)
