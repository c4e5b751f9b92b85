"""First weights that are fitted to the frozen backbone."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_deltamem import DeltaMemConfig, attach, current_adapter, make_prompt_cache, memory, read_only, set_memory
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.core.shapes import parameter_shapes
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.fit import fit_adapter, places_to_fit
from tests.families import tiny_model
from tests.training.cases import VOCABULARY

CONFIG = DeltaMemConfig(
    rank=6, alpha=6.0, couple_lambda=False, delta_heads=("q", "o"), key_shift=True, read_gate=True, output_init="zero"
)


def told_and_asked(seed: int) -> Episode:
    """An episode in which a value of two tokens follows the same two tokens where it is told and where it is asked."""
    generator = np.random.default_rng(seed)
    before, name, value, after, question = (generator.integers(0, VOCABULARY, n).tolist() for n in (4, 2, 2, 3, 3))
    history = [*before, *name, *value, *after]
    places = list(range(len(history)))
    asked = Question([*question, *name, *value], answer=4, value=(5, 7))
    return Episode(Segments(history, places, places), (asked,))


def fresh_model(config: DeltaMemConfig = CONFIG) -> nn.Module:
    model = tiny_model("qwen3")
    attach(model, config)
    return model


@pytest.mark.slow
def test_a_fitted_memory_stands_in_for_the_text():
    model, episodes = fresh_model(), [told_and_asked(seed) for seed in range(100)]
    places = places_to_fit(CONFIG, episodes, 80)
    assert len(places) == 80
    fit_adapter(model, places)
    memories = [written(model, episode) for episode in episodes]
    own = [likeness(model, episode, states) for episode, states in zip(episodes, memories, strict=True)]
    others = [likeness(model, episode, states) for episode, states in zip(episodes, memories[1:], strict=False)]
    # An untrained model's attention does not copy, so that only a part of it can be predicted; chance gives 0.
    assert np.mean(own) > 0.1
    assert np.mean(own) > np.mean(others) + 0.05


def written(model: nn.Module, episode: Episode) -> dict[int, mx.array]:
    """The memory after the history of an episode."""
    cache = make_prompt_cache(model)
    model(mx.array([episode.history.ids]), cache=cache)
    return memory(cache)


def likeness(model: nn.Module, episode: Episode, states: dict[int, mx.array]) -> float:
    """How much a memory changes the logits before a value as the text does: the cosine of the two changes."""
    history, (asked,) = episode.history.ids, episode.questions
    at = slice(asked.value[0] - 1, asked.value[1] - 1)
    remembering = make_prompt_cache(model)
    set_memory(remembering, states)
    with read_only(model):
        without = model(mx.array([asked.ids]), cache=make_prompt_cache(model))[0, at]
        in_view = model(mx.array([history + asked.ids]), cache=make_prompt_cache(model))[0, len(history) :][at]
        remembered = model(mx.array([asked.ids]), cache=remembering)[0, at]
    return cosine(remembered - without, in_view - without)


def cosine(one: mx.array, other: mx.array) -> float:
    return ((one * other).sum() / (mx.linalg.norm(one) * mx.linalg.norm(other))).item()


@pytest.mark.slow
def test_every_weight_has_its_shape_and_the_seed_decides_the_rest():
    episodes = [told_and_asked(seed) for seed in range(40)]
    fitted = []
    for seed in (0, 0, 1):
        model = fresh_model()
        fit_adapter(model, places_to_fit(CONFIG, episodes, 30, seed), seed)
        for attention in attached_attention(model).values():
            found = {name: weight.shape for name, weight in attention.delta_mem.items()}
            shapes = parameter_shapes(CONFIG, attention.delta_mem.shape)
            assert found == {name: shapes[name] for name in found}
            assert all(mx.isfinite(weight).all() for weight in attention.delta_mem.values())
        fitted.append(current_adapter(model).weights)
    assert all(mx.array_equal(fitted[0][name], fitted[1][name]) for name in fitted[0])
    assert not all(mx.array_equal(fitted[0][name], fitted[2][name]) for name in fitted[0])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"key_shift": False}, "--key-shift is False, expected True"),
        ({"couple_lambda": True}, "--couple-lambda is True, expected False"),
        ({"num_state_heads": 2}, "--num-state-heads is 2, expected 1"),
        ({"delta_heads": ("q",)}, "o in --delta-heads is False"),
    ],
)
def test_an_adapter_that_cannot_be_fitted_is_refused_by_the_option(changed, problem):
    with pytest.raises(ValueError, match=problem):
        places_to_fit(replace(CONFIG, **changed), [told_and_asked(0)], 1)


def test_questions_without_a_value_in_the_history_are_not_enough():
    episodes = [replace(told_and_asked(seed), history=Segments([1, 2, 3], [0, 1, 2], [0, 1, 2])) for seed in range(9)]
    with pytest.raises(ValueError, match="0 questions have a value that is in the history too"):
        places_to_fit(CONFIG, episodes, 5)
