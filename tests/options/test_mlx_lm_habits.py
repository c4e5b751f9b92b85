"""The tables of mlx-lm's options have those of the installed mlx-lm that its users try here."""

import importlib

import pytest

from mlx_deltamem.options.mlx_lm_habits import ALWAYS, OPTIONS

# By our command, mlx-lm's, and the function that makes its parser.
THEIRS = {
    "train": ("lora", "build_parser"),
    "generate": ("generate", "setup_arg_parser"),
    "chat": ("chat", "setup_arg_parser"),
    "convert": ("convert", "configure_parser"),
    "benchmark": ("benchmark", "setup_arg_parser"),
}


@pytest.mark.parametrize("command", THEIRS)
def test_every_option_of_mlx_lm_is_known_or_has_a_hint(command):
    name, make = THEIRS[command]
    theirs = getattr(importlib.import_module(f"mlx_lm.{name}"), make)()
    ours = importlib.import_module(f"mlx_deltamem.{command}").setup_arg_parser()
    hinted = {each for each in OPTIONS[command] if each}
    missing = [
        option
        for action in theirs._actions
        for option in action.option_strings
        if option.startswith("--") and option not in ours._option_string_actions and option not in hinted
    ]
    assert not missing


def test_what_train_always_does_may_be_given():
    args = importlib.import_module("mlx_deltamem.train").setup_arg_parser().parse_args(["--train", "--mask-prompt"])
    assert all(getattr(args, name) is True for name in ALWAYS)
