import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from mlx_deltamem.training.data import load_episodes
from mlx_deltamem.training.episodes import EpisodeRules
from mlx_deltamem.training.loss import LossTerms
from mlx_deltamem.training.settings import Settings
from tests.test_segments import chat, golden_tokenizer

TALK = chat("I am Ann.", "Hello.", "Who am I?", "Ann.")
ASKED = {"prompt": "Who?", "completion": "Ann"}


def write(folder, name: str, *rows: object) -> None:
    (folder / name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


def loaded(data: object, on_error: str = "stop", **settings: object):
    return load_episodes(Settings("model", str(data), **settings), golden_tokenizer(), on_error)


def test_a_folder_with_both_files(tmp_path):
    write(tmp_path, "train.jsonl", {"messages": TALK}, ASKED)
    (tmp_path / "valid.json").write_text(json.dumps([{"messages": TALK}]))
    found = loaded(tmp_path)
    assert {split: len(episodes) for split, (episodes, _) in found.items()} == {"train": 2, "valid": 1}
    assert found["train"][1].rows() == [("episodes", 2), ("questions", 2), ("without a history", 1)]
    assert found["valid"][0] == found["train"][0][:1]


def test_a_folder_without_held_out_data(tmp_path):
    write(tmp_path, "train.jsonl", {"messages": TALK})
    episodes, counts = loaded(tmp_path)["valid"]
    assert episodes == [] and counts.rows() == []


def test_the_settings_decide(tmp_path):
    write(tmp_path, "train.jsonl", {"messages": TALK})
    episodes, _ = loaded(tmp_path, rules=EpisodeRules(final_assistant_only=False))["train"]
    assert len(episodes) == 2 and episodes[0].context == ()
    [episode], _ = loaded(tmp_path, terms=LossTerms(teacher_kl=0.1))["train"]
    assert len(episode.context) == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "is not JSON"),
        ([1], "is a list; expected an object"),
        ({"messages": TALK[:-1]}, "does not end with an answer"),
        ({"messages": [*TALK[:-1], {"role": "assistant", "content": ""}]}, "message 3, is empty"),
        ({"messages": [*TALK[:-1], {"role": "assistant", "content": "a" * 600}]}, "is an answer of 602 tokens"),
    ],
)
def test_a_bad_record_stops_or_is_left_out(tmp_path, row, problem):
    write(tmp_path, "train.jsonl", {"messages": TALK}, row, ASKED)
    with pytest.raises(ValueError) as caught:
        loaded(tmp_path)
    message = str(caught.value)
    assert message.startswith("train.jsonl line 2") and problem in message and "\n" not in message
    assert message.endswith(" (--on-error skip leaves such records out)")
    episodes, counts = loaded(tmp_path, "skip")["train"]
    assert len(episodes) == 2
    assert len(counts.errors) == 1 and counts.errors[0] + " (--on-error skip leaves such records out)" == message


def test_a_bad_held_out_record_stops_too(tmp_path):
    write(tmp_path, "train.jsonl", {"messages": TALK})
    write(tmp_path, "valid.jsonl", {})
    with pytest.raises(ValueError, match=r"valid\.jsonl line 1 has no fields"):
        loaded(tmp_path)
    assert loaded(tmp_path, "skip")["valid"][1].rows() == [("unreadable", 1)]


def test_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no train\.jsonl \(or train\.json\); expected a folder of"):
        loaded(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; expected one with train\.jsonl, or"):
        loaded(tmp_path / "nowhere")
    write(tmp_path, "train.jsonl", "", "{x")
    with pytest.raises(ValueError, match=r"train\.jsonl is a file; expected the folder of train\.jsonl"):
        loaded(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"has no training episode \(1 unreadable\); expected some"):
        loaded(tmp_path, "skip")
    write(tmp_path, "train.jsonl")
    with pytest.raises(ValueError, match=r"has no training episode \(no records\); expected some"):
        loaded(tmp_path)


# The Hub


class DatasetsError(Exception):
    """As in the `datasets` library."""


class DatasetNotFoundError(DatasetsError, FileNotFoundError):
    """As in the `datasets` library."""


@pytest.fixture
def hub(monkeypatch) -> dict[str, object]:
    """What the `datasets` library, which tests do without, would load: by name, splits or an error."""
    sets: dict[str, object] = {}

    def load_dataset(name: str) -> object:
        found = sets[name]
        if isinstance(found, Exception):
            raise found
        return found

    library = ModuleType("datasets")
    library.__spec__ = SimpleNamespace(loader=None)
    library.load_dataset = load_dataset
    library.exceptions = SimpleNamespace(DatasetsError=DatasetsError, DatasetNotFoundError=DatasetNotFoundError)
    monkeypatch.setitem(sys.modules, "datasets", library)
    return sets


@pytest.mark.parametrize("valid", ["valid", "validation"])
def test_a_data_set_on_the_hub(hub, valid):
    rows = [{"messages": TALK, "prompt": None}, {"messages": None, "prompt": "Who?", "completion": "Ann"}]
    hub["user/set"] = {"train": rows, valid: rows[:1], "test": []}
    found = loaded("user/set")
    assert [len(found[split][0]) for split in ("train", "valid")] == [2, 1]
    hub["user/set"] = {"train": rows}
    assert loaded("user/set")["valid"][0] == []
    hub["user/set"] = {"train": [*rows, {"text": "x"}]}
    with pytest.raises(ValueError, match=r"user/set train record 3 has text; expected messages"):
        loaded("user/set")


def test_data_sets_that_cannot_be_used(hub):
    hub["user/set"] = {"test": [], "all": []}
    with pytest.raises(ValueError, match="user/set has the splits test, all; expected one named train"):
        loaded("user/set")
    hub["user/set"] = DatasetNotFoundError("Dataset 'user/set' doesn't exist\non the Hub")
    with pytest.raises(FileNotFoundError, match=r"there is no folder and no data set user/set \(Dataset .*exist\)$"):
        loaded("user/set")
    for kind in (ValueError, DatasetsError, RuntimeError):
        hub["user/set"] = kind("Config name is missing.\nPick one")
        with pytest.raises(ValueError, match=r"user/set cannot be read \(Config name is missing\.\); try another one$"):
            loaded("user/set")


def test_without_the_library_for_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"no folder user/set, and a data set on the Hub needs: pip install 'mlx-del"):
        loaded("user/set")
