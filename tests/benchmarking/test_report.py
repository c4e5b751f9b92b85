"""The work of a benchmark, on tiny models. Nothing here depends on how long it takes."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from mlx_deltamem import memory
from mlx_deltamem.benchmarking import workloads
from mlx_deltamem.benchmarking.measure import Bench
from mlx_deltamem.benchmarking.models import (
    DELTA_MEM,
    FRESH_ADAPTER,
    FROZEN,
    FROZEN_AGAIN,
    READ_ONLY,
    VARIANTS,
    Models,
    with_and_without,
)
from mlx_deltamem.benchmarking.paired import Sample
from mlx_deltamem.benchmarking.random_models import random_model
from mlx_deltamem.benchmarking.shapes import SHAPES
from mlx_deltamem.benchmarking.workloads import Workload, workload
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.model import is_attached
from mlx_deltamem.core.use import is_writing
from tests.conftest import adapter
from tests.families import tiny_model

BATCHES = [1, 3]


@pytest.fixture(scope="module")
def models() -> Models:
    return with_and_without(random_model("tiny", mx.float32), FRESH_ADAPTER)


def work_of(batch: int, length: int = 9, tokens: int = 4) -> Workload:
    return workload(mx.random.randint(0, 64, (batch, length)), tokens, prefill_step_size=4)


def arrays(caches: list[PromptCache]) -> list[mx.array]:
    flat = tree_flatten([entry.state for cache in caches for entry in cache])
    return [mx.array(value) for _, value in flat if isinstance(value, mx.array)]


def same(one: list[mx.array], other: list[mx.array]) -> bool:
    return len(one) == len(other) and all(mx.array_equal(a, b).item() for a, b in zip(one, other, strict=True))


@pytest.fixture
def timed_calls(models, monkeypatch) -> list[tuple[int, int]]:
    """The shapes of the tokens in calls of the frozen model that are timed."""
    calls, running = [], []
    call = type(models.frozen).__call__

    def counting(self: nn.Module, tokens: mx.array, *args: object, **kwargs: object) -> mx.array:
        calls.extend(running and [tokens.shape])
        return call(self, tokens, *args, **kwargs)

    @contextmanager
    def clock() -> Iterator[Sample]:
        running.append(True)
        yield Sample()
        running.clear()

    monkeypatch.setattr(type(models.frozen), "__call__", counting)
    monkeypatch.setattr(workloads, "measured", clock)
    return calls


@pytest.mark.parametrize("batch", BATCHES)
def test_the_whole_prompt_is_timed(models, timed_calls, batch):
    work_of(batch).prefill(models.frozen)
    assert timed_calls[:3] == [(batch, 4), (batch, 4), (batch, 1)]
    # A batch begins its second token before it returns the first one.
    assert timed_calls[3:] == ([] if batch == 1 else [(batch, 1)])


@pytest.mark.parametrize("batch", BATCHES)
def test_one_step_is_timed_for_each_token(models, timed_calls, batch):
    work = work_of(batch)
    context = work.context(models.frozen)
    work.decode(models.frozen, context)
    assert timed_calls == [(batch, 1)] * work.generation_tokens


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["frozen", "attached"])
def test_decoding_leaves_its_context_as_it_is(models, batch, kind):
    model, work = getattr(models, kind), work_of(batch)
    context = work.context(model)
    assert len(context) == batch
    before = arrays(context)
    for _ in range(2):
        work.decode(model, context)
        assert same(arrays(context), before)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_context_holds_the_prompt(models, batch):
    work = work_of(batch)
    for row, cache in zip(work.prompts, work.context(models.attached), strict=True):
        alone = models.attached.make_cache()
        models.attached(row[None], cache=alone)
        length = work.prompts.shape[1]
        # The rows of a batch have read the token after it too.
        assert cache[0].offset == length + (batch > 1)
        assert mx.allclose(cache[0].keys[..., :length, :], alone[0].keys[..., :length, :], atol=1e-5)
        assert all(state.any() for state in memory(cache).values())


@pytest.mark.slow
def test_the_backbone_is_left_alone(models):
    model = random_model("tiny", mx.float32)
    tokens = mx.array([[1, 2, 3]])
    logits = model(tokens)
    mx.eval(logits)
    gc.collect()
    memory_before = mx.get_active_memory()
    pair = with_and_without(model, FRESH_ADAPTER)
    Bench(pair, 1, warm_up=False).decode(work_of(1))
    assert pair.frozen is model
    assert not is_attached(model)
    assert is_attached(pair.attached)
    assert mx.array_equal(model(tokens), logits)
    # Only the adapter was added: the copy shares the weights of the backbone.
    weights = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    assert 0 < pair.adapter_bytes <= mx.get_active_memory() - memory_before < weights / 2


def test_a_fresh_adapter_has_an_effect(models):
    tokens = mx.array([[1, 2, 3]])
    assert not mx.allclose(models.frozen(tokens), models.attached(tokens), atol=1e-3)


def test_an_adapter_that_does_not_fit_is_refused():
    model = tiny_model("qwen3")
    with pytest.raises(ValueError, match="does not fit"):
        with_and_without(model, adapter())
    assert not is_attached(model)


def test_each_variant_runs_as_it_is_called(models):
    seen = {}

    def look(model: nn.Module) -> Sample:
        seen[variant] = is_writing(model) if is_attached(model) else None
        return Sample()

    for variant in VARIANTS:
        models.run(variant, look)
    assert seen == {FROZEN: None, FROZEN_AGAIN: None, DELTA_MEM: True, READ_ONLY: False}


def test_comparisons(models):
    work = work_of(3, length=5, tokens=2)
    prefill, decode = Bench(models, 2).prefill(work), Bench(models, 2).decode(work)
    for comparison, tokens in ((prefill, 15), (decode, 6)):
        assert (comparison.prompt_tokens, comparison.tokens) == (5, tokens)
        assert {name: len(samples) for name, samples in comparison.samples.items()} == dict.fromkeys(VARIANTS, 2)
        for quantity in comparison.quantities:
            assert comparison.ratio(FROZEN, quantity).quartiles.median == 1
            assert comparison.ratio(DELTA_MEM, quantity).quartiles.median > 0
    assert "peak_bytes" in prefill.quantities
    assert "peak_bytes" not in decode.quantities


def test_the_adapter_beside_the_frozen_backbone_does_not_count(models):
    gc.collect()
    # As large as the whole backbone, so that the difference is clear.
    large = Models(models.frozen, models.attached, 1_000_000)
    peaks = [Bench(each, 1, warm_up=False).prefill(work_of(1)).values(FROZEN, "peak_bytes") for each in (models, large)]
    assert peaks[0][0] - peaks[1][0] == pytest.approx(1_000_000 - models.adapter_bytes, abs=300_000)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [FROZEN, DELTA_MEM, READ_ONLY])
@pytest.mark.parametrize("batch", BATCHES)
def test_reading_a_prompt_makes_no_logits_before_the_last_ones(variant, batch):
    vocabulary, length = 50_000, 512
    model = qwen3.Model(qwen3.ModelArgs.from_dict(SHAPES["tiny"] | {"vocab_size": vocabulary}))
    large = with_and_without(model, FRESH_ADAPTER)
    resident = mx.get_active_memory()
    # In one step, so that a step's logits are those of all positions.
    work = workload(mx.random.randint(0, vocabulary, (batch, length)), 1)
    peak = large.run(variant, work.prefill).peak_bytes
    assert peak - resident < batch * length * vocabulary * 4 / 2


@pytest.mark.parametrize(("shape", "parameters"), [("qwen3-4b", 4_022_468_096), ("qwen3-0.6b", 596_049_920)])
def test_shapes_are_of_the_published_size(shape, parameters):
    # Nothing is computed: the weights are not asked for.
    model = qwen3.Model(qwen3.ModelArgs.from_dict(SHAPES[shape]))
    assert sum(value.size for _, value in tree_flatten(model.parameters())) == parameters


@pytest.mark.parametrize("bits", [None, 4])
def test_random_models_are_of_the_type_that_was_asked_for(bits):
    model = random_model("tiny", mx.bfloat16, bits)
    assert isinstance(model.layers[0].self_attn.q_proj, nn.QuantizedLinear) == (bits is not None)
    logits = model(mx.array([[1, 2, 3]]))
    assert logits.dtype == mx.bfloat16
    assert mx.isfinite(logits).all()
