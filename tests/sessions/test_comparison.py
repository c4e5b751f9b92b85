import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession, detach, load
from mlx_deltamem.sessions.comparison import WITH, WITHOUT, compare
from tests.conftest import adapter, backbone
from tests.sessions.test_session import HISTORIES, told


@pytest.mark.parametrize("history", HISTORIES)
def test_the_chat_stays_as_it_is(history):
    chat = told("qwen3_tsw_qo", history)
    messages, memory = chat.messages, chat.memory
    replies = compare(chat, "What is it?", max_tokens=8)
    assert replies[WITH] != replies[WITHOUT]
    assert replies[WITH] == chat.fork().send("What is it?", 8, read_only=True)
    assert chat.messages == messages
    assert all(mx.array_equal(state, memory[layer]) for layer, state in chat.memory.items())


def test_without_the_memory_is_the_frozen_model_that_sees_the_same_text():
    chat = told()
    reply = compare(chat, "What is it?", max_tokens=8)[WITHOUT]
    model, tokenizer = load(backbone(), adapter=adapter())
    ids = tokenizer.apply_chat_template(
        [*chat.messages, {"role": "user", "content": "What is it?"}], add_generation_prompt=True
    )
    detach(model)
    said = []
    for _ in range(8):
        token = model(mx.array([[*ids, *said]]))[0, -1].argmax().item()
        if token in tokenizer.eos_token_ids:
            break
        said.append(token)
    assert reply == tokenizer.decode(said, skip_special_tokens=True)


def test_a_chat_without_memory_writes_nothing():
    chat = told("qwen3_tsw_qo", "none")
    other = chat.without_memory()
    other.send("What is it?", 4)
    assert not any(state.any() for state in other.memory.values())
    assert other.messages[:5] == chat.messages
    assert isinstance(other, ChatSession) and other.history == "none"
