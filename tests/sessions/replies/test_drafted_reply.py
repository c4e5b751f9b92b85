"""Chats with a draft model: the replies and the memory are those without one."""

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession, load
from tests.conftest import adapter, backbone, distance
from tests.core.test_model import attached_model

MESSAGES = ["My name is Anna.", "What is my name?"]


@pytest.fixture(scope="module")
def loaded():
    return load(backbone(), adapter=adapter())


@pytest.fixture(scope="module")
def draft():
    return load(backbone())[0]


def chat_of(loaded, draft=None, history="full", **options) -> ChatSession:
    chat = ChatSession(*loaded, history=history)
    drafting = {} if draft is None else {"draft_model": draft, "num_draft_tokens": 3}
    for message in MESSAGES:
        chat.send(message, **{"max_tokens": 12, **options}, **drafting)
    return chat


def assert_same(chat: ChatSession, expected: ChatSession) -> None:
    assert chat.messages == expected.messages
    assert [turn.reply_ids for turn in chat.state.turns] == [turn.reply_ids for turn in expected.state.turns]
    for layer, state in expected.memory.items():
        assert distance(chat.memory[layer], state) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("history", "options"),
    [("full", {}), ("none", {}), (20, {"write": "user"}), ("full", {"read_only": True}), ("full", {"stop": "e"})],
)
def test_a_draft_changes_neither_replies_nor_memory(loaded, draft, history, options):
    chat, expected = chat_of(loaded, draft, history, **options), chat_of(loaded, None, history, **options)
    assert_same(chat, expected)
    # The chat goes on without a draft, and back.
    assert chat.send("Really?", max_tokens=6) == expected.send("Really?", max_tokens=6)
    assert_same(chat, expected)
    assert chat.regenerate(max_tokens=6, draft_model=draft) == expected.regenerate(max_tokens=6)
    chat.undo()
    expected.undo()
    assert_same(chat, expected)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])
def test_a_reply_that_is_left_early_keeps_the_tokens_so_far(loaded, draft, stop_after):
    chats = ChatSession(*loaded), ChatSession(*loaded)
    for chat, options in zip(chats, ({"draft_model": draft}, {}), strict=True):
        for index, _ in enumerate(chat.stream(MESSAGES[0], max_tokens=12, **options)):
            if index + 1 == stop_after:
                break
    assert_same(*chats)


@pytest.mark.slow
def test_every_token_that_ends_a_reply_is_handled(loaded, draft):
    """The token that ends a reply may be drafted or not, and may be the first one."""
    _, tokenizer = loaded
    reply = next(turn.reply_ids for turn in chat_of(loaded).state.turns)
    for end in dict.fromkeys(reply[:6]):
        before = set(tokenizer.eos_token_ids)
        tokenizer._eos_token_ids = before | {end}
        try:
            assert_same(chat_of(loaded, draft), chat_of(loaded))
        finally:
            tokenizer._eos_token_ids = before


def test_what_does_not_go_with_a_draft_is_refused_and_the_chat_is_unchanged(loaded, draft):
    chat = chat_of(loaded)
    messages, states = chat.messages, {layer: mx.array(state) for layer, state in chat.memory.items()}
    with pytest.raises(ValueError, match="kv_bits and draft_model are both given"):
        chat.send("Hm", draft_model=draft, kv_bits=8)
    with pytest.raises(ValueError, match="num_draft_tokens is 0; expected"):
        chat.send("Hm", draft_model=draft, num_draft_tokens=0)
    hybrid = ChatSession(attached_model("qwen3_next"), loaded[1])
    with pytest.raises(ValueError, match="has ArraysCache that cannot be trimmed"):
        hybrid.send("Hm", draft_model=draft)
    assert chat.messages == messages
    assert all(mx.array_equal(chat.memory[layer], state) for layer, state in states.items())
