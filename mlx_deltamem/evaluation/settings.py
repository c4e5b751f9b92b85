"""What decides the records of a run, kept beside them, so that a run goes on only where it would give the same ones."""

import json
from collections.abc import Mapping
from pathlib import Path

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.files.atomic import new_file

SETTINGS_FILE = "settings.json"


def compare_settings(
    folder: Path, origin: Origin, plan: Mapping[str, object], tasks: Mapping[str, object]
) -> dict[str, object]:
    """Compare the settings of a run with those that its folder has.

    Args:
        folder: The run's folder.
        origin: The model, the adapter and the tokenizer.
        plan: What holds for all tasks.
        tasks: By name, what decides a task's records, beside its questions (see `Run.check`).

    Returns:
        Those to keep in the folder: with the tasks that are new there, and those that it had.

    Raises:
        ValueError: The folder's run has others.
        OSError: They cannot be read.
    """
    path = folder / SETTINGS_FILE
    present = {
        "backbone": origin.backbone,
        "adapter": origin.adapter,
        "tokenizer": origin.tokenizer,
        "plan": json.loads(json.dumps(plan)),
        "tasks": json.loads(json.dumps(tasks)),
    }
    if path.exists():
        earlier = _read(path)
        for name in ("backbone", "adapter", "tokenizer", "plan"):
            _compare(folder, name, earlier[name], present[name])
        for name, settings in earlier["tasks"].items():
            if name in tasks:
                _compare(folder, name, settings, present["tasks"][name])
        present["tasks"] = earlier["tasks"] | present["tasks"]
    return present


def keep_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Write the settings of a run into its folder.

    Raises:
        OSError: They cannot be written.
    """
    with new_file(folder / SETTINGS_FILE) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _compare(folder: Path, name: str, earlier: object, present: object) -> None:
    if earlier == present:
        return
    which = name
    if isinstance(earlier, dict) and isinstance(present, dict):
        changed = [key for key in {**earlier, **present} if earlier.get(key) != present.get(key)]
        which = f"{name} ({', '.join(changed)})"
    raise ValueError(f"the run in {folder} has another {which}; leave it as it was, or name a new folder")


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        complete = isinstance(found["tasks"], dict) and {"backbone", "adapter", "tokenizer", "plan"} <= found.keys()
    except (ValueError, TypeError, KeyError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is damaged; expected the settings of a run: remove the folder and begin anew")
    return found
