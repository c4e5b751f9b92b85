"""The recipes of the paper's authors: their numbers, the options that win over them, and one step of each."""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
import yaml
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem import load_adapter, train
from mlx_deltamem.core.adapter import SETTINGS_FILE
from mlx_deltamem.training.episode import Episode
from mlx_deltamem.training.loss import EpisodeModel
from mlx_deltamem.training.prepare import freeze_all_but_adapter, load_episodes, prepare_model
from mlx_deltamem.training.recipes import PAPER_DATA, RECIPES
from mlx_deltamem.training.run import Run
from mlx_deltamem.training.run_options import RunOptions
from tests.conftest import adapter, backbone
from tests.hub import fixture as hub_fixture
from tests.sessions.template.test_chat_template import chat
from tests.training.cases import gradients
from tests.training.command import in_process
from tests.training.runs import weights_of
from tests.training.test_data import FORMATS, SHAPES
from tests.training.test_loss import PlainLoss, check_single_episodes

hub = hub_fixture.hub
BACKBONES = ("qwen3-tiny", "smollm3-tiny")
# From facts 3.5, 1.6, 8.5 and 3.4, and the episodes of facts 3.2 and 3.3.
NUMBERS = {
    "data": "huaXiaKyrie/delta-mem-qasper-data",
    "rank": 8,
    "alpha": 16.0,
    "beta_bias_init": -1.5,
    "normalize_qk": True,
    "couple_lambda": True,
    "state_update_mode": "standard",
    "rankwise_gates": True,
    "output_init": "base_slice_fixed",
    "base_slice_ref_width": 8,
    "online_gain": 0.05,
    "target_layers": [],
    "delta_heads": ["q", "o"],
    "recent_messages": 1,
    "final_assistant_only": True,
    "max_write_length": 8192,
    "max_seq_length": 512,
    "write": "after",
    "turn_by_turn": False,
    "questions_per_write": 1,
    "sparsity": 0.01,
    "sparsity_target": 0.05,
    "sparsity_pass": "read",
    "learning_rate": 2e-4,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 42,
}
HEADS_AND_WRITES = {"tsw": (1, "token"), "ssw": (1, "message_mean"), "msw": (4, "token")}
CHATS = [
    chat("I am Ann. I keep bees.", "Hi!", "My word is jade.", "I see.", "Who am I?", "Ann.", system="Be brief."),
    chat("The third section: whales sing at night.", "Noted.", "When do they sing?", "At night."),
]
every_recipe = pytest.mark.parametrize("recipe", RECIPES)
every_backbone = pytest.mark.parametrize("backbone_name", BACKBONES)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "train.jsonl").write_text("".join(f"{json.dumps({'messages': messages})}\n" for messages in CHATS))
    return folder


@pytest.fixture
def trained(monkeypatch, capsys, tmp_path):
    """A function that runs the command in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys)


def arguments(*options: object) -> Namespace:
    return train.setup_arg_parser().parse_args([*map(str, options), "--adapter-path", "run"])


def flat(*options: object, model: str = "qwen3-tiny") -> dict[str, object]:
    return RunOptions.of(arguments("--model", backbone(model), *options)).settings.flat()


# Numbers


@every_recipe
def test_the_numbers_are_those_of_the_facts(recipe):
    options = flat("--recipe", recipe)
    assert {name: options[name] for name in NUMBERS} == NUMBERS
    assert (options["num_state_heads"], options["memory_write_granularity"]) == HEADS_AND_WRITES[recipe]
    parsed = RunOptions.of(arguments("--model", backbone(), "--recipe", recipe))
    schedule = parsed.settings.schedule
    assert schedule.batch_size * schedule.grad_accumulation_steps == 32
    assert (schedule.updates, schedule.warmup_updates) == (70, 7)
    assert parsed.reporting.dtype == "bfloat16"


def test_smollm3_has_no_penalty_of_the_gate():
    assert flat("--recipe", "tsw", model="smollm3-tiny") == flat("--recipe", "tsw") | {
        "model": backbone("smollm3-tiny"),
        "sparsity": 0.0,
    }
    assert flat("--recipe", "tsw", "--sparsity", 0.3, model="smollm3-tiny")["sparsity"] == 0.3


def test_a_recipe_with_a_model_on_the_hub(hub):
    config = (Path(backbone("smollm3-tiny")) / "config.json").read_bytes()
    hub.create("user/model", {"config.json": config, "model.safetensors": b"not read"})
    assert RunOptions.of(arguments("--model", "user/model", "--recipe", "ssw")).settings.terms.sparsity == 0
    hub.create("user/broken", {"config.json": b"[]"})
    with pytest.raises(ValueError, match=r"config\.json is damaged; expected a JSON object"):
        RunOptions.of(arguments("--model", "user/broken", "--recipe", "ssw"))
    with pytest.raises(FileNotFoundError, match=r"^user/none is not a folder on this machine and not a repo"):
        RunOptions.of(arguments("--model", "user/none", "--recipe", "ssw"))


# Options that win over a recipe


def test_the_command_line_comes_first_then_the_file_then_the_recipe_then_the_defaults(tmp_path, data):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"rank": 4, "seed": 1, "iters": 64, "recipe": "ssw", "data": str(data)}))
    options = flat("-c", file, "--recipe", "msw", "--seed", 2, "--online-gain", 0.5)
    expected = {"rank": 4, "seed": 2, "iters": 64, "online_gain": 0.5, "num_state_heads": 4, "data": str(data)}
    assert options == flat("--recipe", "msw") | expected
    assert flat("-c", file) == flat("--recipe", "ssw") | {"rank": 4, "seed": 1, "iters": 64, "data": str(data)}
    # These are in neither the recipe nor the file.
    assert (options["segment"], options["value_weight"]) == (0, 1.0)


@pytest.mark.slow
def test_a_run_with_a_recipe_is_resumed_like_any_run(trained, tmp_path, data):
    asked = ("--model", backbone(), "--data", data, "--iters", 4, "--grad-accumulation-steps", 2)
    code, out, err = trained("--recipe", "msw", *asked, "--adapter-path", "run")
    assert (code, err) == (0, "") and re.search(r"recipe +msw ", re.sub(r"\x1b\[[\d;]*m", "", out))
    kept = yaml.safe_load((tmp_path / "run" / SETTINGS_FILE).read_text())
    assert kept["num_state_heads"] == 4 and kept["seed"] == 42 and kept["dtype"] == "bfloat16" and "recipe" not in kept
    assert load_adapter(tmp_path / "run").config.num_state_heads == 4
    code, out, _ = trained("--resume", "--adapter-path", "run")
    assert code == 0 and "is finished: all 4 steps are done" in out
    assert yaml.safe_load((tmp_path / "run" / SETTINGS_FILE).read_text()) == kept
    code, _, err = trained("--recipe", "msw", "--resume", "--adapter-path", "run")
    assert (code, err) == (
        2,
        "error: --recipe is for a new run, and the run in run has its options; leave it out\n",
    )
    # The file that a run writes can be the file of options of another run.
    assert trained("-c", f"run/{SETTINGS_FILE}", "--adapter-path", "again")[0] == 0
    assert (tmp_path / "again" / SETTINGS_FILE).read_text() == (tmp_path / "run" / SETTINGS_FILE).read_text()


@pytest.mark.slow
def test_with_start_a_recipe_does_not_change_the_adapters_shape(trained, tmp_path, data):
    asked = ("--recipe", "tsw", "--model", backbone(), "--data", data, "--start", adapter("qwen3_msw4"))
    code, out, err = trained(*asked, "--iters", 2, "--grad-accumulation-steps", 2, "--adapter-path", "run")
    assert (code, err) == (0, "") and "tsw · without its configuration of a new adapter" in out
    assert load_adapter(tmp_path / "run").config == load_adapter(adapter("qwen3_msw4")).config
    code, _, err = trained(*asked, "--rank", 4, "--adapter-path", "other")
    assert (code, err.count("\n")) == (2, 1) and "--rank would shape a new adapter" in err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("recipe: TSW", "--recipe is 'TSW'; expected tsw or ssw or msw"),
        ("recipe: [tsw]", "--recipe is ['tsw']; expected tsw or ssw or msw"),
        ("recipe: tsw\niters: 100", "--iters is 100, and an update takes 32 steps"),
        ("recipe: tsw\nmodel: ''", "--model is missing; expected a folder or a Hub repo"),
    ],
)
def test_a_wrong_recipe_gives_one_line(trained, tmp_path, content, problem):
    (tmp_path / "mine.yaml").write_text(f"model: {backbone()}\n{content}" if "model" not in content else content)
    code, _, err = trained("-c", "mine.yaml", "--adapter-path", "run")
    assert (code, err.count("\n")) == (2, 1) and problem in err
    assert not (tmp_path / "run").exists()


# One step


@pytest.mark.slow
def test_the_authors_data_set_is_the_default(hub, trained, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    content = FORMATS["train.jsonl"](SHAPES["prompt and response"]).encode()
    hub.create(PAPER_DATA, {"train.jsonl": content}, kind="datasets")
    shorter = ("--iters", 2, "--grad-accumulation-steps", 2)
    code, out, err = trained("--recipe", "tsw", "--model", backbone(), "--adapter-path", "run", *shorter)
    assert (code, err) == (0, "") and "2 episodes" in out
    assert yaml.safe_load((tmp_path / "run" / SETTINGS_FILE).read_text())["data"] == PAPER_DATA


def prepared(recipe: str, name: str, data: Path) -> tuple[RunOptions, nn.Module, TokenizerWrapper, list[Episode]]:
    """A run with a recipe that ends after one update with all data."""
    shorter = ("--iters", len(CHATS), "--grad-accumulation-steps", len(CHATS))
    options = RunOptions.of(arguments("--recipe", recipe, "--model", backbone(name), "--data", data, *shorter))
    model, tokenizer = prepare_model(options.settings)
    return options, model, tokenizer, load_episodes(options.settings, tokenizer, "stop")["train"][0]


@pytest.mark.slow
@every_backbone
@every_recipe
def test_the_loss_and_its_gradient_are_those_of_the_reference(recipe, backbone_name, data, monkeypatch):
    options, model, tokenizer, episodes = prepared(recipe, backbone_name, data)

    def text(messages: Sequence[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False)

    # Facts 3.2: the system prompt and the question are read, and earlier messages are written.
    decode = tokenizer.decode
    assert [decode(each.history.ids) for each in episodes] == [text(CHATS[0][:-2]), text(CHATS[1][:-2])]
    system, question = CHATS[0][:1], CHATS[0][-2:]
    assert decode(episodes[0].questions[0].ids) == text([*system, *question])
    freeze_all_but_adapter(model)
    check_single_episodes(monkeypatch, EpisodeModel(model, options.settings.terms).train(), episodes)


@pytest.mark.slow
@every_backbone
@every_recipe
def test_a_step_is_that_of_the_reference(recipe, backbone_name, data, tmp_path):
    """The step is AdamW's first update at the full rate with the clipped mean gradient of single episodes."""
    options, model, _, episodes = prepared(recipe, backbone_name, data)
    freeze_all_but_adapter(model)
    module = EpisodeModel(model, options.settings.terms).train()
    found = [gradients(module, PlainLoss(module, [each]).loss) for each in episodes]
    # In the module, the names of the model's weights have a prefix.
    mean = {weight.removeprefix("model."): sum(each[weight] for each in found) / len(found) for weight in found[0]}
    norm = mx.sqrt(sum(mx.square(gradient).sum() for gradient in mean.values())).item()
    before = {weight: array + 0 for weight, array in weights_of(model).items()}
    mx.eval(before)
    Run(model, options.settings, options.reporting, tmp_path).train(episodes, [])
    after = weights_of(model)
    for name, gradient in mean.items():
        clipped = gradient * min(1.0, 1.0 / norm)
        expected = -2e-4 * clipped / (mx.abs(clipped) + 1e-8)
        moved = after[name] - before[name]
        # Rounding may change the sign of gradients that are tiny beside the largest one.
        certain = mx.abs(clipped) > 1e-3 * mx.abs(clipped).max()
        assert certain.any() and mx.abs(mx.where(certain, moved - expected, 0)).max().item() <= 2e-6, name
