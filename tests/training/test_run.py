import math
import os
import shutil
import signal
import threading
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_deltamem import attach, load_adapter
from mlx_deltamem.commands.convert import convert
from mlx_deltamem.core.adapter import METRICS_FILE, SETTINGS_FILE, WEIGHTS_FILE
from mlx_deltamem.core.model import attached_attention, current_adapter
from mlx_deltamem.training import processes
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.keeper import RunStoppedError
from mlx_deltamem.training.monitor import Metrics, Monitor
from mlx_deltamem.training.terms import LossTerms
from tests.families import tiny_model
from tests.training.cases import as_read, episode, in_turns, towards
from tests.training.runs import (
    CONFIG,
    Watched,
    frozen_of,
    same,
    toy_episodes,
    toy_model,
    toy_run,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("ctrl_c")
EPISODES, HELD_OUT = toy_episodes(10), toy_episodes(3, seed=1)
PER_STEP = 2


TIMES = {"seconds", "tokens_per_second", "seconds_per_step", "peak_memory_gb"}


class KilledError(BaseException):
    """Stands for the end of the process: nothing after it runs."""


def kill() -> None:
    raise KilledError


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def checkpoints(folder) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The weights of unbroken runs, by the number of accumulated steps."""
    weights = {}
    for steps in (1, 2):
        run = toy_run(tmp_path_factory.mktemp("unbroken") / str(steps), grad_accumulation_steps=steps)
        run.train(EPISODES, HELD_OUT)
        weights[steps] = weights_of(run.model)
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("moments", [(1, 3), (6, 7), (11,)], ids=str)
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(accumulation, moments, unbroken, tmp_path):
    options = {"grad_accumulation_steps": accumulation, "save_every": 3}
    done = 0
    for moment in moments:
        run = toy_run(tmp_path / "run", **options)
        done = run.resume()
        with pytest.raises(KilledError):
            run.train(Watched(EPISODES, (moment - done) * PER_STEP, kill), HELD_OUT)
    last = toy_run(tmp_path / "run", **options)
    expected = (moments[-1] - 1) // 3 * 3
    assert last.resume() == expected - expected % accumulation
    last.train(EPISODES, HELD_OUT)
    assert same(weights_of(last.model), unbroken[accumulation])
    saved = load_adapter(tmp_path / "run").weights
    assert same(dict(saved), dict(current_adapter(last.model).weights))


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("held_out", [False, True])
def test_ctrl_c_saves_and_the_run_can_be_resumed(accumulation, held_out, unbroken, tmp_path):
    run = toy_run(tmp_path / "run", grad_accumulation_steps=accumulation, save_every=100)
    # The third held-out episode of the evaluation before step 5 is in a second batch.
    train = EPISODES if held_out else Watched(EPISODES, 6 * PER_STEP, interrupt)
    valid = Watched(HELD_OUT, 3 + 1, interrupt) if held_out else HELD_OUT
    with pytest.raises(KeyboardInterrupt):
        run.train(train, valid)
    # Another thread notices it, at most one step later.
    (saved,) = checkpoints(tmp_path / "run")
    assert saved in ((4, 5) if held_out else (6, 7, 8))
    assert saved % accumulation == 0
    assert f"after step {saved} is kept" in run.kept
    assert same(dict(load_adapter(tmp_path / "run").weights), dict(current_adapter(run.model).weights))
    again = toy_run(tmp_path / "run", grad_accumulation_steps=accumulation)
    assert again.resume() == saved
    again.train(EPISODES, HELD_OUT)
    assert same(weights_of(again.model), unbroken[accumulation])


@pytest.mark.slow
def test_sigterm_also_saves(unbroken, tmp_path):
    run = toy_run(tmp_path / "run", save_every=100)
    with pytest.raises(KeyboardInterrupt):
        run.train(Watched(EPISODES, 6 * PER_STEP, terminate), HELD_OUT)
    again = toy_run(tmp_path / "run")
    assert 0 < again.resume() < 12
    again.train(EPISODES, HELD_OUT)
    assert same(weights_of(again.model), unbroken[1])


def test_ctrl_c_before_the_first_update_saves_nothing(unbroken, tmp_path):
    run = toy_run(tmp_path / "run", grad_accumulation_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run.train(EPISODES, Watched(HELD_OUT, 1, interrupt))
    assert run.kept == "there is no checkpoint yet"
    assert not (tmp_path / "run" / "checkpoints").exists()
    again = toy_run(tmp_path / "run", grad_accumulation_steps=2)
    assert again.resume() == 0
    again.train(EPISODES, HELD_OUT)
    assert same(weights_of(again.model), unbroken[2])


def test_a_second_ctrl_c_after_the_last_step_has_no_effect(tmp_path):
    run = toy_run(tmp_path / "run")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.train(Watched(EPISODES, 2 * PER_STEP, interrupt), [])
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_a_run_in_another_thread_does_not_notice_ctrl_c(tmp_path):
    run = toy_run(tmp_path / "run", iters=2)
    mx.eval(run.model.parameters())
    thread = threading.Thread(target=run.train, args=(EPISODES, []))
    thread.start()
    thread.join()
    assert checkpoints(tmp_path / "run") == [2]


def test_resuming_a_finished_run_changes_nothing(unbroken, tmp_path):
    toy_run(tmp_path / "run").train(EPISODES, HELD_OUT)
    rows = Metrics(tmp_path / "run").rows()
    (tmp_path / "run" / WEIGHTS_FILE).unlink()
    again = toy_run(tmp_path / "run")
    assert again.resume() == 12
    again.train(EPISODES, HELD_OUT)
    assert same(weights_of(again.model), unbroken[1])
    assert load_adapter(tmp_path / "run").weights
    assert Metrics(tmp_path / "run").rows() == rows


@pytest.mark.slow
def test_a_resumed_run_has_the_metrics_of_an_unbroken_one(tmp_path):
    toy_run(tmp_path / "whole").train(EPISODES, HELD_OUT)
    broken = toy_run(tmp_path / "broken")
    with pytest.raises(KilledError):
        broken.train(Watched(EPISODES, 10 * PER_STEP, kill), HELD_OUT)
    (tmp_path / "broken" / METRICS_FILE).open("a").write('{"iteration": 9, "train_lo')
    for moment in (10, 11):
        again = toy_run(tmp_path / "broken")
        assert again.resume() == 8
        with pytest.raises(KilledError):
            again.train(Watched(EPISODES, (moment - 8) * PER_STEP, kill), HELD_OUT)
    last = toy_run(tmp_path / "broken")
    last.resume()
    last.train(EPISODES, HELD_OUT)
    whole, rows = untimed(tmp_path / "whole"), untimed(tmp_path / "broken")
    assert [row["iteration"] for row in whole] == [0, 3, 4, 6, 9, 9, 11, 12]
    assert [row["iteration"] for row in rows] == [row["iteration"] for row in whole]
    # The report of step 9 is of fewer steps, since the run was resumed after step 8.
    assert [row for row in rows if "val_loss" in row] == [row for row in whole if "val_loss" in row]
    assert rows[:4] == whole[:4] and rows[-1] == whole[-1]


def untimed(folder) -> list[dict[str, float]]:
    return [{name: row[name] for name in row if name not in TIMES} for row in Metrics(folder).rows()]


def test_the_metrics_of_a_run(tmp_path):
    run = toy_run(tmp_path / "run", iters=4, steps_per_report=3)
    run.train(EPISODES, HELD_OUT)
    rows = Metrics(tmp_path / "run").rows()
    looks, reports = [row for row in rows if "val_loss" in row], [row for row in rows if "train_loss" in row]
    assert [row["iteration"] for row in looks] == [0, 3]
    assert [row["iteration"] for row in reports] == [3, 4]
    assert set(looks[0]) == {"iteration", "val_loss", "val_questions", "val_answers", "val_values", "best"}
    assert looks[0]["val_questions"] == 3
    names = {"train_loss", "learning_rate", "gradient_norm", "write_gate", "state_norm"}
    assert set(reports[0]) == {"iteration", *names, *TIMES}
    # β starts at sigmoid(-1.5), 0.18. A state of 4 rows with this gate is neither 0 nor large.
    assert reports[0]["write_gate"] == pytest.approx(0.18, abs=0.02)
    assert 0 < reports[0]["state_norm"] < 50
    # The last report covers one step: 2 episodes with 16 tokens together.
    last = reports[1]
    assert last["tokens_per_second"] * last["seconds_per_step"] == pytest.approx(2 * 16, rel=1e-5)
    assert reports[0]["seconds"] < last["seconds"]


@pytest.mark.slow
def test_a_resumed_run_continues_the_learning_rate(tmp_path):
    rates = {}
    for name, moment in (("whole", 100), ("broken", 8)):
        run = toy_run(tmp_path / name, steps_per_report=1)
        try:
            run.train(Watched(EPISODES, moment * PER_STEP, kill), [])
        except KilledError:
            run = toy_run(tmp_path / name, steps_per_report=1)
            run.resume()
            run.train(EPISODES, [])
        rates[name] = [row["learning_rate"] for row in Metrics(tmp_path / name).rows()]
    assert rates["broken"] == rates["whole"]
    # A warm-up of a tenth, then the decay.
    assert rates["whole"][0] == 0
    assert max(rates["whole"]) == pytest.approx(1e-2)
    assert rates["whole"][3:] == sorted(rates["whole"][3:], reverse=True)


@pytest.mark.slow
def test_a_run_that_does_not_get_better_ends_early_and_can_go_on(tmp_path, capsys):
    episodes, held_out = toy_episodes(6), toy_episodes(2, seed=1)
    # With this rate nothing changes, so that only the first evaluation is the best so far.
    options = {"learning_rate": 1e-30, "steps_per_eval": 1, "save_every": 12}
    run = toy_run(tmp_path / "run", early_stopping=2, **options)
    with run.alone(False):
        run.train(episodes, held_out)
    assert "No better adapter in 2 evaluations: the run ends after step 3." in capsys.readouterr().out
    assert [row["iteration"] for row in Metrics(run.folder).rows() if "val_loss" in row] == [0, 1, 2]
    again = toy_run(tmp_path / "run", **options)
    with again.alone(True):
        assert again.resume() == 3
        again.train(episodes, held_out)
    assert toy_run(tmp_path / "run", **options).resume() == 12


def test_early_stopping_needs_held_out_data(tmp_path):
    with pytest.raises(ValueError, match="--early-stopping needs held-out data"):
        toy_run(tmp_path / "run", early_stopping=1).check(toy_episodes(2), [])


def test_other_data_is_refused(tmp_path):
    run = toy_run(tmp_path / "run")
    with pytest.raises(KilledError):
        run.train(Watched(EPISODES, 6 * PER_STEP, kill), [])
    rows = Metrics(tmp_path / "run").rows()
    again = toy_run(tmp_path / "run")
    again.resume()
    with pytest.raises(ValueError, match=r"the data of toy differs from the data that the run in .* was begun with"):
        again.train(EPISODES[:-1], [])
    assert Metrics(tmp_path / "run").rows() == rows


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_episodes_are_refused(count, tmp_path):
    run = toy_run(tmp_path / "run", batch_size=4)
    with pytest.raises(ValueError, match=f"there are {count} episodes, fewer than a batch of 4"):
        run.check(EPISODES[:count], [])


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path, monkeypatch):
    run = toy_run(tmp_path / "run")
    with run.alone(resumed=False), pytest.raises(RunStoppedError, match="another process is training in"):
        run.alone(resumed=True).__enter__()
    (run.folder / SETTINGS_FILE).touch()
    with run.alone(resumed=True):
        pass
    with pytest.raises(RunStoppedError, match=r"another process has begun a run in .*; name another"):
        run.alone(resumed=False).__enter__()
    # If the first of several processes is refused, all are.
    with monkeypatch.context() as patch, pytest.raises(RunStoppedError, match="see the first process"):
        patch.setattr(processes, "is_first", lambda: False)
        patch.setattr(processes, "any_of", lambda *_: [True])
        run.alone(resumed=True).__enter__()
    (run.folder / ".lock").unlink()
    (run.folder / ".lock").symlink_to("no-such-folder/x")
    with pytest.raises(RunStoppedError, match=r"cannot be locked \(.*\); name a folder on another disk"):
        run.alone(resumed=True).__enter__()


def test_adapters_that_write_means_cannot_write_questions(tmp_path):
    written = [as_read(each) for each in EPISODES]
    model = toy_model(replace(CONFIG, memory_write_granularity="message_mean"))
    run = toy_run(tmp_path / "run", model)
    for train, held_out in ((written, []), (EPISODES, written)):
        with pytest.raises(ValueError, match="by message_mean, and only an adapter that writes by token can"):
            run.check(train, held_out)
    turned = [replace(each, turns=(4, 4)) for each in EPISODES]
    with pytest.raises(ValueError, match="can write a history turn by turn; leave out --turn-by"):
        run.check(turned, [])


@pytest.mark.slow
def test_training_turn_by_turn(tmp_path):
    terms = LossTerms(sparsity=0.1, sparsity_pass="write", contrast_corrupted=0.1, teacher_kl=0.1)
    run = toy_run(tmp_path / "run", iters=4, warmup=0, terms=terms)
    before = weights_of(run.model)
    plain = [episode(8, (8, 3), seed=seed) for seed in range(4)]
    turned = [in_turns(each, 3, 5) for each in plain]
    run.train([*plain, *turned], [plain[0], turned[0]])
    assert moved(before, weights_of(run.model))
    again = toy_run(tmp_path / "again", iters=4, warmup=0, terms=terms)
    again.train([*plain, *plain], [])
    assert moved(weights_of(again.model), weights_of(run.model))


@pytest.mark.slow
def test_training_with_other_targets(tmp_path):
    terms = LossTerms(sparsity=0.0, contrast_zeroed=0.1, contrast_corrupted=0.1, teacher_kl=0.1)
    plain = [episode(8, (8, 3), seed=seed) for seed in range(4)]
    others = [towards(each, target) for each, target in zip(plain, ("frozen", "answer", "frozen", ""), strict=True)]
    weights = []
    for name, episodes in (
        ("plain", plain),
        ("others", others),
        ("frozen", [towards(each, "frozen") for each in plain]),
    ):
        run = toy_run(tmp_path / name, iters=4, warmup=0, terms=terms)
        run.train(episodes, episodes[:2])
        weights.append(weights_of(run.model))
    assert all(moved(one, other) for one, other in zip(weights, [*weights[1:], weights_of(toy_model())], strict=True))


def test_held_out_answers_are_scored_by_kind(tmp_path, capsys):
    def of_kind(each: Episode, kind: str) -> Episode:
        return replace(each, questions=tuple(replace(asked, kind=kind) for asked in each.questions))

    held_out = [of_kind(HELD_OUT[0], "[b]names"), of_kind(HELD_OUT[1], "absent"), HELD_OUT[2]]
    held_out.append(of_kind(towards(HELD_OUT[0], "frozen"), "talk"))
    run = toy_run(tmp_path / "run", iters=2)
    run.train([of_kind(each, "absent") for each in EPISODES], held_out)
    row = Metrics(tmp_path / "run").rows()[0]
    counts = {name: row[name] for name in row if "questions" in name}
    assert counts == {"val_questions": 3, "val_questions:[b]names": 1, "val_questions:absent": 1}
    assert row["val_alike"] == row["val_alike:talk"] and 0 <= row["val_alike"] <= 1
    printed = capsys.readouterr().out
    assert "of 1 answers right" in printed and "[b]names: " in printed and "as the frozen model" in printed


def test_held_out_data_smaller_than_a_batch(tmp_path):
    run = toy_run(tmp_path / "run", iters=2, batch_size=4)
    run.train(EPISODES, HELD_OUT)
    assert Metrics(tmp_path / "run").rows()[0]["val_questions"] == 3


# ---- numbers that are not finite


def test_a_learning_rate_that_is_too_high_stops_the_run(tmp_path):
    run = toy_run(tmp_path / "run", learning_rate=1e30, warmup=2, save_every=1)
    with pytest.raises(RunStoppedError) as stopped:
        run.train(EPISODES, [])
    assert "\n" not in str(stopped.value)
    # The first update has a rate of 0. The second one spoils the weights, which are still finite; step 3 shows it.
    assert str(stopped.value).startswith("step 3 gave a loss of ")
    assert f"the checkpoint after step 1 is kept: begin a new run with its adapter (--start {tmp_path}" in str(
        stopped.value
    )
    assert checkpoints(tmp_path / "run") == [1]
    weights = load_adapter(tmp_path / "run").weights
    assert all(mx.abs(weight).max().item() < 10 for weight in weights.values())


def poison(model: nn.Module) -> None:
    memory = attached_attention(model)[1].delta_mem
    memory.memory_v_proj = memory.memory_v_proj + mx.array(math.nan)


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_weight_that_is_not_finite_stops_the_run_and_is_never_saved(save_every, unbroken, tmp_path):
    run = toy_run(tmp_path / "run", save_every=save_every)
    train = Watched(EPISODES, 7 * PER_STEP, lambda: poison(run.model))
    # Step 8 is the first one to show it, so that the weights of step 7 cannot be trusted.
    with pytest.raises(RunStoppedError, match=r"step 8 gave a loss of nan .* the checkpoint after step 6 is kept"):
        run.train(train, [])
    again = toy_run(tmp_path / "run", save_every=save_every)
    assert again.resume() == 6
    assert all(mx.isfinite(weight).all() for weight in load_adapter(tmp_path / "run").weights.values())
    again.train(EPISODES, [])
    assert same(weights_of(again.model), unbroken[1])


def test_a_backbone_with_nan_stops_the_run_at_once(tmp_path):
    model = toy_model()
    model.model.norm.weight = model.model.norm.weight + mx.array(math.inf)
    run = toy_run(tmp_path / "run", model)
    with pytest.raises(RunStoppedError, match=r"step 1 gave .* there is no checkpoint yet"):
        run.train(EPISODES, [])
    assert not (tmp_path / "run" / WEIGHTS_FILE).exists()


def test_held_out_data_that_overflows_stops_the_run(tmp_path):
    run = toy_run(tmp_path / "run", steps_per_eval=4)
    valid = Watched(HELD_OUT, 3, lambda: poison(run.model))
    with pytest.raises(RunStoppedError, match="the held-out data after step 3 gave a loss of nan"):
        run.train(EPISODES, valid)


def test_weights_spoiled_by_the_last_step_are_not_saved(tmp_path, monkeypatch):
    run = toy_run(tmp_path / "run", iters=5, save_every=4, steps_per_report=10)
    # The only report is after the last step.
    monkeypatch.setattr(Monitor, "on_train_loss_report", lambda *_: poison(run.model))
    with pytest.raises(RunStoppedError, match=r"step 5 cannot be saved \(.*memory_v_proj .*NaN.* step 4 is kept"):
        run.train(EPISODES, [])
    assert checkpoints(tmp_path / "run") == [4]
    assert all(mx.isfinite(weight).all() for weight in load_adapter(tmp_path / "run").weights.values())


def test_a_failed_write_stops_the_run(tmp_path):
    run = toy_run(tmp_path / "run", save_every=2)

    def spoil() -> None:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        (tmp_path / "run" / "checkpoints").write_text("in the way")

    with pytest.raises(RunStoppedError, match=r"step 4 cannot be saved \(.*checkpoints.* after step 2 is kept"):
        run.train(Watched(EPISODES, 4 * PER_STEP, spoil), [])


@pytest.mark.parametrize(
    "error",
    [
        "[malloc_or_wait] Unable to allocate 99999 bytes.",
        "[metal::malloc] Attempting to allocate 99999 bytes which is greater than\nthe maximum allowed buffer size",
        "[METAL] Command buffer execution failed: Insufficient Memory (kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
    ],
)
def test_too_little_memory_stops_the_run(error, tmp_path):
    def fail() -> None:
        raise RuntimeError(error)

    run = toy_run(tmp_path / "run", save_every=1)
    with pytest.raises(
        RunStoppedError, match=r"more memory than there is .* after step 1 is kept: .* --batch-size"
    ) as it:
        run.train(Watched(EPISODES, 2 * PER_STEP, fail), [])
    assert "\n" not in str(it.value)


def test_other_errors_are_not_caught(tmp_path):
    def fail() -> None:
        raise RuntimeError("another one")

    with pytest.raises(RuntimeError, match=r"^another one$"):
        toy_run(tmp_path / "run").train(Watched(EPISODES, 0, fail), [])


# ---- what is trained, and what is not


@pytest.mark.parametrize(
    ("output_init", "bits"),
    [("zero", 4), ("random", 8), ("base_slice", None), ("base_slice", 4), ("base_slice_fixed", 8)],
)
def test_training_does_not_change_a_quantised_backbone(output_init, bits, tmp_path):
    config = replace(CONFIG, output_init=output_init)
    run = toy_run(tmp_path / "run", toy_model(config, bits), iters=3)
    frozen, before = frozen_of(run.model), weights_of(run.model)
    if output_init.startswith("base_slice"):
        projection = run.model.layers[0].self_attn.o_proj
        weight = projection.weight if bits is None else dequantised(projection)
        start = weight[:, :4] / mx.linalg.norm(weight[:, :4], axis=0) * config.online_gain
        assert mx.allclose(before["model.layers.0.self_attn.delta_mem.delta_o_proj"], start, atol=1e-6)
    run.train(EPISODES, [])
    assert same(frozen_of(run.model), frozen)
    assert moved(before, weights_of(run.model))
    assert all_float32(run)


def dequantised(projection: nn.Module) -> mx.array:
    return mx.dequantize(
        projection.weight, projection.scales, projection.biases, projection.group_size, projection.bits
    )


def moved(before: dict[str, mx.array], after: dict[str, mx.array]) -> bool:
    return all(not mx.array_equal(before[name], after[name]) for name in before)


def all_float32(run) -> bool:
    arrays = weights_of(run.model) | dict(tree_flatten(run._optimizer.state["model"]))
    return {array.dtype for array in arrays.values()} == {mx.float32}


@pytest.mark.parametrize("started", [False, True])
def test_adapters_of_16_bit_backbones_train_in_float32(started, tmp_path):
    model = tiny_model("llama")
    model.set_dtype(mx.bfloat16)
    attach(model, CONFIG)
    if started:
        adapter = current_adapter(model)
        weights = {name: weight.astype(mx.bfloat16) for name, weight in adapter.weights.items()}
        model = tiny_model("llama")
        model.set_dtype(mx.bfloat16)
        attach(model, replace(adapter, weights=weights))
    run = toy_run(tmp_path / "run", model, iters=4)
    frozen, before = frozen_of(model), weights_of(model)
    assert {weight.dtype for weight in frozen.values()} == {mx.bfloat16}
    run.train(EPISODES, [])
    assert same(frozen_of(model), frozen)
    assert moved(before, weights_of(model))
    assert all_float32(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"num_state_heads": 4},
        {"memory_write_granularity": "message_mean"},
        {"memory_write_granularity": "sentence_mean"},
        {"couple_lambda": False, "rankwise_gates": False, "trainable_delta_scale": True, "delta_o_rmsnorm": True},
        {"target_layers": (1,), "delta_heads": ("q", "k", "v", "o"), "state_update_mode": "no_lambda"},
    ],
    ids=str,
)
def test_all_variants_are_trained_and_resumed(changes, tmp_path):
    config = replace(CONFIG, **changes)
    whole = toy_run(tmp_path / "whole", toy_model(config), iters=5)
    whole.train(EPISODES, [])
    run = toy_run(tmp_path / "run", toy_model(config), iters=5, save_every=2)
    with pytest.raises(KilledError):
        run.train(Watched(EPISODES, 3 * PER_STEP, kill), [])
    run = toy_run(tmp_path / "run", toy_model(config), iters=5)
    assert run.resume() == 2
    run.train(EPISODES, [])
    assert same(weights_of(run.model), weights_of(whole.model))


@pytest.mark.slow
@pytest.mark.parametrize(("history", "segment"), [(8, 0), (8, 3), (0, 0)])
@pytest.mark.parametrize(
    "terms",
    [
        {"sparsity": 0.1},
        {"sparsity": 0.1, "sparsity_pass": "write"},
        {"contrast_zeroed": 0.1},
        {"contrast_corrupted": 0.1},
        {"teacher_kl": 0.1},
        {"sparsity": 0.1, "contrast_zeroed": 0.1, "contrast_corrupted": 0.1, "teacher_kl": 0.1},
    ],
    ids=str,
)
def test_training_with_every_term_of_the_loss(terms, history, segment, tmp_path):
    run = toy_run(tmp_path / "run", iters=2, warmup=0, segment=segment, terms=LossTerms(**{"sparsity": 0.0} | terms))
    before = weights_of(run.model)
    episodes, held_out = (
        [episode(history, (8, 3), seed=seed) for seed in range(4)],
        [episode(history, (8, 3), seed=9)] * 2,
    )
    run.train(episodes, held_out)
    if history:
        plain = toy_run(tmp_path / "plain", iters=2, warmup=0, segment=segment, terms=LossTerms(sparsity=0.0))
        plain.train(episodes, held_out)
        assert moved(before, weights_of(run.model)) and moved(weights_of(plain.model), weights_of(run.model))


@pytest.mark.slow
@pytest.mark.parametrize("history", [0, 8])
def test_training_with_written_questions(history, tmp_path):
    terms = LossTerms(sparsity=0.1, contrast_zeroed=0.1, contrast_corrupted=0.1, teacher_kl=0.1)
    run = toy_run(tmp_path / "run", iters=4, warmup=0, terms=terms)
    before = weights_of(run.model)
    plain = [episode(history, (8, 3), seed=seed) for seed in range(4)]
    written = [as_read(each) for each in plain]
    run.train([*plain, *written], [*plain[:1], *written[:1]])
    assert moved(before, weights_of(run.model))
    rows = Metrics(tmp_path / "run").rows()
    assert [row["val_questions"] for row in rows if "val_questions" in row] == [2, 2]
    assert rows[-1]["write_gate"] > 0
    again = toy_run(tmp_path / "again", iters=4, warmup=0, terms=terms)
    again.train([*plain, *plain], [*plain[:1], *plain[:1]])
    assert moved(weights_of(again.model), weights_of(run.model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_of_the_stored_adapter(dtype, tmp_path):
    run = toy_run(tmp_path / "run", iters=2, dtype=dtype)
    run.train(EPISODES, [])
    weights = load_adapter(tmp_path / "run").weights
    assert {weight.dtype for weight in weights.values()} == {getattr(mx, dtype)}
    expected = current_adapter(run.model).weights
    assert same({name: weight.astype(getattr(mx, dtype)) for name, weight in expected.items()}, dict(weights))
    # The stored dtype does not change the training.
    again = toy_run(tmp_path / "run", iters=2)
    again.resume()
    again.train(EPISODES, [])
    assert same(dict(load_adapter(tmp_path / "run").weights), dict(expected))


def test_a_trained_adapter_converts_to_the_format_of_the_reference(tmp_path):
    run = toy_run(tmp_path / "run", iters=2)
    run.train(EPISODES, [])
    convert(str(tmp_path / "run"), tmp_path / "torch", to="torch", dtype=mx.bfloat16)
    back = load_adapter(tmp_path / "torch")
    assert back.file == "delta_mem_adapter.pt"
    names = [f"memory_{name}_proj" for name in "qkv"] + [f"delta_{name}_proj" for name in "qkvo"]
    expected = {
        f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in (*names, "beta_proj", "beta_bias")
    }
    assert back.weights.keys() == expected
    trained = current_adapter(run.model).weights
    assert same({name: weight.astype(mx.bfloat16) for name, weight in trained.items()}, dict(back.weights))
    model = tiny_model("llama")
    attach(model, back)


def test_the_metadata_name_the_training(tmp_path):
    toy_run(tmp_path / "run", iters=4, save_every=2).train(EPISODES, [])
    adapter = load_adapter(tmp_path / "run")
    assert adapter.metadata["trained"] == "for tiny on toy (10 episodes): 4 steps of 2, seed 0"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Trained by mlx_deltamem for tiny on toy (10 episodes): 4 steps of 2, seed 0.\nIt took 0:00:" in card
    # Train it further, as if it were from another source.
    model = tiny_model("llama")
    attach(model, replace(adapter, metadata=dict(adapter.metadata) | {"source_adapter": "anna/memory@abc"}))
    run = toy_run(tmp_path / "more", model, iters=4, seed=7)
    with pytest.raises(KeyboardInterrupt):
        run.train(Watched(EPISODES, 2 * PER_STEP, interrupt), [])
    metadata = load_adapter(tmp_path / "more").metadata
    (done,) = checkpoints(tmp_path / "more")
    assert metadata["trained"].endswith(f"seed 0; then for tiny on toy (10 episodes): {done} of 4 steps of 2, seed 7")
    assert metadata["changed"] == "trained further"
