import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from mlx_deltamem import load, load_adapter
from mlx_deltamem.adapters.publish import pack
from mlx_deltamem.core.adapter import CARD_FILE, CURVES_FILE, METRICS_FILE, SETTINGS_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.core.model import current_adapter
from mlx_deltamem.training.best import best_step
from mlx_deltamem.training.monitor import Metrics
from mlx_deltamem.training.prepare import prepare_model
from mlx_deltamem.training.settings import Settings
from tests.conftest import backbone, distance
from tests.training.command import Train, last_checkpoint, tiny_options, two_processes
from tests.training.runs import write_chats

pytestmark = pytest.mark.usefixtures("ctrl_c")
STEPS = 120
LONG = {"iters": STEPS, "save-every": 2, "steps-per-report": 5, "steps-per-eval": 50}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp("chats") / "names")


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    """A run without interruptions, and its output."""
    folder = tmp_path_factory.mktemp("built") / "run"
    code, out, err = Train(*tiny_options(data, **LONG), "--adapter-path", folder, cwd=folder.parent).end()
    assert (code, err) == (0, "")
    return folder, out


# ---- a run


@pytest.mark.slow
def test_the_files_and_the_output_of_a_run(built):
    folder, out = built
    files = {SETTINGS_FILE, METRICS_FILE, CURVES_FILE, WEIGHTS_FILE, CONFIG_FILE, CARD_FILE}
    files |= {"checkpoints", "best", ".lock"}
    assert {path.name for path in folder.iterdir()} == files
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        f"{steps:07d}.safetensors" for steps in (STEPS - 2, STEPS)
    ]
    # A terminal of 80 columns breaks long lines.
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", out).split())
    assert "12 episodes, 12 questions" in plain
    assert f"Talk to it: mlx_deltamem.chat --model {backbone()} --adapter {folder}" in plain
    report = r"120 of 120 · β 0\.\d\d\d · ‖S‖ \d+\.\d\d · gradient [\d.e-]+ · [\d,]+ tokens/s read · 0:00:00 left"
    assert re.search(report, plain)
    step = best_step(folder)
    assert (f"The adapter is that of the last step; that of step {step}, the best by" in plain) == (step < STEPS - 1)
    assert re.search(r"held out: [\d.]+% of 3 answers right, [\d.]+% of their values", plain)
    model, _ = load(backbone(), adapter=folder)
    assert model.attachment.metadata["trained"].endswith("on names (12 episodes): 120 steps of 2, seed 0")


@pytest.mark.slow
def test_the_published_files_of_a_run(built):
    folder, _ = built
    parcel = pack(folder, "anna/memory", "Qwen/Qwen3-0.6B", "mit")
    assert parcel.contents.keys() == {
        CARD_FILE,
        CONFIG_FILE,
        WEIGHTS_FILE,
        CURVES_FILE,
        METRICS_FILE,
        SETTINGS_FILE,
    }
    assert parcel.left_out == [".lock", "best", "checkpoints"]
    options = yaml.safe_load(parcel.contents[SETTINGS_FILE])
    assert (options["model"], options["data"], options["iters"]) == ("qwen3-tiny", "names", STEPS)
    card = parcel.contents[CARD_FILE].decode()
    assert "Trained by mlx_deltamem for qwen3-tiny on names (12 episodes): 120 steps of 2, seed 0.\nIt took " in card
    assert f"]({CURVES_FILE})" in card
    for content in parcel.contents.values():
        assert str(folder.parent).encode() not in content
        assert Path(backbone()).parent.as_posix().encode() not in content


@pytest.mark.slow
def test_a_run_is_the_same_each_time(data, tmp_path):
    options = tiny_options(data, model=backbone("smollm3-tiny"), iters=3, seed=5)
    processes = [Train(*options, "--adapter-path", name, cwd=tmp_path) for name in "ab"]
    assert [process.end()[0] for process in processes] == [0, 0]
    for name in (WEIGHTS_FILE, CONFIG_FILE, SETTINGS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# ---- interrupted runs


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_file(built, data, tmp_path):
    folder = tmp_path / "run"
    options = [*tiny_options(data, **LONG), "--adapter-path", folder]
    for after in (0, 20, 70):
        process = Train(*options, cwd=tmp_path)
        process.wait_for(lambda after=after: last_checkpoint(folder) > after)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        code, _, err = process.end()
        assert (code, err) == (-signal.SIGKILL, "")
        options = ["--resume", "--adapter-path", folder]
    done = last_checkpoint(folder)
    assert 70 < done < STEPS
    code, out, err = Train(*options, cwd=tmp_path).end()
    assert (code, err) == (0, "")
    assert f"Resuming after step {done} of {STEPS}; mlx-lm counts from here, its iter 1 is step {done + 1}." in out
    assert (folder / WEIGHTS_FILE).read_bytes() == (built[0] / WEIGHTS_FILE).read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in built[0].iterdir()}
    steps = [json.loads(line)["iteration"] for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ignored"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False)]
)
def test_ctrl_c_saves_and_prints_how_to_resume(number, ignored, data, tmp_path):
    options = tiny_options(data, iters=100_000, **{"steps-per-report": 1})
    if ignored:
        # A shell starts the background jobs of a script like this.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = Train(*options, "--adapter-path", "a run", cwd=tmp_path)
    process.wait_for((tmp_path / "a run" / METRICS_FILE).is_file)
    process.send_signal(number)
    code, out, err = process.end()
    assert (code, err) == (130, "")
    done = last_checkpoint(tmp_path / "a run")
    assert "Stopping after this step; Ctrl-C once more stops at once." in out
    assert out.endswith(
        f"Stopped; the checkpoint after step {done} is kept. "
        "Go on with: mlx_deltamem.train --resume --adapter-path 'a run'\n"
    )
    assert load_adapter(tmp_path / "a run").metadata["trained"].endswith(f"{done} of 100,000 steps of 2, seed 0")


# ---- several processes


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(data, tmp_path):
    options = tiny_options(data, iters=8, **{"learning-rate": 1e-4})
    folders = tmp_path / "first", tmp_path / "second"
    processes = two_processes(*options, "--steps-per-report", 1, folders=folders, cwd=tmp_path)
    processes[0].wait_for((folders[0] / METRICS_FILE).is_file)
    processes[1].send_signal(signal.SIGINT)
    assert [process.end()[::2] for process in processes] == [(130, ""), (130, "")]
    assert 0 < last_checkpoint(folders[0]) < 8
    # Only the first process has a folder with options and a checkpoint.
    processes = two_processes("--resume", "--steps-per-report", 1, folders=folders, cwd=tmp_path)
    first, second = [process.end() for process in processes]
    assert (first[0], first[2], second) == (0, "", (0, "", ""))
    assert not folders[1].exists()
    one = tmp_path / "one"
    assert Train(*options, "--steps-per-report", 1, "--adapter-path", one, cwd=tmp_path).end()[0] == 0
    assert largest_distance(load_adapter(folders[0]), load_adapter(one)) <= 1e-5
    # Each process has read its share.
    assert tokens_read(folders[0]) == pytest.approx(tokens_read(one))
    untrained, _ = prepare_model(Settings(backbone(), str(data)))
    assert largest_distance(load_adapter(folders[0]), current_adapter(untrained)) > 1e-4


def tokens_read(folder: Path) -> float:
    """In the last step of a run."""
    row = [row for row in Metrics(folder).rows() if "train_loss" in row][-1]
    return row["tokens_per_second"] * row["seconds_per_step"]


def largest_distance(one: Adapter, other: Adapter) -> float:
    return max(distance(one.weights[name], weight) for name, weight in other.weights.items())


@pytest.mark.slow
def test_two_processes_stop_together_if_numbers_are_not_finite(data, tmp_path):
    options = tiny_options(data, iters=8, warmup=2, **{"learning-rate": 1e30, "save-every": 1})
    folders = tmp_path / "first", tmp_path / "second"
    first, second = [each.end() for each in two_processes(*options, folders=folders, cwd=tmp_path)]
    assert (first[0], second[0], second[2]) == (2, 2, "")
    assert re.fullmatch(r"error: step 3 gave a loss of .* the checkpoint after step 1 is kept: .*\n", first[2])
    assert not folders[1].exists()


@pytest.mark.slow
def test_two_processes_test_together(data, tmp_path):
    names = tmp_path / "names"
    shutil.copytree(data, names)
    shutil.copy(names / "valid.jsonl", names / "test.jsonl")
    options = [*tiny_options(names, iters=2, keep="best", dtype="bfloat16"), "--train", "--test"]
    first, second = two_processes(*options, folders=(tmp_path / "a", tmp_path / "b"), cwd=tmp_path)
    (code, out, err), (other_code, other_out, _) = first.end(), second.end()
    assert (code, other_code) == (0, 0), err
    assert "Test" not in other_out
    # The same test by one process. The second one had no adapter but the first one's.
    code, alone, _ = Train("--test", "--adapter-path", tmp_path / "a", cwd=tmp_path).end()
    found, expected = (re.findall(r"Test loss ([\d.]+)", text) for text in (out, alone))
    assert code == 0 and len(found) == len(expected) == 1
    # Batches of other shapes are rounded differently.
    assert float(found[0]) == pytest.approx(float(expected[0]), abs=2e-3)
    assert out.partition("Test: ")[2] == alone.partition("Test: ")[2] != ""
