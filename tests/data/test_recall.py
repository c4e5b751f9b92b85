import json
from itertools import groupby
from pathlib import Path

import pytest

from mlx_deltamem.data import recall as recall_data
from mlx_deltamem.recall.split import side_of
from mlx_deltamem.recall.vocabulary import keys, values
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS
from mlx_deltamem.training.episodes import EpisodeMaker
from mlx_deltamem.training.records import read_file
from mlx_deltamem.training.rules import EpisodeRules
from tests.command_line import error_line
from tests.conftest import backbone
from tests.sessions.template.test_chat_template import golden_tokenizer
from tests.tool_runs import records_of, runner

SMALL = ("--train", 40, "--valid", 5, "--test", 10)
FILES = ("train", "valid", "test")


@pytest.fixture
def write(monkeypatch, capsys):
    return runner(recall_data, monkeypatch, capsys)


@pytest.fixture
def records(write, tmp_path):
    """A function that writes a folder of data and returns the records of each file."""

    def make(*options, folder="data"):
        assert write(tmp_path / folder, *SMALL, *options).code == 0
        return {name: records_of(tmp_path / folder / f"{name}.jsonl") for name in FILES}

    return make


def test_one_fact_is_told_and_asked_for(records):
    files = records("--keys", "first_names")
    assert [len(files[name]) for name in FILES] == [40, 5, 10]
    for record in files["train"]:
        assert record.keys() == {"messages", "value"}
        assert [message["role"] for message in record["messages"]] == ["user", "assistant"] * 2
        assert record["value"] in record["messages"][0]["content"]
        assert record["messages"][-1]["content"].endswith(f" {record['value']}.")


def test_values_of_the_tests_are_held_out(records):
    files = records("--facts", 1, 4)
    assert {side_of(record["value"]) for record in files["train"]} == {"train"}
    assert {side_of(record["value"]) for name in ("valid", "test") for record in files[name]} == {"held_out"}
    assert files["valid"] != files["test"][: len(files["valid"])]


def test_values_of_training_can_be_invented_but_not_those_of_the_tests(records):
    files = records("--keys", "first_names", "--invent", 1, "--words-of", backbone())
    asked = {name: {record["value"] for record in files[name]} for name in FILES}
    assert len(asked["train"] & set(values("first_names"))) < len(asked["train"]) / 5
    assert {side_of(value) for value in asked["train"]} == {"train"}
    assert asked["valid"] | asked["test"] <= set(values("first_names"))


def test_keys_and_phrasings_of_the_tests_can_be_held_out(records):
    files = records("--keys", "pet_name", "--held-out-keys", "--held-out-phrasings")
    for name, side in (("train", "train"), ("valid", "held_out"), ("test", "held_out")):
        asked = {
            key.say(phrase)
            for key in keys()
            if key.family.name == "pet_name" and key.side == side
            for phrase in key.family.ask[side]
        }
        assert {record["messages"][-2]["content"] for record in files[name]} <= asked


def test_questions_about_a_history_follow_each_other(records):
    train = records("--facts", 3, 3, "--filler", 2, 2, "--absent", 1, 1)["train"]
    histories = [(history, len(list(group))) for history, group in groupby(train, key=history_of)]
    assert len(histories) == 40
    assert {count for _, count in histories} == {4}
    assert {len(json.loads(history)) for history, _ in histories} == {10}
    assert sum("value" not in record for record in train) == 40


def test_shares_of_the_training_episodes_are_written_or_kept(records):
    options = ("--facts", 1, 2, "--system-prompt", "Be brief.")
    plain = records(*options)
    mixed = records(*options, "--written", 0.3, "--kept", 0.3, folder="mixed")
    assert mixed["valid"] == plain["valid"] and mixed["test"] == plain["test"]
    kinds = {}
    for record, same in zip(mixed["train"], plain["train"], strict=True):
        history = history_of(record)
        kind = record.pop("write", "after"), record.pop("recent_messages", None)
        # All questions about a history have the same form.
        assert kinds.setdefault(history, kind) == kind
        assert kind in (("after", None), ("all", None), ("all", len(record["messages"]) - 2))
        assert record == same
    kept = sum(recent is not None for _, recent in kinds.values())
    written = sum(write == "all" for write, _ in kinds.values()) - kept
    assert all(0.1 < count / len(kinds) < 0.5 for count in (kept, written))


def test_answers_can_be_those_of_conversations(records):
    options = ("--facts", 1, 3, "--absent", 1, 1, "--deletions", 0, 1)
    sentences, said = records(*options, folder="sentences"), records(*options, "--said", folder="said")
    kinds = set()
    for name in FILES:
        for one, other in zip(sentences[name], said[name], strict=True):
            assert one["messages"][:-1] == other["messages"][:-1] and one.get("value") == other.get("value")
            answer, value = other["messages"][-1]["content"], other.get("value")
            if value is None:
                kinds.add(answer)
            elif answer == one["messages"][-1]["content"]:
                # The word that is asked for, alone.
                assert answer.lower() == f"{value}.".lower()
                kinds.add("a word")
            else:
                assert answer == f"You said {value}."
                kinds.add("a value")
    assert kinds == {"a value", "a word", "You said nothing about that.", "You said to forget that."}


def test_kept_episodes_have_no_history_and_write_their_text(write, tmp_path):
    folders = {share: tmp_path / f"kept-{share}" for share in (0, 1)}
    episodes = {}
    for share, folder in folders.items():
        assert write(folder, *SMALL, "--keys", "first_names", "--kept", share).code == 0
        maker = EpisodeMaker(golden_tokenizer(), EpisodeRules(), strict=True)
        episodes[share] = maker.episodes(read_file(folder / "train.jsonl"))
    assert len(episodes[0]) == len(episodes[1]) == 40
    for dropped, kept in zip(*episodes.values(), strict=True):
        assert not dropped.writes_questions and kept.writes_questions
        assert kept.history == NO_SEGMENTS
        assert kept.questions[0].ids == dropped.history.ids + dropped.questions[0].ids


def history_of(record):
    return json.dumps(record["messages"][:-2])


def test_the_same_seed_writes_the_same(records, tmp_path):
    records(folder="one")
    records(folder="two")
    records("--seed", 1, folder="three")
    one, two, three = (Path(tmp_path, name, "train.jsonl").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_the_summary(write, tmp_path):
    run = write(tmp_path / "data", *SMALL, "--facts", 2, 2, "--absent", 1, 1)
    cells = {
        row[0]: row[1:]
        for row in ([cell.strip() for cell in line.split("│")[1:-1]] for line in run.output.splitlines())
        if row
    }
    assert cells["episodes"] == ["40", "5", "10"]
    assert cells["turns before the question"] == cells["questions, told"] == ["80", "10", "20"]
    assert cells["questions, absent"] == ["40", "5", "10"]
    # Keys and wordings of the tests are also in the training file, values are not. The table has a row for each.
    seen = [row.split("│")[2:5] for row in run.output.splitlines() if "of these in training" in row]
    assert [row[0].strip() for row in seen] == ["", "", ""]
    assert [cell.strip() for cell in seen[0][1:]] == ["0", "0"]
    assert all(int(cell) > 0 for row in seen[1:] for cell in row[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--facts", 3, 2), "facts is 3 to 2; expected two numbers from 0 on"),
        (("--invent", 0.5), "give --invent SHARE and --words-of MODEL together"),
        (("--words-of", backbone()), "give --invent SHARE and --words-of MODEL together"),
        (("--invent", 0.5, "--words-of", "no-such-model-here"), "no-such-model-here"),
        (("--written", 0.6, "--kept", 0.5), "--written 0.6 and --kept 0.5 are more than 1"),
        (("--keys", "wings"), "there is no key 'wings'"),
        (("--keys", "dog_name", "--held-out-keys"), "has no held_out key"),
        (("--keys", "dog_name", "--facts", 2, 2), "2 keys are needed"),
        (("--keys", "favourite_drink", "--updates", 40, 40), "more held_out drinks than there are"),
    ],
)
def test_impossible_settings_are_refused_and_leave_no_files(write, tmp_path, options, message):
    run = write(tmp_path / "data", *SMALL, *options)
    assert run.code == 2
    assert message in run.errors
    assert error_line(run.errors).startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_overwritten(write, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run = write(tmp_path, *SMALL)
    assert run.code == 2
    assert "name another folder" in run.errors
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_count_of_0_is_refused(write, tmp_path):
    assert "--train is 0; expected a whole number from 1 to 2**31 - 1" in write(tmp_path / "data", "--train", 0).errors


@pytest.mark.parametrize("option", ["--written", "--kept", "--invent"])
def test_a_share_is_from_0_to_1(write, tmp_path, option):
    assert f"{option} is 1.5; expected a number from 0 to 1" in write(tmp_path / "data", option, 1.5).errors


@pytest.mark.parametrize(("prompt", "problem"), [("a\udc80", "half a character (a lone"), ("\x00", "a NUL character")])
def test_a_system_prompt_that_is_not_text_is_refused(write, tmp_path, prompt, problem):
    ended = write(tmp_path / "data", *SMALL, "--system-prompt", prompt)
    assert ended.code == 2 and f"--system-prompt has {problem}" in ended.errors
    assert not (tmp_path / "data").exists()
