from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_deltamem import attach, detach, make_prompt_cache, memory
from mlx_deltamem.training.logits import head_at_positions, logits_at
from tests.conftest import distance
from tests.core.test_model import CONFIGS, attached_model, every_family, random_ids
from tests.families import tiny_model

POSITIONS = mx.array([[4, 5, 16], [0, 16, 9]])


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def head_rows(model: nn.Module, run) -> list[int]:
    """The number of positions in each call of the head."""
    rows, embedding = [], model.model.embed_tokens
    original = type(embedding)

    class Counting(original):
        def as_linear(self, x: mx.array) -> mx.array:
            rows.append(x.shape[1])
            return super().as_linear(x)

    embedding.__class__ = Counting
    try:
        run()
    finally:
        embedding.__class__ = original
    return rows


@every_family
@pytest.mark.parametrize("attached", [True, False])
def test_the_logits_are_those_of_the_whole_text(family, attached):
    # Some have a separate head (phi3, gpt_oss, gemma3_text), others use the embedding.
    model = attached_model(family) if attached else tiny_model(family)
    ids, before = random_ids(), classes(model)
    logits = model(ids, cache=make_prompt_cache(model))
    expected = mx.take_along_axis(logits, POSITIONS[..., None], axis=1)
    without = logits_at(model, ids, make_prompt_cache(model), POSITIONS)
    with head_at_positions(model):
        found = logits_at(model, ids, make_prompt_cache(model), POSITIONS)
        whole = model(ids, cache=make_prompt_cache(model))
    assert classes(model) == before
    assert distance(without, expected) == 0
    assert distance(found, expected) <= 1e-6
    assert distance(whole, logits) == 0


def test_the_head_runs_at_the_positions_only():
    model, ids = attached_model(), random_ids()

    def run() -> None:
        logits_at(model, ids, make_prompt_cache(model), POSITIONS)

    assert head_rows(model, run) == [17]
    with head_at_positions(model):
        assert head_rows(model, run) == [3]
        with head_at_positions(model):
            assert head_rows(model, run) == [3]
        assert head_rows(model, run) == [3]
    assert head_rows(model, run) == [17]


def test_gradients_and_compiled_functions():
    model, ids = attached_model(), random_ids()
    states = {layer: mx.random.normal((2, 1, 8, 8)) for layer in memory(make_prompt_cache(model))}
    weight = model.model.layers[0].self_attn.delta_mem["delta_o_proj"]

    def loss(weight: mx.array) -> mx.array:
        model.model.layers[0].self_attn.delta_mem.delta_o_proj = weight
        cache = make_prompt_cache(model)
        set_memory_lazily(cache, states)
        return logits_at(model, ids, cache, POSITIONS).square().sum()

    expected = mx.grad(loss)(weight)
    with head_at_positions(model):
        found, compiled = mx.grad(loss)(weight), mx.compile(mx.grad(loss))(weight)
    scale = mx.abs(expected).max().item()
    assert distance(found, expected) <= 1e-5 * scale
    assert distance(compiled, expected) <= 1e-5 * scale


def set_memory_lazily(cache: list, states: dict[int, mx.array]) -> None:
    cache[-1].cache = [states[layer] for layer in range(len(cache[-1].cache))]


def test_the_model_is_unchanged_after_an_error():
    model, ids = attached_model(), random_ids()
    before, logits = classes(model), model(ids)
    with pytest.raises(ValueError, match="prompt cache has 1 entries"), head_at_positions(model):
        logits_at(model, ids, [None], POSITIONS)
    assert classes(model) == before
    # A call without positions gives all logits.
    with head_at_positions(model):
        assert model(ids).shape == logits.shape


def test_a_model_without_an_inner_module_runs_its_head_everywhere():
    inner = tiny_model("qwen3")

    class Flat(nn.Module):
        """A model that has its layers itself."""

        def __init__(self):
            super().__init__()
            self.layers = inner.model.layers

        def __call__(self, ids: mx.array, cache: list | None = None) -> mx.array:
            return inner(ids, cache)

    model, ids = Flat(), random_ids()
    with head_at_positions(model):
        found = logits_at(model, ids, make_prompt_cache(inner), POSITIONS)
    assert distance(found, mx.take_along_axis(inner(ids), POSITIONS[..., None], axis=1)) <= 1e-6


def test_attaching_and_detaching_within():
    model, ids = tiny_model("llama"), random_ids()
    expected = mx.take_along_axis(model(ids), POSITIONS[..., None], axis=1)
    before = classes(model)
    with head_at_positions(model):
        attach(model, CONFIGS["TSW"])
        assert distance(logits_at(model, ids, make_prompt_cache(model), POSITIONS), expected) <= 1e-6
        detach(model)
    assert classes(model) == before


def test_threads_do_not_disturb_each_other():
    model, ids = attached_model(), random_ids()
    logits = model(ids, cache=make_prompt_cache(model))
    few = mx.array([[3], [16]])
    expected = {rows: mx.take_along_axis(logits, rows[..., None], axis=1) for rows in (POSITIONS, few)}
    mx.eval(ids, logits, list(expected), list(expected.values()))
    before, barrier = classes(model), Barrier(3)

    def run(rows: mx.array | None) -> float:
        """The largest error of some calls, at some positions or in texts as ever."""
        barrier.wait()
        largest = 0.0
        with mx.stream(mx.new_stream(mx.cpu)):
            for _ in range(8):
                if rows is None:
                    error = distance(model(ids, cache=make_prompt_cache(model)), logits)
                else:
                    with head_at_positions(model):
                        error = distance(logits_at(model, ids, make_prompt_cache(model), rows), expected[rows])
                largest = max(largest, error)
        return largest

    with ThreadPoolExecutor(3) as threads:
        assert max(threads.map(run, (POSITIONS, few, None))) <= 1e-6
    assert classes(model) == before
