"""Tests of an adapter: the mean loss of the answer tokens, with the memory and without."""

import math
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_deltamem import load_adapter, make_prompt_cache, save_adapter
from mlx_deltamem.core.model import current_adapter
from mlx_deltamem.core.use import read_only
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.testing import measure_test, put_back
from tests.conftest import randomise
from tests.training.cases import as_read, towards
from tests.training.runs import same, toy_episodes, toy_model, weights_of

EPISODES = toy_episodes(5)


@pytest.fixture(scope="module")
def model():
    model = toy_model()
    randomise(model, 0.2)
    return model


def losses(model: nn.Module, episode: Episode, told: bool) -> list[float]:
    """The loss of each answer token of the only question, computed with the model itself."""
    (question,) = episode.questions
    cache = make_prompt_cache(model)
    if told:
        model(mx.array([episode.history.ids]), cache=cache)
    fresh = make_prompt_cache(model)
    # The text is dropped, and the memory stays.
    fresh[-1].cache = cache[-1].cache
    with read_only(model):
        logits = model(mx.array([question.ids]), cache=fresh).astype(mx.float32)[0]
    found = nn.losses.cross_entropy(logits[:-1], mx.array(question.ids[1:]))
    return found.tolist()[question.answer - 1 :]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_loss_is_that_of_the_answers_read_with_the_memory(model, batch_size):
    found = measure_test(model, EPISODES, batch_size)
    for told, mean in ((True, found.loss), (False, found.frozen_loss)):
        of_tokens = [loss for episode in EPISODES for loss in losses(model, episode, told)]
        assert len(of_tokens) == found.tokens == 15
        # Sums of float32 in another order.
        assert mean == pytest.approx(sum(of_tokens) / 15, rel=1e-4)
    assert abs(found.loss - found.frozen_loss) > 1e-3
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.accuracy["questions"] == 5


def test_the_number_of_batches_is_limited(model):
    assert measure_test(model, EPISODES, 2, 2).tokens == 12
    assert measure_test(model, EPISODES, 2, 9).tokens == 15


def test_each_token_counts_once(model):
    heavy = [towards(EPISODES[0], "", 7.0), *EPISODES[1:]]
    assert measure_test(model, heavy, 5) == measure_test(model, EPISODES, 5)


def test_questions_that_are_written_are_written(model):
    written = [as_read(each) for each in EPISODES]
    found, usual = measure_test(model, written, 5), measure_test(model, EPISODES, 5)
    assert found.frozen_loss == pytest.approx(usual.frozen_loss, rel=1e-5)
    assert found.loss != usual.loss


def test_questions_with_the_frozen_model_as_their_target_have_no_loss(model):
    frozen = [towards(each, "frozen") for each in EPISODES]
    found = measure_test(model, frozen, 2)
    assert math.isnan(found.loss) and found.tokens == 0
    assert 0 <= found.accuracy["alike"] <= 1 and "answers" not in found.accuracy
    mixed = measure_test(model, [*frozen[:2], *EPISODES[2:]], 2)
    assert mixed.loss == pytest.approx(measure_test(model, EPISODES[2:], 3).loss, rel=1e-4)


def test_a_large_loss_has_an_infinite_perplexity(model):
    found = replace(measure_test(model, EPISODES[:1], 1), loss=1e4)
    assert found.perplexity == math.inf


def test_the_stored_adapter_is_put_back(tmp_path):
    model = toy_model()
    adapter = current_adapter(model)
    rounded = {name: weight.astype(mx.bfloat16) for name, weight in adapter.weights.items()}
    save_adapter(replace(adapter, weights=rounded), tmp_path)
    stored = weights_of(model)
    randomise(model, 0.2)
    put_back(model, tmp_path)
    expected = {name: weight.astype(mx.bfloat16).astype(mx.float32) for name, weight in stored.items()}
    assert same(weights_of(model), expected)
    assert load_adapter(tmp_path).config == current_adapter(model).config
