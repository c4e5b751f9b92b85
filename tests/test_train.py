import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
import yaml
from huggingface_hub import constants
from mlx.utils import tree_flatten
from mlx_lm.models import gpt2

from mlx_deltamem import load_adapter, train
from mlx_deltamem.core.adapter import CURVES_FILE, SETTINGS_FILE, WEIGHTS_FILE
from mlx_deltamem.files.atomic import locked
from mlx_deltamem.training.run_options import RunOptions
from tests.command_line import error_line
from tests.conftest import adapter, backbone
from tests.training.command import in_process, tiny_options
from tests.training.runs import write_chats


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp("chats") / "names")


@pytest.fixture
def trained(monkeypatch, capsys, tmp_path):
    """A function that runs the command in this process and in an empty folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Imported modules do not read the environment again.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys)


TINY = {"iters": 2, "batch-size": 2}


@pytest.mark.slow
def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(data, trained, tmp_path):
    asked = {"model": backbone(), "data": str(data), "adapter_path": "run", "iters": 6, "batch_size": 3, "rank": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(asked | {"learning_rate": 1e-3, "start": None}))
    code, _, err = trained("-c", "recipe.yaml", "--iters", 2, "--delta-heads", "o", "--steps-per-report", 1)
    assert (code, err) == (0, "")
    options = yaml.safe_load((tmp_path / "run" / SETTINGS_FILE).read_text())
    found = {name: options[name] for name in ("iters", "batch_size", "rank", "learning_rate", "delta_heads", "seed")}
    assert found == {
        "iters": 2,
        "batch_size": 3,
        "rank": 2,
        "learning_rate": 1e-3,
        "delta_heads": ["o"],
        "seed": 0,
    }
    config = load_adapter(tmp_path / "run").config
    assert (config.rank, config.delta_heads, config.output_init) == (2, ("o",), "base_slice_fixed")
    # The file that a run writes can be the file of options of another run.
    assert trained("-c", f"run/{SETTINGS_FILE}", "--adapter-path", "again")[0] == 0
    assert (tmp_path / "again" / SETTINGS_FILE).read_text() == (tmp_path / "run" / SETTINGS_FILE).read_text()
    assert (tmp_path / "again" / WEIGHTS_FILE).read_bytes() == (tmp_path / "run" / WEIGHTS_FILE).read_bytes()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_options(data, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    options = tiny_options(data.name, **TINY, dtype="bfloat16", **{"save-every": 1})
    assert trained(*options, "--adapter-path", tmp_path / "run")[0] == 0
    monkeypatch.chdir(tmp_path)
    begun = (tmp_path / "run" / SETTINGS_FILE).read_text()
    weights = (tmp_path / "run" / WEIGHTS_FILE).read_bytes()
    code, out, _ = trained("--resume", "--adapter-path", "run", "--iters", 2, "--data", data)
    assert code == 0
    assert "The run in run is finished: all 2 steps are done." in out
    assert (tmp_path / "run" / SETTINGS_FILE).read_text() == begun
    assert (tmp_path / "run" / WEIGHTS_FILE).read_bytes() == weights
    for options, message in (
        (("--iters", 4), "was begun with --iters 2; leave it out"),
        (("--learning-rate", 1, "--rank", 4), "was begun with --rank 8, --learning-rate 0.001; leave it out"),
        (("--data", tmp_path), f"was begun with --data {data}; leave it out"),
        (("--start", adapter()), "was begun without --start; leave it out"),
    ):
        code, _, err = trained("--resume", "--adapter-path", "run", *options)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    # Options that do not decide the weights may change, and the run can be resumed from another folder.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert trained("--resume", "--adapter-path", "../run", "--save-every", 7)[0] == 0
    assert yaml.safe_load((tmp_path / "run" / SETTINGS_FILE).read_text()) == yaml.safe_load(begun) | {"save_every": 7}


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(data, trained, tmp_path):
    options = tiny_options(data, iters=3, **{"save-every": 1})
    assert trained(*options, "--adapter-path", "run")[0] == 0
    weights = (tmp_path / "run" / WEIGHTS_FILE).read_bytes()
    for steps, advice in ((3, "go on from the one before it"), (2, "begin again")):
        path = tmp_path / "run" / "checkpoints" / f"{steps:07d}.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        code, _, err = trained("--resume", "--adapter-path", "run")
        assert (code, err.count("\n")) == (2, 1)
        assert re.match(
            rf"error: run/checkpoints/{steps:07d}.safetensors is damaged \(.*\); delete it to {advice}\n", err
        )
        path.unlink()
    code, out, _ = trained("--resume", "--adapter-path", "run")
    assert code == 0
    assert "The run in run has no checkpoint yet; it starts again from the first step." in out
    assert (tmp_path / "run" / WEIGHTS_FILE).read_bytes() == weights


@pytest.mark.slow
def test_a_run_that_is_stopped_before_its_first_checkpoint_is_fitted_again(data, trained, tmp_path):
    fitted = ("--key-shift", "--no-couple-lambda", "--delta-heads", "q", "o", "--rank", 2, "--fit", 6)
    assert trained(*tiny_options(data, **TINY), *fitted, "--adapter-path", "run")[0] == 0
    weights = (tmp_path / "run" / WEIGHTS_FILE).read_bytes()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    code, out, err = trained("--resume", "--adapter-path", "run")
    assert (code, err) == (0, "fitting the first weights ...\n")
    assert "The first weights are fitted to 6 questions" in out
    assert (tmp_path / "run" / WEIGHTS_FILE).read_bytes() == weights
    # Nothing is fitted where a checkpoint has the weights.
    assert "fitted" not in trained("--resume", "--adapter-path", "run")[1]


@pytest.mark.slow
def test_one_process_at_a_time_trains_in_a_folder(data, trained, tmp_path):
    assert trained(*tiny_options(data, **TINY), "--adapter-path", "run")[0] == 0
    unfinished = tmp_path / "run" / "checkpoints" / ".0000003-0123abcd.safetensors"
    unfinished.touch()

    def found() -> dict[Path, int]:
        files = (path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in files}

    before = found()
    with locked(tmp_path / "run" / ".lock"):
        code, out, err = trained("--resume", "--adapter-path", "run", "--save-every", 1)
    assert (code, out) == (2, "")
    assert err == "error: another process is training in run; wait for it or stop it, or name another folder\n"
    assert found() == before
    assert trained("--resume", "--adapter-path", "run")[0] == 0
    assert not unfinished.exists()


def with_test(data: Path, folder: Path) -> Path:
    """A copy of the data whose held-out file is also that of the test."""
    shutil.copytree(data, folder)
    shutil.copy(folder / "valid.jsonl", folder / "test.jsonl")
    return folder


def of_test(out: str) -> str:
    return out.partition("Testing\n")[2]


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["last", "best"])
def test_an_adapter_is_tested_after_training_and_later(keep, data, trained, tmp_path):
    options = tiny_options(with_test(data, tmp_path / "names"), **TINY, keep=keep, dtype="bfloat16")
    code, out, _ = trained(*options, "--adapter-path", "run", "--train", "--test")
    printed = of_test(out)
    assert code == 0
    assert re.match(r"Test loss \d+\.\d{3}, Test ppl \d+\.\d{3}\.\nFrozen model without the history: loss ", printed)
    assert "Test: 0.0% of 3 answers right, 0.0% of their values\n" in printed
    begun = (tmp_path / "run" / SETTINGS_FILE).read_text()
    assert "\ntest: " not in begun and "\ntrain: " not in begun
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    # The options of the run are known, and can be named in a file too; nothing is trained or written.
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(yaml.safe_load(begun) | {"test": True}))
    for given in (("--test",), ("-c", "test.yaml"), ("--resume", "--test")):
        code, out, _ = trained(*given, "--adapter-path", "run")
        assert (code, of_test(out)) == (0, printed), given
        if "--resume" not in given:
            assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    # Without the file of its run, an adapter needs the model and the data.
    assert trained("--test", "--adapter-path", "run/best")[0] == 2
    code, out, _ = trained("--test", "--adapter-path", "run/best", *options[:6])
    assert code == 0 and (keep == "last" or of_test(out) == printed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--adapter-path", "new"), "there is no folder new with an adapter to test; to train one first, add --train"),
        (("--adapter-path", adapter(), "--start", "x"), "leave out --start, or train with it (--train)"),
        (
            ("--adapter-path", adapter(), "--rank", "2"),
            "has no test.jsonl (or test.json); expected a folder of records",
        ),
        (("--adapter-path", adapter(), "--test-batches", "0"), "--test-batches is 0; expected a whole number from 1"),
        (("--adapter-path", adapter("smollm3_tsw_qkvo")), "does not fit: the model has 3 layers (layer 3)"),
        (("--adapter-path", "run", "--train"), "has no test.jsonl (or test.json); expected a folder of records"),
    ],
)
def test_a_test_that_is_not_possible(options, message, data, trained, tmp_path):
    code, out, err = trained("--model", backbone(), "--data", data, "--test", *options)
    assert (code, out) == (2, "")
    assert message in error_line(err)
    assert not list(tmp_path.iterdir())


def test_records_that_the_adapter_cannot_write_are_refused_before_training(data, trained, tmp_path):
    names = with_test(data, tmp_path / "names")
    lines = [json.loads(line) | {"turn_by_turn": True} for line in (names / "test.jsonl").read_text().splitlines()]
    (names / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = tiny_options(names, **TINY, **{"memory-write-granularity": "message_mean"})
    code, _, err = trained(*options, "--adapter-path", "run", "--train", "--test")
    assert code == 2 and "only an adapter that writes by token can write a history turn by turn" in error_line(err)
    assert not (tmp_path / "run").exists()


def test_a_file_may_turn_training_or_testing_off(data, trained, tmp_path):
    for text, message in (
        ("train: false", "--train and --test are both off; expected at least one of them"),
        ("test: 3", "--test is 3; expected true or false"),
    ):
        (tmp_path / "options.yaml").write_text(text)
        code, _, err = trained(*NEW, "-c", "options.yaml")
        assert code == 2 and message in error_line(err)


@pytest.mark.slow
def test_an_adapter_is_trained_further(data, trained, tmp_path):
    code, _, err = trained(*tiny_options(data, **TINY), "--start", adapter("qwen3_msw4"), "--adapter-path", "run")
    assert (code, err) == (0, "")
    assert load_adapter(tmp_path / "run").config == load_adapter(adapter("qwen3_msw4")).config
    # The loaded adapter has its own configuration.
    assert "rank" not in yaml.safe_load((tmp_path / "run" / SETTINGS_FILE).read_text())
    assert trained("--resume", "--adapter-path", "run")[0] == 0


@pytest.mark.slow
def test_without_matplotlib_the_curves_are_not_drawn(data, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, _ = trained(*tiny_options(data, **TINY), "--adapter-path", "run")
    assert code == 0
    assert out.endswith("The curves are not drawn: matplotlib is not installed (pip install 'mlx-deltamem[plot]')\n")
    assert not (tmp_path / "run" / CURVES_FILE).exists()


@pytest.mark.slow
def test_records_that_are_left_out_are_named(data, trained, tmp_path):
    shutil.copytree(data, "mixed")
    with Path("mixed/train.jsonl").open("a") as file:
        file.write("nonsense\n" * 7)
    options = tiny_options("mixed", **TINY)
    code, _, err = trained(*options, "--adapter-path", "run")
    assert (code, not Path("run").exists()) == (2, True)
    assert err.startswith("error: train.jsonl line 13 is not JSON")
    code, out, _ = trained(*options, "--adapter-path", "run", "--on-error", "skip")
    assert code == 0
    assert "Left out: train.jsonl line 17 is not JSON" in out
    assert "Left out: 2 more" in out
    # The option --on-error is kept.
    assert trained("--resume", "--adapter-path", "run")[0] == 0


NEW = ("--model", backbone(), "--data", "names", "--adapter-path", "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--adapter-path is missing; expected a folder"),
        (("--adapter-path", "run"), "--model is missing; expected a folder or a Hub repo"),
        (("--adapter-path", "run", "--model", backbone()), "--data is missing; expected a folder or a Hub repo"),
        ((*NEW, "--model", "nowhere"), "nowhere is not a folder on this machine"),
        ((*NEW, "--model", "anna/nothing"), "anna/nothing is not a folder on this machine"),
        ((*NEW, "--model", "a file"), "a file is not a model: it has no config.json"),
        ((*NEW, "--model", "names"), "names is not a model: it has no config.json"),
        ((*NEW, "--data", "nowhere"), "there is no folder nowhere; expected one with train.jsonl, or a data set"),
        (
            (*NEW, "--data", "anna/nothing"),
            "anna/nothing is not a folder on this machine and not complete in the Hub's cache",
        ),
        ((*NEW, "--data", "names/train.jsonl"), "names/train.jsonl is a file; expected the folder"),
        ((*NEW, "--data", "no records"), "no records has no training episode (no records)"),
        ((*NEW, "--data", "in the way"), "in the way has no train.jsonl"),
        ((*NEW, "--adapter-path", "a file"), "a file is a file; expected a folder"),
        ((*NEW, "--adapter-path", "a file/run"), "a file is a file; expected a folder"),
        ((*NEW, "--adapter-path", "in the way"), "in the way is not empty; name a new folder, or go on with the run"),
        ((*NEW, "--batch-size", "13"), "there are 12 episodes, fewer than a batch of 13"),
        ((*NEW, "--iters", "10", "--grad-accumulation-steps", "4"), "--iters is 10, and an update takes 4 steps"),
        ((*NEW, "--iters", "2", "--grad-accumulation-steps", "4"), "expected 4\n"),
        ((*NEW, "--iters", "0"), "--iters is 0; expected a whole number from 1 to 2**31 - 1"),
        ((*NEW, "--learning-rate", "inf"), "--learning-rate is inf; expected a number above 0, at most 3.4e+38"),
        (
            (*NEW, "--val-batches", "0"),
            "--val-batches is 0; expected a whole number from 1 to 2**31 - 1, or -1 for all",
        ),
        ((*NEW, "--health-texts", "-1"), "--health-texts is -1; expected a whole number from 0 to 2**31 - 1"),
        ((*NEW, "--health-limit", "0.9"), "--health-limit is 0.9; expected a number from 1 to 3.4e+38"),
        ((*NEW, "--health-limit", "-2"), "--health-limit is -2.0; expected a number from 1 to 3.4e+38"),
        ((*NEW, "--health-limit", "nan"), "--health-limit is nan; expected a number from 1 to 3.4e+38"),
        ((*NEW, "--health-limit", "inf"), "--health-limit is inf; expected a number from 1 to 3.4e+38"),
        ((*NEW, "--seed", str(2**64)), "expected a whole number from 0 to 2**64 - 1"),
        ((*NEW, "--rank", "0"), "--rank is 0; expected a whole number from 1 to 1,024"),
        (
            (*NEW, "--delta-heads", "q", "x"),
            "--delta-heads is 'x'; expected any number of values, each q or k or v or o",
        ),
        ((*NEW, "--target-layers", "7"), "target_layers names [7]; the model has layers 0 to 2"),
        ((*NEW, "--start", adapter("smollm3_tsw_qkvo")), "does not fit: the model has 3 layers (layer 3)"),
        ((*NEW, "--start", adapter(), "--rank", "8"), "--rank would shape a new adapter, and "),
        ((*NEW, "--fit", "2", "--tie-output"), "--fit and --tie-output both choose"),
        ((*NEW, "--adapter-path", ""), "--adapter-path is ''; expected a folder"),
        ((*NEW, "--value-weight", "1e-60"), "--value-weight is 1e-60; expected a number from"),
        ((*NEW, "--resume"), "run holds no run (train_config.yaml); begin one without --resume"),
        ((*NEW, "-c", "nothing.yaml"), "there is no file nothing.yaml; expected a YAML file of options"),
        ((*NEW, "-c", "names"), "there is no file names; expected a YAML file of options"),
        ((*NEW, "-c", "many.yaml"), "--iters is 'many'; expected a whole number from 1 to 2**31 - 1"),
        ((*NEW, "--start", adapter(), "--tie-output"), "--tie-output would shape a new adapter, and "),
        (
            (*NEW, "--start", adapter(), "-c", "shape.yaml"),
            "--rank, --alpha, --beta-bias-init, --rankwise-gates, --online-gain and 1 more would",
        ),
        ((*NEW, "--delta-heads"), "--delta-heads is empty, and such an adapter corrects nothing"),
        ((*NEW, "-c", "unknown.yaml"), "unknown.yaml has unknown options 5, fine_tune_type, itres; "),
        ((*NEW, "-c", "write.yaml"), "--write is True; expected all or after or user or assistant or none"),
        ((*NEW, "-c", "strange.yaml"), "strange.yaml has unknown options a?b; "),
        ((*NEW, "-c", "large.yaml"), "; expected a number above 0, at most 3.4e+38"),
        ((*NEW, "-c", "list.yaml"), "list.yaml holds no options; expected lines like `batch_size: 4`"),
        ((*NEW, "-c", "broken.yaml"), "broken.yaml is not valid YAML ("),
        ((*NEW, "-c", "bytes.yaml"), "bytes.yaml is not valid YAML ("),
        ((*NEW, "-c", "error.yaml"), "--on-error is 'maybe'; expected stop or skip"),
        ((*NEW[2:], "-c", "model.yaml"), "--model is 5; expected the name of a folder or of a Hub repo"),
        ((*NEW[:4], "-c", "path.yaml"), "--adapter-path is 3; expected a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors_are_one_line_and_leave_no_files(options, message, data, trained):
    shutil.copytree(data, "names")
    for name, text in {
        "a file": "",
        "no records/train.jsonl": "\n",
        "in the way/file": "",
        "many.yaml": "iters: many",
        "unknown.yaml": "fine_tune_type: lora\nitres: 3\n5: 6",
        "list.yaml": "- 3",
        "write.yaml": "write: true",
        "broken.yaml": "iters: [",
        "strange.yaml": '"a\\nb": 1',
        "large.yaml": f"learning_rate: 1{'0' * 400}",
        "shape.yaml": "{rank: 8, alpha: 1, online_gain: 1, beta_bias_init: -2, rankwise_gates: true, tie_output: true}",
        "error.yaml": "on_error: maybe",
        "model.yaml": "model: 5",
        "path.yaml": "adapter_path: 3",
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    Path("bytes.yaml").write_bytes(b"\xff\xfe")
    before = sorted(Path().rglob("*"))
    code, _, err = trained(*options)
    assert code == 2
    assert error_line(err).startswith("error: ")
    assert message in err
    assert sorted(Path().rglob("*")) == before


def test_an_architecture_that_cannot_have_a_memory_is_refused(data, trained):
    sizes = {"n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 288}
    config = {"model_type": "gpt2", "layer_norm_epsilon": 1e-5} | sizes
    shutil.copytree(backbone(), "gpt2")
    weights = tree_flatten(gpt2.Model(gpt2.ModelArgs.from_dict(config)).parameters())
    mx.save_safetensors("gpt2/model.safetensors", dict(weights))
    Path("gpt2/config.json").write_text(json.dumps(config))
    for options, message in (
        ((), "no layer of Model has a module named self_attn"),
        (
            ("--target-modules", "attn"),
            "h.0.attn is not supported: Attention has c_attn, c_proj; a memory needs",
        ),
    ):
        code, _, err = trained("--model", "gpt2", "--data", data, "--adapter-path", "run", *options)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


@pytest.mark.slow
def test_files_of_killed_processes_and_of_finder_are_no_obstacle(data, trained, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".DS_Store").touch()
    shutil.rmtree(run / "checkpoints")
    assert trained(*tiny_options(data, **TINY), "--adapter-path", "run")[0] == 0
    left = [
        run / ".metrics-0123abcd.jsonl",
        run / ".delta_mem_adapter-0123abcd.safetensors",
        run / "checkpoints" / ".0000001-0123abcd.safetensors",
    ]
    for path in left:
        path.touch()
    left.append(run / ".best-0123abcd")
    left[-1].mkdir()
    (left[-1] / "a file").touch()
    assert trained("--resume", "--adapter-path", "run")[0] == 0
    assert not any(path.exists() for path in left)
    assert (run / ".DS_Store").exists()


def test_the_help_lists_the_options(trained):
    code, out, _ = trained("--help")
    assert code == 0
    for name in ("--steps-per-eval", "--sparsity-pass {read,write}", "--num-state-heads", "--no-normalize-qk"):
        assert name in out


def test_grad_checkpoint_of_mlx_lm_is_a_segment(tmp_path):
    given = ["--model", "a", "--data", "b", "--adapter-path", str(tmp_path / "run")]

    def segment(*options: str) -> int:
        return RunOptions.of(train.setup_arg_parser().parse_args([*given, *options])).settings.schedule.segment

    assert segment() == 0
    assert segment("--grad-checkpoint") == 1024
    assert segment("--grad-checkpoint", "--segment", "64") == 64
    # The options of an earlier run have a segment of 0.
    (tmp_path / "earlier.yaml").write_text("segment: 0")
    assert segment("-c", str(tmp_path / "earlier.yaml"), "--grad-checkpoint") == 1024
    (tmp_path / "earlier.yaml").write_text("segment: 32")
    assert segment("-c", str(tmp_path / "earlier.yaml"), "--grad-checkpoint") == 32
    (tmp_path / "options.yaml").write_text("grad_checkpoint: true")
    assert segment("-c", str(tmp_path / "options.yaml")) == 1024
    (tmp_path / "options.yaml").write_text("grad_checkpoint: 3")
    with pytest.raises(ValueError, match="--grad-checkpoint is 3; expected true or false"):
        segment("-c", str(tmp_path / "options.yaml"))
