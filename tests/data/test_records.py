"""Training records of conversations, with the replies of a tiny model."""

import json
from pathlib import Path

import pytest

from mlx_deltamem.adapters.loading import load, load_tokenizer
from mlx_deltamem.data import records as speech_records
from mlx_deltamem.data import speech as speech_data
from mlx_deltamem.data.conversations import read_conversations
from mlx_deltamem.files.jsonl import json_records
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.speech import Conversation
from mlx_deltamem.training.episodes import EpisodeMaker
from mlx_deltamem.training.records import read_file
from mlx_deltamem.training.rules import EpisodeRules
from tests.conftest import adapter, backbone
from tests.tool_runs import runner

CONVERSATIONS = 12


@pytest.fixture
def run(monkeypatch, capsys):
    return runner(speech_records, monkeypatch, capsys)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["speech_data", str(folder), "--train", str(CONVERSATIONS), "--test", "1"])
        speech_data.main()
    return folder / "train.jsonl"


def records(run, conversations: Path, output: Path, *options: object) -> list[dict]:
    ended = run(conversations, output, "--model", backbone("qwen3-tiny"), "--reply-tokens", 3, *options)
    assert ended.code == 0, ended.errors
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.slow
def test_each_question_follows_its_conversation_with_all_replies(run, conversations, tmp_path):
    found = records(run, conversations, tmp_path / "a.jsonl", "--ordinary", 0, "--told", 0, "--only-read", 0)
    told = [Conversation.from_json(each.value) for each in json_records(conversations)]
    asked = [(each.text, each.answer, each.kind) for conversation in told for each in conversation.questions]
    assert [(*(each["content"] for each in row["messages"][-2:]), row["kind"]) for row in found] == asked
    assert {(row["write"], row["turn_by_turn"]) for row in found} == {("all", True)}
    assert all(message["content"] for row in found for message in row["messages"])


def test_the_reply_to_a_fact_repeats_the_value_that_is_asked_for_later(run, conversations, tmp_path):
    found = records(run, conversations, tmp_path / "new" / "a.jsonl", "--ordinary", 0, "--told", 1)
    told = [row["messages"][-1]["content"] for row in found if row["kind"] == "told"]
    values = {row["value"] for row in found if row["kind"] == "fact"}
    # In some conversations only the assistant tells something, and not every fact is asked.
    assert CONVERSATIONS // 2 < len(told) <= CONVERSATIONS
    # What is told back counts as much as what is recalled.
    assert all(row["value"] in row["messages"][-1]["content"] for row in found if row["kind"] == "told")
    assert sum(any(value in reply for value in values) for reply in told) >= CONVERSATIONS // 3


def test_the_assistant_may_only_acknowledge_a_fact(run, conversations, tmp_path):
    options = ("--ordinary", 0, "--told", 1)
    repeated = records(run, conversations, tmp_path / "a.jsonl", *options)
    short = records(run, conversations, tmp_path / "b.jsonl", *options, "--acknowledged", 1)
    half = records(run, conversations, tmp_path / "c.jsonl", *options, "--acknowledged", 0.5)
    for long_row, short_row in zip(repeated, short, strict=True):
        said = [[message["content"] for message in row["messages"]] for row in (long_row, short_row)]
        # Only replies differ, and each is the beginning of the other one.
        assert all(one.startswith(other) for one, other in zip(*said, strict=True))
        assert said[0][::2] == said[1][::2]
    told = [row for row in short if row["kind"] == "told"]
    assert told and all(row["messages"][-1]["content"].count(".") == 1 and "value" not in row for row in told)
    assert half not in (repeated, short)


def test_the_shares_of_the_command_line(run, conversations, tmp_path):
    shares = {
        "--ordinary": 2,
        "--ordinary-weight": 2.5,
        "--begun": 1,
        "--told": 0,
        "--only-read": 1,
        "--only-read-ordinary": 0,
    }
    options = [part for pair in shares.items() for part in pair]
    found = records(run, conversations, tmp_path / "a.jsonl", *options)
    ordinary = [row for row in found if row["kind"] == "ordinary"]
    # A tiny model may give an empty reply.
    assert 0 < len(ordinary) <= 2 * CONVERSATIONS and all(len(row["messages"]) > 2 for row in ordinary)
    assert {row["write"] for row in ordinary} == {"all"}
    assert {(row["target"], row["weight"]) for row in ordinary} == {("frozen", 2.5)}
    assert not any("target" in row or "weight" in row for row in found if row["kind"] != "ordinary")
    assert {row["write"] for row in found if row["kind"] != "ordinary"} == {"after"}


def test_some_ordinary_replies_are_long_and_sampled(run, conversations, tmp_path):
    options = ("--ordinary", 2, "--told", 0, "--long-tokens", 12)
    short = records(run, conversations, tmp_path / "a.jsonl", *options)
    mixed = records(run, conversations, tmp_path / "b.jsonl", *options, "--long", 0.5)
    tokenizer = load_tokenizer(backbone("qwen3-tiny"))

    def lengths(rows: list[dict]) -> list[int]:
        replies = [row["messages"][-1]["content"] for row in rows if row["kind"] == "ordinary"]
        return [len(tokenizer.encode(reply, add_special_tokens=False)) for reply in replies]

    # Tokenized again, a reply may have a token more or less.
    assert max(lengths(short)) < 6
    assert 0 < sum(length > 6 for length in lengths(mixed)) < len(lengths(mixed))
    assert mixed == records(run, conversations, tmp_path / "c.jsonl", *options, "--long", 0.5)
    sampled = records(run, conversations, tmp_path / "d.jsonl", *options, "--long", 0.5, "--seed", 1)
    assert sampled != mixed


def test_questions_about_what_was_not_told_have_a_weight(run, conversations, tmp_path):
    found = records(run, conversations, tmp_path / "a.jsonl", "--ordinary", 0, "--told", 0, "--absent-weight", 2)
    assert {row["weight"] for row in found if "value" not in row} == {2}
    assert not any("weight" in row for row in found if "value" in row)


def test_other_conversations_have_other_ordinary_records(run, conversations, tmp_path):
    lines = conversations.read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(lines[1:]))

    def ordinary(source: Path, output: str) -> list[str]:
        found = records(run, source, tmp_path / output, "--ordinary", 1, "--told", 0)
        return [row["messages"][-2]["content"] for row in found if row["kind"] == "ordinary"]

    one, other = ordinary(conversations, "a.jsonl"), ordinary(tmp_path / "other.jsonl", "b.jsonl")
    assert len(set(one) & set(other)) < len(other) // 2


@pytest.mark.slow
def test_training_reads_the_records_and_the_same_seed_makes_them_again(run, conversations, tmp_path):
    first, again = (records(run, conversations, tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert first == again
    tokenizer = load_tokenizer(backbone("qwen3-tiny"))
    maker = EpisodeMaker(tokenizer, EpisodeRules(turn_by_turn=True, max_seq_length=4096), strict=True)
    episodes = maker.episodes(read_file(tmp_path / "a.jsonl"))
    assert sum(len(each.questions) for each in episodes) == len(first)
    assert any(len(each.passes) > 1 for each in episodes)


@pytest.mark.slow
def test_histories_have_the_replies_of_an_adapter_in_a_live_chat(run, conversations, tmp_path):
    options = ("--ordinary", 0, "--told", 1, "--only-read", 0, "--adapter", adapter())
    found = records(run, conversations, tmp_path / "a.jsonl", *options)
    right = records(run, conversations, tmp_path / "b.jsonl", *options, "--live", 0)
    half = records(run, conversations, tmp_path / "c.jsonl", *options, "--live", 0.5)
    # The same is asked.
    asked = [[(row["messages"][-2], row["kind"]) for row in rows] for rows in (found, right, half)]
    assert asked[0] == asked[1] == asked[2] and half not in (found, right)
    model, tokenizer = load(backbone(), adapter())
    turns = {turn.user: turn for each in read_conversations(conversations) for turn in each.turns}
    for row, other in zip(found, right, strict=True):
        *history, _, answer = row["messages"]
        assert answer == other["messages"][-1] or row["kind"] == "told"
        chat = ChatSession(model, tokenizer, None, "none", "all")
        for said, reply in zip(history[::2], history[1::2], strict=True):
            if turns[said["content"]].kind == "assistant":
                assert reply["content"] == turns[said["content"]].assistant
                chat.read_exchange(said["content"], reply["content"])
            else:
                live = chat.send(said["content"], 3)
                # Something has to be said.
                assert reply["content"] == live if live else reply["content"]


def test_the_trained_answers_are_those_without_an_adapter(run, conversations, tmp_path):
    options = ("--ordinary", 0, "--told", 1, "--acknowledged", 0.5)
    live = records(run, conversations, tmp_path / "a.jsonl", *options, "--adapter", adapter())
    frozen = records(run, conversations, tmp_path / "b.jsonl", *options)
    kept = [
        [(row["messages"][-1], row.get("value")) for row in rows if row["kind"] != "told"] for rows in (live, frozen)
    ]
    assert kept[0] == kept[1]
    told = [[row.get("value") for row in rows if row["kind"] == "told"] for rows in (live, frozen)]
    assert told[0] == told[1] and None in told[0] and any(told[0])


def test_live_replies_need_an_adapter(run, conversations, tmp_path):
    ended = run(conversations, tmp_path / "a.jsonl", "--model", backbone("qwen3-tiny"), "--live", 0.5)
    assert ended.code == 2 and "--live is given without --adapter" in ended.errors and ended.errors.count("\n") == 1


TURN = {"user": "Hi.", "assistant": None, "kind": "told", "relations": [], "wordings": []}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[" * 5000, "in.jsonl is JSON that is nested too deeply, 100 levels at most"),
        ({"turns": []}, "line 1 is not a conversation (KeyError: 'questions')"),
        ({"turns": None, "questions": []}, "line 1 is not a conversation (KeyError: 'turns')"),
        ({"turns": ["x"], "questions": []}, "line 1 is not a conversation (ValueError: a text instead of an object)"),
        ({"turns": [TURN | {"mood": 1}], "questions": []}, "line 1 is not a conversation (TypeError: "),
        ({"turns": [TURN | {"user": None}], "questions": []}, "line 1 is not a conversation (TypeError: "),
        ({"turns": [TURN | {"user": 3}], "questions": []}, "the 'user' of a turn is a number; expected a text"),
        (
            {"turns": [TURN | {"assistant": "\ud800"}], "questions": []},
            "the 'assistant' of a turn has half a character",
        ),
        (
            {"turns": [TURN | {"relations": 3}], "questions": []},
            "line 1 is not a conversation (ValueError: a number instead of a list)",
        ),
        ({"turns": [TURN | {"values": "x"}], "questions": []}, "(ValueError: a text instead of a list)"),
        ({"turns": [TURN | {"repeated": [5]}], "questions": []}, "a text of the 'repeated' of a turn is a number"),
        ({"turns": [TURN | {"values": ["x", 7]}], "questions": []}, "a text of the 'values' of a turn is a number"),
        ({"turns": [TURN], "questions": [{"text": "x"}]}, "the 'answer' of a question is nothing; expected a text"),
        ({"turns": [TURN], "questions": 3}, "line 1 is not a conversation (ValueError: a number instead of a list)"),
    ],
)
def test_what_is_not_a_conversation_is_told_in_one_line(run, tmp_path, content, problem):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "in.jsonl").write_text(text + "\n" + json.dumps({"turns": [TURN], "questions": []}) + "\n")
    ended = run(tmp_path / "in.jsonl", tmp_path / "new.jsonl", "--model", backbone("qwen3-tiny"))
    assert ended.code == 2 and problem in ended.errors and ended.errors.count("\n") == 1
    assert not (tmp_path / "new.jsonl").exists()


def test_fields_of_a_conversation_that_are_null_are_absent(run, conversations, tmp_path):
    options = ("--ordinary", 0, "--only-read", 0)
    lines = [json.loads(line) for line in conversations.read_text().splitlines()]
    for conversation in lines:
        conversation["id"] = None
        for each in conversation["turns"] + conversation["questions"]:
            each["note"] = None
            for name in ("relations", "wordings"):
                if each.get(name) == []:
                    each[name] = None
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    assert records(run, tmp_path / "in.jsonl", tmp_path / "a.jsonl", *options) == records(
        run, conversations, tmp_path / "b.jsonl", *options
    )


def test_bad_inputs_are_refused(run, conversations, tmp_path):
    (tmp_path / "there.jsonl").touch()
    for output, options, error in [
        (tmp_path / "there.jsonl", (), "there.jsonl"),
        (tmp_path / "new.jsonl", ("--only-read", 1.5), "--only-read"),
        (tmp_path / "new.jsonl", ("--reply-tokens", 0), "--reply-tokens"),
    ]:
        ended = run(conversations, output, "--model", backbone("qwen3-tiny"), *options)
        assert ended.code == 2 and error in ended.errors
    assert not (tmp_path / "new.jsonl").exists()
