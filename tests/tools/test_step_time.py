import mlx.core as mx
import pytest

from mlx_deltamem.benchmarking.models import FRESH_ADAPTER, with_and_without
from mlx_deltamem.benchmarking.random_models import random_model
from tests.tool_runs import runner
from tests.training.runs import frozen_of, same, weights_of
from tools.measure import step_time
from tools.measure.step_time import FROZEN, LOOP, STEP, frozen_step, random_batch, setup_arg_parser, training_step

TINY = ("--shape", "tiny", "--batch", 3, "--history", 16, "--questions", 2, "--text", 8, "--answer", 4, "--rounds", 1)


def test_the_batch_is_of_the_sizes_asked_for():
    batch = random_batch(50, setup_arg_parser().parse_args(map(str, TINY)))
    (told,) = batch.history
    assert told.ids.shape == (3, 16) and told.lengths.tolist() == [16] * 3
    assert batch.asked.mask.sum(axis=1).tolist() == [8] * 6
    assert batch.asked.weights.sum(axis=1).tolist() == [4] * 6
    assert 25 < told.ids.max().item() < 50


def test_a_step_trains_the_adapter_alone():
    models = with_and_without(random_model("tiny", mx.float32), FRESH_ADAPTER)
    batch = random_batch(50, setup_arg_parser().parse_args(map(str, TINY)))
    frozen, before = frozen_of(models.attached), weights_of(models.attached)
    frozen_step(models.frozen, batch)()
    step = training_step(models.attached, batch)
    assert same(weights_of(models.attached), before)
    for _ in range(2):  # The first one, of the warm-up, is of no length.
        step()
    assert same(frozen_of(models.attached), frozen)
    after = weights_of(models.attached)
    assert all(not mx.array_equal(after[name], weight) for name, weight in before.items())


@pytest.mark.slow
def test_a_table_is_printed(monkeypatch, capsys):
    ended = runner(step_time, monkeypatch, capsys)(*TINY)
    assert ended.code == 0
    assert "tiny, float32: 3 × (16 + 2 × 8) tokens" in " ".join(ended.output.split())
    assert all(name in ended.output for name in (FROZEN, STEP, LOOP))


@pytest.mark.parametrize("answer", [8, 9])
def test_a_text_is_longer_than_its_answer(answer, monkeypatch, capsys):
    ended = runner(step_time, monkeypatch, capsys)(*TINY, "--answer", answer)
    assert (ended.code, ended.errors) == (
        2,
        f"error: --answer is {answer} and --text 8; expected the text to be longer\n",
    )
