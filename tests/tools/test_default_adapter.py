"""The recipe of the adapter that comes with the project."""

import importlib
import os
from pathlib import Path

import pytest
import yaml

from mlx_deltamem import load_adapter
from tests.conftest import backbone
from tools.default_adapter import HELD_OUT, RECIPE, flags, make_data, train, with_seed

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


@pytest.mark.parametrize("part", PLACES)
def test_each_command_takes_the_options_of_the_recipe(part):
    recipe = yaml.safe_load(RECIPE.read_text())
    assert set(recipe) == set(PLACES)
    module = importlib.import_module("mlx_deltamem.train" if part == "train" else f"mlx_deltamem.data.{part}")
    parsed = vars(module.setup_arg_parser().parse_args([*PLACES[part], *flags(recipe[part])]))
    assert {name: parsed[name] for name in recipe[part]} == recipe[part]


def test_a_repetition_has_other_seeds_only():
    recipe = yaml.safe_load(RECIPE.read_text())
    other = with_seed(recipe, 5)
    for part, options in other.items():
        assert options["seed"] == recipe[part]["seed"] + 5
        assert options | {"seed": 0} == recipe[part] | {"seed": 0}
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
    # A finished run is not trained again.
    assert train(tmp_path / "run", data, SMALL, model, processes) == 0
