"""Chats in which mlx-lm quantises the keys and values of the text (`kv_bits`), in place of those of earlier turns."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import QuantizedKVCache

from mlx_deltamem import ChatSession, DeltaMemConfig, attach
from mlx_deltamem.sessions.replies.beginning import Beginning
from tests.conftest import randomise
from tests.families import FAMILIES, tiny_model
from tests.sessions.test_session import HISTORIES, loaded

QUANTISED = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 0}
# mlx-lm quantises groups of 32 numbers or more, and the vocabulary is that of the golden tokenizer.
WIDE = {"vocab_size": 288, "head_dim": 32}


@pytest.fixture(scope="module", params=["llama", "qwen3_next"])
def model(request):
    known = FAMILIES[request.param]
    FAMILIES[request.param] = known | WIDE
    try:
        made = tiny_model(request.param)
    finally:
        FAMILIES[request.param] = known
    attach(made, DeltaMemConfig(rank=4, delta_heads=("q", "o")))
    randomise(made, 0.1)
    return made


def told(model, history="full", write="all") -> ChatSession:
    chat = ChatSession(model, loaded()[1], system="Be brief.", history=history, write=write)
    chat.send("My word is jade.", 6)
    return chat


def is_quantised(chat: ChatSession) -> bool:
    return any(isinstance(entry, QuantizedKVCache) for entry in chat.state.cache or ())


def assert_same(one: ChatSession, other: ChatSession) -> None:
    """The same messages and memory. The text may have run in other pieces, which rounds in another way."""
    assert one.messages == other.messages
    assert all(mx.allclose(state, other.memory[layer], atol=1e-5) for layer, state in one.memory.items())


def fail(_: mx.array, __: mx.array) -> mx.array:
    raise KeyboardInterrupt


def undone(chat: ChatSession) -> None:
    chat.send("And now?", 6, **QUANTISED)
    # With another history, a turn that is written when it has ended makes a new cache for that.
    assert is_quantised(chat) or (chat.history != "full" and chat.write == "after")
    chat.undo()


def failed(chat: ChatSession) -> None:
    def fail_later(tokens: mx.array, logits: mx.array) -> mx.array:
        return fail(tokens, logits) if is_quantised(chat) else logits

    with pytest.raises(KeyboardInterrupt):
        chat.send("And now?", 6, logits_processors=[fail_later], **QUANTISED)


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("write", ["all", "after"])
@pytest.mark.parametrize("back", [undone, failed])
def test_a_quantised_turn_that_is_taken_back_was_never_there(model, history, write, back):
    chat, alone = told(model, history, write), told(model, history, write)
    back(chat)
    assert_same(chat, alone)
    chat.send("Which word?", 6)
    alone.send("Which word?", 6)
    assert_same(chat, alone)
    assert not is_quantised(chat)


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
def test_a_quantised_reply_is_generated_again_as_if_it_were_the_first(model, history):
    chat, alone = told(model, history), told(model, history)
    chat.send("And now?", 6, **QUANTISED)
    chat.regenerate(6)
    alone.send("And now?", 6)
    assert_same(chat, alone)


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
def test_a_quantised_reply_that_ends_in_another_way_than_the_template_ends_it(model, history):
    end = loaded()[1].eos_token_id
    chat = told(model, history)
    before = chat.fork()
    # The reply is one token, and its end has run.
    chat.send("And now?", 6, logits_processors=[Beginning([65, end])], **QUANTISED)
    before.read_exchange("And now?", chat.turns[-1].reply)
    assert chat.segments.ids == before.segments.ids
    # Four bits change what a token writes, but not much.
    assert all(mx.allclose(state, before.memory[layer], atol=0.2) for layer, state in chat.memory.items())
    chat.undo()
    before.undo()
    assert_same(chat, before)


@pytest.mark.slow
def test_later_turns_go_on_with_the_quantised_text_until_it_runs_again(model, tmp_path):
    chat = told(model)
    chat.send("And now?", 6, **QUANTISED)
    chat.send("Which word?", 6)
    assert is_quantised(chat)
    after_two = chat.fork()
    chat.send("Why?", 6)
    chat.undo()
    assert is_quantised(chat)
    assert_same(chat, after_two)
    chat.save(tmp_path / "chat.safetensors", save_kv=True)
    again = ChatSession.load(model, loaded()[1], tmp_path / "chat.safetensors")
    for each in (chat, again):
        for _ in range(2):
            each.undo()
        each.send("Which word?", 6)
    alone = told(model)
    alone.send("Which word?", 6)
    assert_same(chat, alone)
    assert_same(again, alone)
    assert not is_quantised(chat) and not is_quantised(again)
