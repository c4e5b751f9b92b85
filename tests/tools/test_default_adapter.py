"""The recipe of the adapter that comes with the project."""

import importlib
import os
from pathlib import Path

import pytest
import yaml

from mlx_deltamem import load_adapter
from tests.conftest import backbone
from tools.default_adapter import HELD_OUT, RECIPE, flags, make_data, read_recipe, train, with_seed

SMALL = {
    "recall": {"invent": 0.5, "train": 12, "valid": 2, "test": 2, "seed": 1},
    "speech": {"facts": [1, 2], "train": 12, "test": 3, "seed": 2},
    "records": {"reply_tokens": 2, "seed": 3},
    "train": {
        "rank": 4,
        "delta_heads": ["q", "o"],
        "couple_lambda": False,
        "key_shift": True,
        "fit": 8,
        "turn_by_turn": True,
        "batch_size": 2,
        "iters": 2,
        "health_texts": 0,
        "seed": 4,
    },
}
# The arguments that the recipe leaves to the program.
PLACES = {
    "recall": ["folder", "--words-of", "model"],
    "speech": ["folder"],
    "records": ["conversations", "output", "--model", "model"],
    "train": ["--model", "model", "--data", "data", "--adapter-path", "run"],
}


LATER = {
    "records": [*PLACES["records"], "--adapter", "adapter"],
    "train": [*PLACES["train"], "--start", "adapter"],
}


@pytest.mark.parametrize("part", PLACES)
def test_each_command_takes_the_options_of_the_recipe(part):
    module = importlib.import_module("mlx_deltamem.train" if part == "train" else f"mlx_deltamem.data.{part}")
    for number, stage in enumerate(yaml.safe_load(RECIPE.read_text()).values()):
        assert set(stage) == set(PLACES)
        places = (PLACES | LATER if number else PLACES)[part]
        parsed = vars(module.setup_arg_parser().parse_args([*places, *flags(stage[part])]))
        assert {name: parsed[name] for name in stage[part]} == stage[part]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first: [", "is no YAML file"),
        ("- first", "has no stages"),
        ("first: 3", "stage first: expected a part recall with options and a seed"),
        ("first: {recall: {train: 3}}", "stage first: expected a part recall with options and a seed"),
    ],
)
def test_a_recipe_that_is_none_is_refused(text, message, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(file)


def test_a_repetition_has_other_seeds_only():
    recipe = read_recipe(RECIPE)
    other = with_seed(recipe, 5)
    for name, stage in other.items():
        for part, options in stage.items():
            assert options["seed"] == recipe[name][part]["seed"] + 5
            assert {**options, "seed": 0} == {**recipe[name][part], "seed": 0}
    assert with_seed(recipe, 0) == recipe


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_adapter_is_made_from_nothing(processes, tmp_path):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = Path(backbone())
    data = make_data(tmp_path, SMALL, model)
    assert {path.name for path in data.iterdir()} == {"train.jsonl", "valid.jsonl"}
    assert (tmp_path / f"{HELD_OUT}-records.jsonl").stat().st_size == (data / "valid.jsonl").stat().st_size
    assert train(tmp_path / "run", data, SMALL, model, processes) == 0
    assert load_adapter(tmp_path / "run").config.key_shift
    # The next stage goes on from it, with its replies.
    started = {"turn_by_turn": True, "batch_size": 2, "iters": 1, "health_texts": 0, "seed": 5}
    later = {**SMALL, "train": started}
    live = make_data(tmp_path / "later", later, model, tmp_path / "run")
    assert (live / "train.jsonl").read_text() != (data / "train.jsonl").read_text()
    assert train(tmp_path / "later" / "run", live, later, model, processes, tmp_path / "run") == 0
    assert load_adapter(tmp_path / "later" / "run").config == load_adapter(tmp_path / "run").config
    # A finished run is not trained again.
    assert train(tmp_path / "run", data, SMALL, model, processes) == 0
