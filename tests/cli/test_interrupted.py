"""How far an interrupted command came."""

import mlx.core as mx
import pytest

from mlx_deltamem import ChatSession
from mlx_deltamem.cli.interrupted import steps_done
from mlx_deltamem.cli.remembered import turn_of
from tests.sessions.test_session import loaded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("present", "wanted", "prompts", "expected"),
    [
        ("", "ab", "", 0),
        ("a", "ab", "", 1),
        ("a", "a", "", 0),
        ("a", "a", "P", 1),
        ("a", "aa", "", 1),
        ("aa", "aa", "", 0),
        ("ab", "ab", "", 0),
        ("aba", "ab", "", 1),
        ("b", "ab", "P", 0),
        ("abP", "ab", "PQ", 3),
        ("abP", "ab", "QP", 0),
        ("abP", "ab", "P", 0),
        ("abP", "abc", "P", 0),
        ("aP", "a", "", 0),
        ("aQ", "a", "P", 0),
        ("P", "", "PQ", 0),
        ("Pa", "ab", "", 1),
    ],
)
def test_steps_that_are_done(present, wanted, prompts, expected):
    """Small letters are texts to remember, capital ones are prompts."""
    chat = ChatSession(*loaded("qwen3_tsw_qo"))
    for step in present:
        if step.isupper():
            chat.read_exchange(step, "Yes.")
        else:
            chat.remember(step)
    texts = [turn_of(chat, step, step) for step in wanted]
    assert steps_done(chat, texts, list(prompts), "all") == expected
    if expected > len(wanted):
        assert steps_done(chat, texts, list(prompts), "none") == 0
    chat.memory = {layer: mx.zeros_like(state) for layer, state in chat.memory.items()}
    assert steps_done(chat, texts, list(prompts), "all") == 0
