import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

from mlx_deltamem.training.optimizer import clipped_optimizer
from mlx_deltamem.training.settings import OPTIMIZERS, Schedule


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = mx.zeros(3), mx.zeros((2, 2))


GRADIENTS = {"a": mx.array([3.0, 0.0, 0.0]), "b": mx.array([[0.0, 4.0], [0.0, 0.0]])}


@pytest.mark.parametrize(("largest", "share"), [(1.0, 0.2), (5.1, 1.0), (100.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(largest, share):
    model, optimizer = Two(), clipped_optimizer("adamw", 1e-2, 10, 0, 0.0, largest)
    optimizer.update(model, GRADIENTS)
    assert optimizer.gradient_norm == pytest.approx(5)
    # AdamW's mean of the gradients has a tenth of the first ones.
    for name in ("a", "b"):
        assert mx.allclose(optimizer.state[name]["m"], 0.1 * share * GRADIENTS[name], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_the_step_of_mlx_with_clipped_gradients(name):
    ours, optimizer = Two(), clipped_optimizer(name, 1e-2, 10, 0, 0.0, 1.0)
    optimizer.update(ours, GRADIENTS)
    assert optimizer.gradient_norm == pytest.approx(5)
    other = {
        "adamw": optim.AdamW(1e-2, weight_decay=0.0, bias_correction=True),
        "adam": optim.Adam(1e-2, bias_correction=True),
        "muon": optim.Muon(1e-2, weight_decay=0.0),
        "sgd": optim.SGD(1e-2),
        "adafactor": optim.Adafactor(1e-2, relative_step=False),
    }[name]
    theirs = Two()
    other.update(theirs, {key: gradient / 5 for key, gradient in GRADIENTS.items()})
    for key in GRADIENTS:
        assert mx.allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-7)
        assert mx.abs(ours[key]).max() > 0


def test_an_optimizer_without_decay_refuses_it():
    with pytest.raises(ValueError, match=r"--weight-decay is 0\.1, and adam has none; use --optimizer adamw"):
        Schedule(optimizer="adam", weight_decay=0.1)
    Schedule(optimizer="sgd", weight_decay=0.1)


def test_the_norm_of_gradients_that_are_not_finite():
    model, optimizer = Two(), clipped_optimizer("adamw", 1e-2, 10, 0, 0.0, 1.0)
    assert optimizer.gradient_norm == 0
    optimizer.update(model, {"a": mx.array([math.inf, 0.0, 0.0]), "b": mx.zeros((2, 2))})
    assert not math.isfinite(optimizer.gradient_norm)


@pytest.mark.parametrize(("updates", "warmup"), [(20, 4), (20, 0), (5, 20), (1, 1), (70, 7)])
def test_the_learning_rate_rises_and_falls(updates, warmup):
    model, optimizer = Two(), clipped_optimizer("adamw", 1e-2, updates, warmup, 0.0, 1.0)
    rates = []
    for _ in range(updates):
        optimizer.update(model, GRADIENTS)
        rates.append(optimizer.learning_rate.item())
    rising, falling = rates[: warmup + 1], rates[warmup + 1 :]
    # As in the reference, the first update has a rate of 0.
    assert rising == pytest.approx([1e-2 * step / max(warmup, 1) for step in range(len(rising))] if warmup else [1e-2])
    assert falling == sorted(falling, reverse=True)
    if len(falling) > 2:
        assert falling[-1] < 0.1 * 1e-2
        assert min(falling) > 0


def test_weights_decay_with_the_rate():
    model, optimizer = Two(), clipped_optimizer("adamw", 1e-2, 10, 0, 0.5, 1.0)
    model.a = mx.ones(3)
    optimizer.update(model, {"a": mx.zeros(3), "b": mx.zeros((2, 2))})
    assert mx.allclose(model.a, mx.full(3, 1 - 1e-2 * 0.5))
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {mx.float32}


def test_the_default_warm_up_is_a_tenth_of_the_updates_rounded_up():
    assert [Schedule(iters=iters).warmup_updates for iters in (2, 10, 11)] == [1, 1, 2]
    assert Schedule(iters=40, grad_accumulation_steps=4).warmup_updates == 1
    assert Schedule(iters=11, warmup=0).warmup_updates == 0


def test_a_run_of_one_update_learns():
    assert Schedule(iters=1).warmup_updates == Schedule(iters=4, grad_accumulation_steps=4).warmup_updates == 0
    model, optimizer = Two(), clipped_optimizer("adamw", 1e-2, 1, 0, 0.0, 1.0)
    before = model.a
    optimizer.update(model, {"a": mx.ones(3), "b": mx.zeros((2, 2))})
    assert mx.abs(model.a - before).min() > 1e-3


@pytest.mark.parametrize(("warmup", "steps"), [(20, 1), (21, 1), (5, 4)])
def test_a_warm_up_that_never_ends_is_refused(warmup, steps):
    with pytest.raises(
        ValueError, match=f"--warmup is {warmup}, and the run makes {20 // steps} updates; expected fewer"
    ):
        Schedule(iters=20, warmup=warmup, grad_accumulation_steps=steps)
    Schedule(iters=20, warmup=20 // steps - 1, grad_accumulation_steps=steps)
