from dataclasses import replace

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem.training.checkpoint import Checkpoint, Progress, remove_unfinished_checkpoints
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.optimizer import ClippedOptimizer, clipped_optimizer
from mlx_deltamem.training.prepare import freeze_all_but_adapter
from mlx_deltamem.training.settings import OPTIMIZERS
from mlx_deltamem.training.terms import LossTerms
from tests.training.runs import CONFIG, same, toy_model, weights_of

PROGRESS = Progress(7, 1.25, 20, "0123")


def parts(config=CONFIG, name: str = "adamw") -> tuple[EpisodeModel, ClippedOptimizer]:
    model = toy_model(config)
    freeze_all_but_adapter(model)
    return EpisodeModel(model, LossTerms()), clipped_optimizer(name, 1e-2, 20, 4, 0.0, 1.0)


def updated(module: EpisodeModel, optimizer: ClippedOptimizer) -> None:
    optimizer.update(module, module.trainable_parameters())
    mx.eval(module.parameters(), optimizer.state)


def saved(folder, steps: int = 7) -> Checkpoint:
    module, optimizer = parts()
    updated(module, optimizer)
    checkpoint = Checkpoint.of(module, optimizer, replace(PROGRESS, iteration=steps))
    checkpoint.save(folder)
    return checkpoint


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    checkpoint = saved(tmp_path)
    found = Checkpoint.last(tmp_path)
    assert found.progress == PROGRESS
    assert same(dict(found.arrays), dict(checkpoint.arrays))
    kinds = {name.partition(".")[0] for name in found.arrays}
    assert kinds == {"adapter", "optimizer", "random"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_run_takes_the_same_steps(tmp_path, name):
    module, optimizer = parts(name=name)
    updated(module, optimizer)
    Checkpoint.of(module, optimizer, PROGRESS).save(tmp_path)
    expected = mx.random.uniform(shape=(3,))
    updated(module, optimizer)
    again, other_optimizer = parts(name=name)
    mx.random.seed(99)
    Checkpoint.last(tmp_path).restore(again, other_optimizer)
    assert mx.array_equal(mx.random.uniform(shape=(3,)), expected)
    assert other_optimizer.gradient_norm == optimizer.gradient_norm
    updated(again, other_optimizer)
    assert same(weights_of(again.model), weights_of(module.model))
    assert other_optimizer.learning_rate.item() == optimizer.learning_rate.item() == pytest.approx(1e-2 / 4)


def test_later_steps_do_not_change_a_checkpoint():
    module, optimizer = parts()
    updated(module, optimizer)
    checkpoint = Checkpoint.of(module, optimizer, PROGRESS)
    before = {name: mx.array(array) for name, array in checkpoint.arrays.items()}
    updated(module, optimizer)
    mx.random.uniform(shape=(3,))
    assert same(dict(checkpoint.arrays), before)


def test_the_last_two_are_kept(tmp_path):
    for steps in (5, 10, 15, 20):
        saved(tmp_path, steps)
    assert Checkpoint.last(tmp_path).progress.iteration == 20
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "0000015.safetensors",
        "0000020.safetensors",
    ]


def test_the_last_checkpoint_has_the_most_steps(tmp_path):
    saved(tmp_path, 9_999_999)
    saved(tmp_path, 10_000_000)
    assert Checkpoint.last(tmp_path).progress.iteration == 10_000_000


def test_no_checkpoint(tmp_path):
    assert Checkpoint.last(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "notes.safetensors").touch()
    assert Checkpoint.last(tmp_path) is None


def test_an_unfinished_file_is_not_a_checkpoint_and_is_removed(tmp_path):
    saved(tmp_path)
    left = tmp_path / "checkpoints" / ".0000009-0123abcd.safetensors"
    left.write_bytes(b"half")
    assert Checkpoint.last(tmp_path).progress.iteration == 7
    remove_unfinished_checkpoints(tmp_path)
    assert not left.exists()
    assert Checkpoint.last(tmp_path) is not None


def test_a_failed_write_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    saved(tmp_path, 5)

    def fail(path: str, *_: object) -> None:
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(OSError, match="no space left"):
        saved(tmp_path, 10)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0000005.safetensors"]


@pytest.mark.parametrize("kind", ["adapter", "optimizer"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_found(kind, number):
    checkpoint = Checkpoint.of(*parts(), PROGRESS)
    checkpoint.check()
    name = next((name for name in checkpoint.arrays if name.startswith(kind)), "optimizer.m")
    poisoned = replace(checkpoint, arrays={**checkpoint.arrays, name: mx.array([1.0, number])})
    with pytest.raises(ValueError, match=f"{name} holds NaN or Inf"):
        poisoned.check()


@pytest.mark.parametrize("changes", [{"rank": 8}, {"alpha": 8.0}, {"state_update_mode": "no_lambda"}], ids=str)
def test_a_checkpoint_of_another_adapter_is_refused(changes, tmp_path):
    saved(tmp_path)
    module, optimizer = parts(replace(CONFIG, **changes))
    before = weights_of(module.model)
    with pytest.raises(ValueError, match="the checkpoint after step 7 belongs to another adapter than this run"):
        Checkpoint.last(tmp_path).restore(module, optimizer)
    assert same(weights_of(module.model), before)


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "text", "swapped"])
def test_a_damaged_file_is_named(damage, tmp_path):
    saved(tmp_path)
    path = tmp_path / "checkpoints" / "0000007.safetensors"
    content = path.read_bytes()
    if damage == "swapped":
        # A valid safetensors file, but not a checkpoint.
        mx.save_safetensors(str(path), {"a": mx.zeros(3)})
    else:
        cut = {"empty": b"", "cut": content[:-1], "zeros": bytes(len(content)), "text": b"not a file" * 99}
        path.write_bytes(cut[damage])
    with pytest.raises(ValueError, match=r"0000007.safetensors is damaged \(.*\); delete it to begin again") as refused:
        Checkpoint.last(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_goes_unnoticed(tmp_path, data):
    checkpoint = saved(tmp_path)
    path = tmp_path / "checkpoints" / "0000007.safetensors"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 1500))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found = Checkpoint.last(tmp_path)
    except ValueError as error:
        assert "is damaged" in str(error)
    else:
        # Only the spelling of the header was changed.
        assert found.progress == checkpoint.progress
        assert same(dict(found.arrays), dict(checkpoint.arrays))
