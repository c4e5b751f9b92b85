import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem.sessions.turns.writing import WRITES
from mlx_deltamem.training.records import Record, RecordError, find_file, make_record, read_file, records_of_rows

CHAT = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello, Ann."}]
ASKED = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}]


def read(tmp_path, content: str | bytes, name: str = "train.jsonl") -> list[Record | RecordError]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_file(path))


def lines(*rows: object) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.parametrize(
    ("row", "messages", "value"),
    [
        ({"messages": CHAT}, CHAT, ""),
        ({"messages": CHAT, "value": "Ann", "id": 7}, CHAT, "Ann"),
        ({"messages": CHAT, "value": None, "prompt": None}, CHAT, ""),
        ({"messages": [{**CHAT[0], "name": "x"}, CHAT[1]]}, CHAT, ""),
        ({"prompt": "Who?", "completion": "Ann"}, ASKED, ""),
        ({"prompt": "Who?", "response": "Ann", "value": "Ann"}, ASKED, "Ann"),
        ({"prompt": "Who?", "completion": "Ann", "messages": None, "response": None}, ASKED, ""),
        ({"messages": [*({**each, "name": None, "tool_calls": None} for each in CHAT), None]}, CHAT, ""),
        ({"prompt": "\ufeffWho?", "completion": "Ann"}, ASKED, ""),
    ],
)
def test_every_form_of_a_record(row, messages, value):
    assert make_record("here", row) == Record("here", tuple(messages), value)


def test_recent_messages():
    assert make_record("here", {"messages": CHAT, "recent_messages": 3}) == Record("here", tuple(CHAT), recent=3)
    assert make_record("here", {"messages": CHAT, "recent_messages": None}) == Record("here", tuple(CHAT))


@pytest.mark.parametrize("target", ["answer", "frozen", None])
@pytest.mark.parametrize("weight", [0.5, 3, None])
def test_target_and_weight(target, weight):
    row = {"messages": CHAT, "target": target, "weight": weight}
    expected = Record("here", tuple(CHAT), target=target or "", weight=1.0 if weight is None else weight)
    assert make_record("here", row) == expected


def test_cut():
    assert make_record("here", {"messages": CHAT, "cut": True}) == Record("here", tuple(CHAT), cut=True)


def test_kind():
    assert make_record("here", {"messages": CHAT, "kind": "absent"}) == Record("here", tuple(CHAT), kind="absent")


@pytest.mark.parametrize("turn_by_turn", [True, False, None])
def test_turn_by_turn(turn_by_turn):
    row = {"messages": CHAT, "turn_by_turn": turn_by_turn}
    assert make_record("here", row) == Record("here", tuple(CHAT), turn_by_turn=turn_by_turn)


@pytest.mark.parametrize("write", [*WRITES, None])
def test_write(write):
    assert make_record("here", {"messages": CHAT, "write": write}) == Record("here", tuple(CHAT), write=write)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([], "here is an empty list; expected an object"),
        ("text", "here is a text; expected an object"),
        (None, "here is nothing; expected"),
        (True, "here is true or false; expected"),
        ({}, "here has no fields; expected messages, or prompt and completion"),
        ({"prompt": "x", "text": "y"}, "here has prompt, text; expected messages, or prompt and completion"),
        ({"messages": []}, "here has an empty list for messages"),
        ({"messages": {"role": "user"}}, "here has an object for messages"),
        ({"messages": [*CHAT, "x"]}, "here, message 2, is a text; expected an object with role and content"),
        ({"messages": [{"content": "x"}]}, "here, message 0, has nothing for its role; expected a text"),
        ({"messages": [{"role": "user", "content": 3}]}, "here, message 0, has a number for its content"),
        (
            {"messages": [{"role": "user", "content": "a\ud800"}]},
            "here, message 0, has half a character in its content",
        ),
        (
            {"messages": [CHAT[0], {"role": "assistant", "content": "b\x00"}]},
            "here, message 1, has a NUL character in its content (U+0000 at character 2); expected text",
        ),
        ({"messages": [{"role": "\udfff", "content": "a"}]}, "here, message 0, has half a character in its role"),
        ({"prompt": "\x00", "completion": "y"}, "here, prompt, has a NUL character in its content"),
        ({"messages": [None]}, "here has a list for messages; expected a list of them"),
        ({"prompt": ["x"], "completion": "y"}, "here, prompt, has a list for its content"),
        ({"prompt": "x", "response": 1.5}, "here, response, has a number for its content"),
        ({"messages": CHAT, "value": "Bob"}, "here has a value that is not in its last message"),
        ({"messages": CHAT, "value": 4}, "here has a value that is not in its last message"),
        (
            {"messages": CHAT, "recent_messages": 0},
            "here has a number for recent_messages; expected a whole number, 1 or more",
        ),
        ({"messages": CHAT, "recent_messages": 1.5}, "here has a number for recent_messages; expected a whole number"),
        ({"messages": CHAT, "recent_messages": True}, "here has true or false for recent_messages; expected"),
        ({"messages": CHAT, "recent_messages": "2"}, "here has a text for recent_messages; expected"),
        ({"messages": CHAT, "target": "x"}, "here has x for target; expected one of answer, frozen"),
        ({"messages": CHAT, "target": [1]}, "here has a list for target; expected one of answer, frozen"),
        ({"messages": CHAT, "weight": 0.0}, "here has 0 for weight; expected a number from 1e-06 to 1e+06"),
        ({"messages": CHAT, "weight": float("nan")}, "here has nan for weight; expected a number from"),
        ({"messages": CHAT, "weight": 1e-50}, "here has 1e-50 for weight; expected a number from"),
        ({"messages": CHAT, "weight": True}, "here has true or false for weight; expected a number from"),
        ({"messages": CHAT, "weight": "2"}, "here has a text for weight; expected a number from"),
        ({"messages": CHAT, "kind": 3}, "here has a number for kind; expected a short text, 40 letters at most"),
        ({"messages": CHAT, "kind": "a\nb"}, "here has a text for kind; expected a short text"),
        ({"messages": CHAT, "kind": "a" * 41}, "here has a text for kind; expected a short text"),
        ({"messages": CHAT, "cut": "no"}, "here has a text for cut; expected true or false"),
        ({"messages": CHAT, "turn_by_turn": 1}, "here has a number for turn_by_turn; expected true or false"),
        (
            {"messages": CHAT, "write": True},
            "here has true or false for write; expected one of all, after, user, assistant, none",
        ),
        ({"messages": CHAT, "write": "y\nes"}, "here has y?es for write; expected one of all, after"),
    ],
)
def test_the_problem_of_a_record(row, problem):
    with pytest.raises(RecordError) as caught:
        make_record("here", row)
    assert str(caught.value).startswith(problem)
    assert caught.value.kind == "unreadable"


def test_names_from_a_file_are_shown_on_one_line():
    with pytest.raises(RecordError) as caught:
        make_record("here", {"a\nb": 1, "\x1b[31m": 2, "c" * 200: 3})
    assert str(caught.value) == f"here has a?b, ?[31m, {'c' * 88}...; expected messages, or prompt and completion"


def test_every_line_has_its_place(tmp_path):
    content = b"\xef\xbb\xbf" + lines({"messages": CHAT}).encode() + b"\r\n\n{\n\xff\n"
    content += lines({"prompt": "a\u2028b", "completion": "c"}, [1], {"messages": CHAT, "value": "Hello"}).encode()
    found = read(tmp_path, content)
    assert [str(each) if isinstance(each, RecordError) else each.where for each in found] == [
        "train.jsonl line 1",
        "train.jsonl line 4 is not JSON (Expecting property name enclosed in double quotes, column 2)",
        "train.jsonl line 5 is not UTF-8",
        "train.jsonl line 6",
        "train.jsonl line 7 is a list; expected an object",
        "train.jsonl line 8",
    ]
    assert found[3].messages[0]["content"] == "a\u2028b"
    assert found[5].value == "Hello"


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_list_in_a_file(tmp_path, name):
    found = read(tmp_path, json.dumps([{"messages": CHAT}, 3, {"prompt": "a", "completion": "b"}], indent=1), name)
    assert [each.where for each in found[::2]] == [f"{name} record 1", f"{name} record 3"]
    assert str(found[1]) == f"{name} record 2 is a number; expected an object"


def test_a_broken_list(tmp_path):
    with pytest.raises(ValueError, match=r"train\.json is not JSON .*; give valid JSON, or one record a line"):
        read(tmp_path, '[{"messages": [', "train.json")


def test_records_of_rows():
    found = list(records_of_rows("user/set train", [{"messages": CHAT}, {"text": "x"}]))
    assert found[0] == Record("user/set train record 1", tuple(CHAT))
    assert str(found[1]).startswith("user/set train record 2 has text; expected messages")


def test_the_file_of_a_split(tmp_path):
    assert find_file(tmp_path, "train") is None
    (tmp_path / "train.json").write_text("[]")
    assert find_file(tmp_path, "train") == tmp_path / "train.json"
    (tmp_path / "train.jsonl").write_text("")
    assert find_file(tmp_path, "train") == tmp_path / "train.jsonl"
    assert find_file(tmp_path, "valid") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from(["user", "assistant", "x", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "prompt",
                    "completion",
                    "response",
                    "value",
                    "recent_messages",
                    "write",
                    "turn_by_turn",
                    "target",
                    "weight",
                    "cut",
                    "kind",
                    "role",
                    "content",
                ]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON, max_size=4))
def test_every_row_becomes_a_record_or_an_error(tmp_path, rows):
    # The first line is an object, since a file that begins with a list is read as that list.
    first, *found = read(tmp_path, lines({"messages": CHAT}, *rows))
    assert isinstance(first, Record) and len(found) == len(rows)
    for number, each in enumerate(found, 2):
        where = f"train.jsonl line {number}"
        if isinstance(each, RecordError):
            assert str(each).startswith(where) and "\n" not in str(each)
        else:
            assert each.where == where
            assert all(set(message) == {"role", "content"} for message in each.messages)
            assert each.value in each.messages[-1]["content"]
            json.dumps(each.messages, ensure_ascii=False).encode()
