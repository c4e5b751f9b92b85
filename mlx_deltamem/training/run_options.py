"""The options of a training run, collected from the command line, a YAML file, a recipe and an earlier run."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from mlx_deltamem.adapters.hub import is_repo_name
from mlx_deltamem.adapters.loading import load_model_type
from mlx_deltamem.adapters.names import PLACES
from mlx_deltamem.core.adapter import SETTINGS_FILE
from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.files.atomic import new_file, user_path
from mlx_deltamem.options.option import flag, taken_from
from mlx_deltamem.options.rule import Rule, shown
from mlx_deltamem.training import processes
from mlx_deltamem.training.options_file import parse_options, read_content
from mlx_deltamem.training.recipes import find_recipe
from mlx_deltamem.training.settings import CHECKPOINTED, GROUPS, ON_ERROR, Reporting, Settings

_KNOWN = {
    *PLACES,
    "adapter_path",
    "grad_checkpoint",
    "on_error",
    "recipe",
    "test",
    "train",
    *(each.name for kind in (*GROUPS.values(), DeltaMemConfig) for each in fields(kind)),
}

# The options of a run that say nothing about a test of its adapter.
_OF_NEW_ADAPTER = {*(each.name for each in fields(DeltaMemConfig)), "fit", "tie_output"}


@dataclass(frozen=True)
class RunOptions:
    """All options of a run.

    Attributes:
        folder: The run's folder.
        settings: The settings that decide the trained weights.
        reporting: The settings of reports and checkpoints.
        on_error: What to do with an unusable record, one of `ON_ERROR`.
        recipe: The name of the recipe, or "".
        trains, tests: Whether to train, and whether to test the adapter afterwards. At least one is true. Without
            training, `settings.start` is the adapter in the folder.
    """

    folder: Path
    settings: Settings
    reporting: Reporting
    on_error: str
    recipe: str = ""
    trains: bool = True
    tests: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> "RunOptions":
        """Collect the options of a command line.

        An option comes from the first of these that has it: the command line, the YAML file, the recipe or the run to
        resume, the defaults.

        Raises:
            FileNotFoundError: The YAML file, the run to resume, or the model of a recipe does not exist.
            ValueError: An option is unknown, missing or out of range, or differs from the run to resume, or a recipe is
                named for such a run, or an adapter to start from is named for a test alone.
        """
        asked = _of_file(args.config) if args.config is not None else {}
        asked |= {name: value for name, value in vars(args).items() if name in _KNOWN and value is not None}
        asked |= {name: _located(asked[name]) for name in PLACES if name in asked}
        trains, tests = _work(asked, args.resume)
        folder = _folder(asked.pop("adapter_path", None))
        recipe = asked.pop("recipe", None)
        begun = args.resume or (not trains and processes.any_of((folder / SETTINGS_FILE).is_file())[0])
        if recipe is not None and begun:
            raise ValueError(f"--recipe is for a new run, and the run in {folder} has its options; leave it out")
        checkpointing = asked.pop("grad_checkpoint", False)
        Rule(bool).check("--grad-checkpoint", checkpointing)
        if checkpointing and args.segment is None:
            # The file of an earlier run has a segment of 0, unless it was given.
            asked["segment"] = asked.get("segment") or CHECKPOINTED
        if not trains:
            _check_test(args.start, folder)
        earlier = _of_run(folder) if begun else {} if recipe is None else _of_recipe(recipe, asked)
        if args.resume and asked.get("start") and not earlier.get("start"):
            raise ValueError(f"the run in {folder} was begun without --start; leave it out to go on")
        options = earlier | asked
        if not trains:
            options = {name: value for name, value in options.items() if name not in _OF_NEW_ADAPTER}
            options["start"] = str(folder)
        settings = Settings.from_flat(options)
        if args.resume and (changed := _changes(Settings.from_flat(earlier), settings)):
            raise ValueError(f"the run in {folder} was begun with {', '.join(changed)}; leave it out to go on")
        on_error = options.get("on_error", ON_ERROR[0])
        Rule(str, choices=ON_ERROR).check("--on-error", on_error)
        reporting = taken_from(options, Reporting)
        named = "" if recipe is None else str(recipe)
        return cls(folder, settings, reporting, str(on_error), named, trains, tests)

    def save(self) -> None:
        """Write the options into the run's folder."""
        options = self.settings.flat() | asdict(self.reporting) | {"on_error": self.on_error}
        with new_file(self.folder / SETTINGS_FILE) as path:
            path.write_text(yaml.safe_dump(options, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _work(asked: dict[str, object], resumes: bool) -> tuple[bool, bool]:
    """Take `train` and `test` out of the options; return whether to train, and whether to test."""
    train, test = asked.pop("train", None), asked.pop("test", False)
    for name, value in (("train", train), ("test", test)):
        Rule(bool, optional=True).check(f"--{name}", value)
    trains = bool(train) or resumes or (train is None and not test)
    if not (trains or test):
        raise ValueError("--train and --test are both off; expected at least one of them")
    return trains, bool(test)


def _check_test(start: str | None, folder: Path) -> None:
    """Check that a test without training has one adapter: that in the folder or Hub repo."""
    if start:
        raise ValueError(
            "--test without --train tests the adapter in --adapter-path; leave out --start, or train with it (--train)"
        )
    if not (folder.exists() or is_repo_name(str(folder).partition("@")[0])):
        raise FileNotFoundError(f"there is no folder {folder} with an adapter to test; to train one first, add --train")


def _of_file(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected a YAML file of options")
    return parse(read_content(path), path)


def _of_recipe(name: object, asked: Mapping[str, object]) -> dict[str, object]:
    """The options of a recipe, which depend on the model and on whether there is a `start`."""
    recipe, model = find_recipe(name), asked.get("model")
    # Settings reports a missing model.
    model_type = load_model_type(model) if isinstance(model, str) and model else ""
    return recipe.options(model_type, new_adapter=not asked.get("start"))


def _of_run(folder: Path) -> dict[str, object]:
    """The options of the run in a folder, which the first process reads."""
    path = folder / SETTINGS_FILE
    content = processes.from_first(read_content(path) if path.is_file() else b"")
    if not content:
        raise FileNotFoundError(f"{folder} holds no run ({SETTINGS_FILE}); begin one without --resume")
    return parse(content, path)


def parse(content: bytes, path: Path) -> dict[str, object]:
    """Parse a YAML file of options of a run; options without a value are left out.

    Args:
        content: The content of the file.
        path: The path for error messages.

    Raises:
        ValueError: The content is not valid YAML, or has unknown options.
    """
    return parse_options(content, path, _KNOWN)


def _located(name: object) -> object:
    """The full path of an existing folder, so that a run can be resumed from anywhere; other names as they are."""
    if isinstance(name, str) and name and user_path(name).exists():
        return str(user_path(name).absolute())
    return name


def _folder(name: object) -> Path:
    if name is None:
        raise ValueError("--adapter-path is missing; expected a folder for the adapter and its run")
    if not isinstance(name, str | Path) or name == "":
        raise ValueError(f"--adapter-path is {shown(name)}; expected a folder for the adapter and its run")
    return user_path(name)


def _changes(begun: Settings, asked: Settings) -> list[str]:
    """The options that a run began with and that differ from those asked for."""
    after = asked.flat()
    return [f"{flag(name)} {value}" for name, value in begun.flat().items() if after.get(name) != value]
