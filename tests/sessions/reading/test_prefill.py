import mlx.core as mx
import pytest

from mlx_deltamem import make_prompt_cache, memory
from mlx_deltamem.sessions.reading.prefill import prefill, window
from mlx_deltamem.sessions.text.segments import Segments
from tests.conftest import distance
from tests.families import tiny_model
from tests.sessions.test_session import every_kind, loaded

TOKENS = 23
SPANS = [-1] * 4 + [0] * 9 + [2] * 3 + [1] * 5 + [-1] * 2
SEGMENTS = Segments(list(range(3, 3 + TOKENS)), SPANS, SPANS)


def run(kind: str, step: int, writing: bool = True) -> tuple[mx.array, dict[int, mx.array]]:
    model, _ = loaded(kind)
    cache = make_prompt_cache(model)
    return prefill(model, cache, SEGMENTS, writing, step), memory(cache)


@every_kind
@pytest.mark.parametrize("step", [1, 4, 22, 23])
def test_the_step_has_no_effect(kind, step):
    logits, states = run(kind, step)
    expected_logits, expected_states = run(kind, 2048)
    assert distance(logits, expected_logits) <= 1e-4
    assert all(distance(state, expected_states[layer]) <= 2e-5 for layer, state in states.items())


def test_reading_only():
    _, states = run("qwen3_ssw_msg", 4, writing=False)
    assert not any(state.any() for state in states.values())


def test_only_one_positions_logits_are_computed(monkeypatch):
    model, _ = loaded()
    lengths = []
    original = type(model).__call__

    def watched(self, tokens, *args, **kwargs):
        logits = original(self, tokens, *args, **kwargs)
        lengths.append(logits.shape[1])
        return logits

    monkeypatch.setattr(type(model), "__call__", watched)
    prefill(model, make_prompt_cache(model), SEGMENTS)
    assert lengths == [TOKENS - 1, 1]
    assert prefill(model, make_prompt_cache(model), SEGMENTS, want_logits=False) is None
    assert lengths[2:] == [TOKENS]


def test_windows():
    assert window(tiny_model("qwen3")) == 512
    assert window(tiny_model("mistral3")) == 512
