"""Fixtures of the tests of chats."""

import mlx.core as mx
import pytest

from tests.sessions.test_session import loaded


@pytest.fixture
def forwarded(monkeypatch) -> list[int]:
    """The lengths of all calls of the golden models."""
    lengths: list[int] = []
    # All golden models are of one class.
    model_class = type(loaded()[0])
    original = model_class.__call__

    def counting(self, tokens: mx.array, *args: object, **kwargs: object) -> mx.array:
        lengths.append(tokens.shape[1])
        return original(self, tokens, *args, **kwargs)

    monkeypatch.setattr(model_class, "__call__", counting)
    return lengths
