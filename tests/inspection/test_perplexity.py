"""The perplexity of any text: of the frozen model, and with the memory written, carried and only read."""

import math

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_deltamem import load, make_prompt_cache
from mlx_deltamem.core.use import read_only
from mlx_deltamem.evaluation.tasks.health import Checkup
from mlx_deltamem.inspection import perplexity
from mlx_deltamem.inspection.perplexity import Perplexities, text_perplexities
from tests.conftest import backbone
from tests.sessions.test_session import loaded

TEXT = "My name is Anna and I keep bees in Norway. " * 3


def found(kind: str = "qwen3_tsw_qo", text: str = TEXT) -> Perplexities:
    model, tokenizer = loaded(kind)
    measured = text_perplexities(model, tokenizer, tokenizer.encode(text))
    assert measured is not None
    return measured


def of_logits(logits: mx.array, ids: list[int]) -> float:
    losses = nn.losses.cross_entropy(logits[0, :-1].astype(mx.float32), mx.array(ids[1:]))
    return math.exp(losses.mean().item())


@pytest.mark.parametrize("kind", ["qwen3_tsw_qo", "qwen3_msw4", "qwen3_ssw_msg"])
def test_the_numbers_are_those_of_the_model_in_one_call(kind):
    measured = found(kind)
    model, tokenizer = loaded(kind)
    ids = tokenizer.encode(TEXT)
    assert measured.tokens == len(ids) - 1
    carried = Checkup(model, tokenizer, 1, 0).carried_states()
    for states, name in ((None, "written"), (carried, "carried_written")):
        cache = make_prompt_cache(model)
        if states is not None:
            cache[-1].cache = states
        assert getattr(measured, name) == pytest.approx(of_logits(model(mx.array([ids]), cache=cache), ids), rel=1e-4)
    cache = make_prompt_cache(model)
    cache[-1].cache = carried
    with read_only(model):
        expected = of_logits(model(mx.array([ids]), cache=cache), ids)
    assert measured.carried_read == pytest.approx(expected, rel=1e-4)
    frozen, _ = load(backbone())
    assert measured.frozen == pytest.approx(of_logits(frozen(mx.array([ids])), ids), rel=1e-4)


def test_a_long_text_is_read_in_parts(monkeypatch):
    whole = found()
    monkeypatch.setattr(perplexity, "_STEP", 7)
    parts = found()
    for name in ("frozen", "written", "carried_read", "carried_written"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-4)


def test_one_token_predicts_nothing():
    model, tokenizer = loaded()
    assert text_perplexities(model, tokenizer, [5]) is None
    measured = text_perplexities(model, tokenizer, [5, 6])
    assert measured is not None and measured.tokens == 1
