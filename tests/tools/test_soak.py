"""A long chat in which turns are taken back, edited, forked, saved and loaded."""

import pytest

from mlx_deltamem import ChatSession, load
from tests.conftest import adapter, backbone
from tools.measure.soak import SHARES, Soak, same_as_new


@pytest.mark.slow
def test_a_long_chat_is_as_if_it_was_typed_once(tmp_path):
    model, tokenizer = load(backbone(), adapter())
    soak = Soak(ChatSession(model, tokenizer, history="none"), tmp_path / "chat.safetensors", reply_tokens=3, seed=1)
    for _ in range(60):
        soak.step()
    assert soak.done.keys() == SHARES.keys()
    assert same_as_new(soak.chat, reply_tokens=3)
    # The comparison can fail.
    soak.chat.remember("One more text.")
    assert not same_as_new(soak.chat, reply_tokens=3)
