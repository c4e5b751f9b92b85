"""The settings file of a run. A run can be continued only with settings that give the same records."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.files.jsonl import read_json

SETTINGS_FILE = "settings.json"
# Settings of tasks that only some conditions have. A run may be continued with conditions that do not have them.
_OF_SOME = ("dense_model",)


class RunSettings(TypedDict):
    """The content of the settings file.

    Keys:
        backbone, adapter, tokenizer: Their fingerprints, see `Origin`.
        plan: The settings of all tasks, by name.
        tasks: The settings of each task, by the task's name.
    """

    backbone: str
    adapter: str
    tokenizer: str
    plan: object
    tasks: dict[str, object]


def compare_settings(
    folder: Path, origin: Origin, plan: Mapping[str, object], tasks: Mapping[str, object]
) -> RunSettings:
    """Compare the settings of a run with the settings file in its folder, if there is one.

    Args:
        folder: The run's folder.
        origin: The fingerprints of the model, the adapter and the tokenizer.
        plan: The settings that hold for all tasks.
        tasks: By name, the settings of each task. The questions are compared by `EvaluationRun.check`.

    Returns:
        The settings to keep in the folder: those of the file and of the new tasks.

    Raises:
        ValueError: The folder's run has other settings, or the file is damaged.
        OSError: The file cannot be read.
    """
    path = folder / SETTINGS_FILE
    present: RunSettings = {
        "backbone": origin.backbone,
        "adapter": origin.adapter,
        "tokenizer": origin.tokenizer,
        # As they are read from the file: tuples are lists there.
        "plan": json.loads(json.dumps(plan)),
        "tasks": json.loads(json.dumps(tasks)),
    }
    if path.exists():
        earlier = _read(path)
        _compare(folder, "backbone", earlier["backbone"], present["backbone"])
        _compare(folder, "adapter", earlier["adapter"], present["adapter"])
        _compare(folder, "tokenizer", earlier["tokenizer"], present["tokenizer"])
        _compare(folder, "plan", earlier["plan"], present["plan"])
        for name in [name for name in earlier["tasks"] if name in tasks]:
            present["tasks"][name] = _completed(present["tasks"][name], earlier["tasks"][name])
            _compare(folder, name, _completed(earlier["tasks"][name], present["tasks"][name]), present["tasks"][name])
        present["tasks"] = earlier["tasks"] | present["tasks"]
    return present


def keep_settings(folder: Path, settings: RunSettings) -> None:
    """Write the settings of a run into its folder.

    Raises:
        OSError: The file cannot be written.
    """
    with new_file(folder / SETTINGS_FILE) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _completed(settings: object, others: object) -> object:
    """The settings of a task, with those of `_OF_SOME` that only the other settings have."""
    if not isinstance(settings, dict) or not isinstance(others, dict):
        return settings
    return settings | {name: others[name] for name in _OF_SOME if name in others and settings.get(name) is None}


def _compare(folder: Path, name: str, earlier: object, present: object) -> None:
    if earlier == present:
        return
    which = name
    if isinstance(earlier, dict) and isinstance(present, dict):
        changed = [key for key in {**earlier, **present} if earlier.get(key) != present.get(key)]
        which = f"{name} ({', '.join(changed)})"
    raise ValueError(f"the run in {folder} has another {which}; use the same, or name a new folder")


def _read(path: Path) -> RunSettings:
    try:
        found = cast(dict[str, Any], read_json(path))
        complete = isinstance(found["tasks"], dict) and {"backbone", "adapter", "tokenizer", "plan"} <= found.keys()
    except (ValueError, TypeError, KeyError, AttributeError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is damaged; expected the settings of a run; remove the folder and start again")
    return cast(RunSettings, found)
