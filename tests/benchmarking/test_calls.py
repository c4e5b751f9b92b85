"""Plain calls, one token after the other."""

import mlx.core as mx
import pytest

from mlx_deltamem.benchmarking.measure import Bench
from mlx_deltamem.benchmarking.models import DELTA_MEM, FRESH_ADAPTER, FROZEN, FROZEN_AGAIN, with_and_without
from mlx_deltamem.benchmarking.random_models import random_model
from mlx_deltamem.benchmarking.stopping import StoppingRule
from mlx_deltamem.benchmarking.workloads import workload


@pytest.fixture(scope="module")
def models():
    return with_and_without(random_model("tiny", mx.float32), FRESH_ADAPTER)


@pytest.mark.parametrize("rows", [1, 3])
def test_each_variant_is_called_once_in_each_round(models, rows):
    # The prompts are read in three pieces.
    work = workload(mx.random.randint(0, 512, (rows, 5)), generation_tokens=1, prefill_step_size=2)
    comparison = Bench(models, 4).calls(work)
    assert (comparison.phase, comparison.prompt_tokens, comparison.tokens) == ("decode", 5, rows)
    assert {name: len(samples) for name, samples in comparison.samples.items()} == dict.fromkeys(
        (FROZEN, FROZEN_AGAIN, DELTA_MEM), 4
    )
    assert all(sample.cpu_seconds > 0 for samples in comparison.samples.values() for sample in samples)


def test_a_rule_ends_the_rounds(models):
    rule = StoppingRule(DELTA_MEM, "cpu_seconds", 1.03, least=3, seconds=0.0)
    work = workload(mx.random.randint(0, 512, (1, 5)), generation_tokens=1)
    assert len(Bench(models, 100, rule=rule).calls(work).samples[DELTA_MEM]) == 3
