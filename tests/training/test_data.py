import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from mlx_deltamem.training.prepare import load_episodes
from mlx_deltamem.training.rules import EpisodeRules
from mlx_deltamem.training.settings import Settings
from mlx_deltamem.training.terms import LossTerms
from tests.conftest import REPO
from tests.hub import fixture as hub_fixture
from tests.hub.fixture import using
from tests.sessions.template.test_chat_template import chat, golden_tokenizer

hub = hub_fixture.hub

TALK = chat("I am Ann.", "Hello.", "Who am I?", "Ann.")
ASKED = {"prompt": "Who?", "completion": "Ann"}
SHAPES = {
    "messages": [{"messages": TALK}, {"messages": TALK[2:]}],
    "prompt and response": [{"prompt": "Who?", "response": "Ann"}, {"prompt": "What?", "response": "A bee."}],
    "prompt and completion": [ASKED, {"prompt": "What?", "completion": "A bee."}],
}
FORMATS = {
    "train.jsonl": lambda rows: "".join(f"{json.dumps(row)}\n" for row in rows),
    "train.json": lambda rows: json.dumps(rows, indent=1),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_format = pytest.mark.parametrize("file", FORMATS)


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


def test_the_settings_decide_the_episodes(tmp_path):
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


def test_a_bad_held_out_record_also_stops(tmp_path):
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


# Shapes of records


def texts_of(episodes) -> list[tuple[str, str]]:
    """The texts of each episode: the history, and the question with its answer."""
    decode = golden_tokenizer().decode
    return [(decode(each.history.ids), decode(each.questions[0].ids)) for each in episodes]


def expected_texts(shape: str) -> list[tuple[str, str]]:
    def text(messages) -> str:
        return golden_tokenizer().apply_chat_template(messages, tokenize=False)

    if shape == "messages":
        return [(text(TALK[:2]), text(TALK[2:])), ("", text(TALK[2:]))]
    return [("", text(chat("Who?", "Ann"))), ("", text(chat("What?", "A bee.")))]


@every_format
@every_shape
def test_every_shape_of_record_in_a_folder(tmp_path, shape, file):
    (tmp_path / file).write_text(FORMATS[file](SHAPES[shape]))
    episodes, counts = loaded(tmp_path)["train"]
    assert texts_of(episodes) == expected_texts(shape) and not counts.errors


@every_format
@every_shape
def test_every_shape_of_record_on_the_hub(hub, monkeypatch, shape, file):
    monkeypatch.setitem(sys.modules, "datasets", None)
    content = FORMATS[file](SHAPES[shape]).encode()
    hub.create("user/set", {file: content, "README.md": b"# A set", "test.jsonl": b"not read"}, kind="datasets")
    found = loaded("user/set")
    assert texts_of(found["train"][0]) == expected_texts(shape) and found["valid"][0] == []
    assert not any("test.jsonl" in request.path for request in hub.requests)


def test_the_records_of_a_test(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    row = json.dumps({"messages": TALK}).encode()
    hub.create("user/set", {"train.jsonl": row, "test.jsonl": row + b"\n" + row}, kind="datasets")
    settings = Settings("model", "user/set", terms=LossTerms(teacher_kl=0.1))
    found = load_episodes(settings, golden_tokenizer(), "stop", ("test",))
    assert list(found) == ["test"]
    assert found["test"][1].rows() == [("episodes", 1), ("questions", 2)]
    # A test has no teacher.
    assert all(episode.context == () for episode in found["test"][0])
    hub.create("user/none", {"train.jsonl": row}, kind="datasets")
    with pytest.raises(ValueError, match=r"user/none has no test\.jsonl \(or test\.json\)"):
        load_episodes(Settings("model", "user/none"), golden_tokenizer(), "stop", ("test",))
    write(tmp_path, "test.jsonl")
    with pytest.raises(ValueError, match=r"has no test episode \(no records\); expected some"):
        load_episodes(Settings("model", str(tmp_path)), golden_tokenizer(), "stop", ("test",))


@pytest.mark.parametrize("file", ["valid.jsonl", "validation.json"])
def test_held_out_records_on_the_hub(hub, monkeypatch, file):
    monkeypatch.setitem(sys.modules, "datasets", None)
    row = json.dumps({"messages": TALK}).encode()
    hub.create("user/set", {"train.jsonl": row, file: row}, kind="datasets")
    assert [len(episodes) for episodes, _ in loaded("user/set").values()] == [1, 1]
    hub.commit("user/set", {file: b'{"text": "x"}'}, kind="datasets")
    with pytest.raises(ValueError, match=rf"^{file} .* 1 has text; expected messages, or prompt and completion"):
        loaded("user/set")


def test_a_downloaded_data_set_is_read_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    hub.create("user/set", {"train.jsonl": json.dumps(ASKED).encode()}, kind="datasets")
    once = loaded("user/set")["train"][0]
    with using(hub, tmp_path / "huggingface", offline=True):
        assert loaded("user/set")["train"][0] == once
    with using(hub, tmp_path / "new", offline=True), pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
        loaded("user/set")


def test_a_data_set_on_the_hub_that_may_not_be_read(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    hub.create("stranger/set", {"train.jsonl": b"{}"}, kind="datasets", private=True)
    hub.create("stranger/gated", {"train.jsonl": b"{}"}, kind="datasets", gated=True)
    hub.create("user/model", {"train.jsonl": b"{}"})
    for name in ("stranger/set", "user/model"):
        with pytest.raises(FileNotFoundError, match=f"^{name} is not a folder on this machine and not a repo"):
            loaded(name)
    with pytest.raises(ValueError, match=r"^stranger/gated is gated: accept its terms"):
        loaded("stranger/gated")


# The library for other data sets


class DatasetsError(Exception):
    """As in the `datasets` library."""


class DatasetNotFoundError(DatasetsError, FileNotFoundError):
    """As in the `datasets` library."""


@pytest.fixture
def library(hub, monkeypatch) -> dict[str, object]:
    """A replacement of the `datasets` library: by name, the splits or the error of a data set."""
    sets: dict[str, object] = {}

    def load_dataset(name: str) -> object:
        found = sets[name]
        if isinstance(found, Exception):
            raise found
        return found

    module = ModuleType("datasets")
    module.__spec__ = SimpleNamespace(loader=None)
    module.load_dataset = load_dataset
    module.exceptions = SimpleNamespace(DatasetsError=DatasetsError, DatasetNotFoundError=DatasetNotFoundError)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return sets


@pytest.mark.parametrize("valid", ["valid", "validation"])
def test_a_data_set_of_other_files(hub, library, valid):
    hub.create("user/set", {"data/train-00000-of-00001.parquet": b"PAR1"}, kind="datasets")
    rows = [{"messages": TALK, "prompt": None}, {"messages": None, "prompt": "Who?", "completion": "Ann"}]
    library["user/set"] = {"train": rows, valid: rows[:1], "test": []}
    found = loaded("user/set")
    assert [len(found[split][0]) for split in ("train", "valid")] == [2, 1]
    library["user/set"] = {"train": rows}
    assert loaded("user/set")["valid"][0] == []
    library["user/set"] = {"train": [*rows, {"text": "x"}]}
    with pytest.raises(ValueError, match=r"user/set train record 3 has text; expected messages"):
        loaded("user/set")


def test_data_sets_that_cannot_be_used(library):
    library["user/set"] = {"test": [], "all": []}
    with pytest.raises(ValueError, match="user/set has the splits test, all; expected one named train"):
        loaded("user/set")
    library["user/set"] = DatasetNotFoundError("Dataset 'user/set' doesn't exist\non the Hub")
    with pytest.raises(FileNotFoundError, match=r"there is no folder and no data set user/set \(Dataset .*exist\)$"):
        loaded("user/set")
    for kind in (ValueError, DatasetsError, RuntimeError):
        library["user/set"] = kind("Config name is missing.\nPick one")
        with pytest.raises(ValueError, match=r"user/set cannot be read \(Config name is missing\.\); try another one$"):
            loaded("user/set")


def test_json_files_are_read_without_the_library(hub, library):
    hub.create("user/set", {"train.jsonl": json.dumps(ASKED).encode()}, kind="datasets")
    assert len(loaded("user/set")["train"][0]) == 1 and not library


def test_without_the_library_for_the_hub(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    hub.create("user/set", {"other.csv": b"a,b"}, kind="datasets")
    with pytest.raises(ValueError, match=r"user/set has no train\.jsonl .*, and for other files it needs: pip"):
        loaded("user/set")


# Loads a data set in another process, since the library keeps the Hub's address from its import on.
LOAD = """
import sys
from tests.training.test_data import loaded, texts_of
print([texts_of(episodes) for episodes, _ in loaded(sys.argv[1]).values()])
"""


@pytest.mark.slow
@every_shape
def test_other_files_with_the_library_itself(hub, tmp_path, shape):
    pytest.importorskip("datasets", exc_type=ImportError)
    rows = FORMATS["train.json"](SHAPES[shape]).encode()
    hub.create("user/set", {"README.md": b"# A set", "qasper_write8192.json": rows}, kind="datasets")
    environment = {**hub.environment(tmp_path), "HF_DATASETS_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", LOAD, "user/set"]
    ended = subprocess.run(command, env=os.environ | environment, cwd=REPO, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"{[expected_texts(shape), []]}\n"), ended.stderr
