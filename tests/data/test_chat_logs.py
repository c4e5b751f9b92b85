"""Chat logs as training records, with the parts that all converters share."""

import json
import math
from argparse import Namespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem.data import chat_logs
from mlx_deltamem.data.chat_logs import ToolMessages, chats
from mlx_deltamem.data.episode_files import BAD, EMPTY, Found, Unusable, check, write_episodes
from mlx_deltamem.files.jsonl import json_records
from tests.tool_runs import records_of, runner


def chat(*texts, system=None):
    """A chat of the user and the assistant in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


TALK = chat("My dog is called Max.", "Nice!", "What is my dog called?", "Your dog is called Max.")
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "weather"}}]}
TOOL = {"role": "tool", "tool_call_id": "1", "content": "sun"}


@pytest.fixture
def convert(monkeypatch, capsys, tmp_path):
    """A function that converts lines of a log: how the command ended, and the messages of each record or None."""
    run = runner(chat_logs, monkeypatch, capsys)

    def of(lines, *options, name="log.jsonl"):
        log, output = tmp_path / name, tmp_path / "out" / "train.jsonl"
        output.unlink(missing_ok=True)
        text = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
        log.write_bytes(text)
        ended = run(log, output, *options)
        assert [path.name for path in (tmp_path / "out").glob("*")] in ([], ["train.jsonl"])
        return ended, [record["messages"] for record in records_of(output)] if output.exists() else None

    return of


def line(messages, **more):
    return json.dumps({"messages": messages, **more})


def test_a_chat_is_not_changed(convert):
    ended, records = convert([line(TALK), line([{"role": "system", "content": "Be kind. ü"}, *TALK], id=3, tools=[])])
    assert ended.code == 0
    assert records == [TALK, [{"role": "system", "content": "Be kind. ü"}, *TALK]]


def test_a_list_of_chats(convert):
    for text in (json.dumps([{"messages": TALK}] * 2), json.dumps([{"messages": TALK}] * 2, indent=2)):
        assert convert([text], name="log.json")[1] == [TALK, TALK]
    assert convert([json.dumps({"messages": TALK}, indent=2)], name="log.json")[1] == [TALK]
    assert convert(b"\xef\xbb\xbf" + line(TALK).encode() + b"\r\n\r\n" + line(TALK).encode())[1] == [TALK, TALK]


def test_all_answers_can_be_trained_on(convert):
    messages = chat("a", "b", "c", "d", "e", "f", system="s")
    assert convert([line(messages)])[1] == [messages]
    ended, records = convert([line(messages)], "--answers", "all")
    assert records == [messages[:5], messages]
    assert "left out" not in ended.output
    # The last question has no answer, and the first question has nothing before it.
    ended, records = convert(
        [line([*messages, {"role": "user", "content": "?"}]), line(messages[:3])], "--answers", "all"
    )
    assert records == [messages[:5], messages]
    assert rows(ended)["left out, no answer to the last message"] == ("1", "line 1, message 8")
    assert rows(ended)["left out, nothing before the question"] == ("1", "line 2, message 3")


def test_a_chat_that_was_left_before_a_reply_has_a_last_answer(convert):
    ended, records = convert([line([*TALK, TALK[0]]), line([*TALK, TALK[0], TALK[2]])])
    assert records == [TALK, TALK]
    assert "left out" not in ended.output


def test_parts_of_text_are_joined(convert):
    parts = [{"type": "text", "text": "My dog is "}, {"type": "input_text", "text": "called Max."}]
    assert convert([line([{"role": "user", "content": parts}, *TALK[1:]])])[1] == [TALK]


def test_messages_of_tools_are_left_out_and_counted(convert):
    ended, records = convert([line([TALK[0], CALL, TOOL, *TALK[1:]])])
    assert records == [TALK]
    assert "2 messages of tools were left out" in ended.output
    # The texts of the assistant before and after a call are joined.
    wait = {**CALL, "content": "Wait."}
    function = {"role": "function", "name": "weather", "content": "sun"}
    records = convert([line([TALK[0], wait, TOOL, function, *TALK[1:]])])[1]
    assert records == [[TALK[0], {"role": "assistant", "content": "Wait.\n\nNice!"}, *TALK[2:]]]
    # Two messages of one role with nothing between them are not joined.
    assert convert([line([TALK[0], CALL, TOOL, TALK[1], *TALK[1:]])])[1] is None
    assert convert([line([TALK[0], {"role": "assistant", "content": "Wait."}, *TALK[1:]])])[1] is None


def test_system_messages_at_the_start_are_joined(convert):
    system = [
        {"role": "system", "content": " "},
        {"role": "developer", "content": "a"},
        {"role": "system", "content": "b"},
    ]
    assert convert([line([*system, *TALK])])[1] == [[{"role": "system", "content": "a\n\nb"}, *TALK]]
    assert convert([line([TALK[0], *system, *TALK[1:]])])[1] is None


UNUSABLE = {
    "empty: a message without text": [
        [],
        chat("", "Nice!", "What?", "Max."),
        chat("My dog is Max.", "Nice!", "What?", " \n"),
        [{"role": "user", "content": None}, *TALK[1:]],
        [{"role": "system", "content": "Be kind."}],
    ],
    "wrong roles: not user and assistant in turn": [
        TALK[1:],
        [*TALK, *TALK[2:3], *TALK[2:4]],
        [*TALK, {"role": "system", "content": "Be kind."}],
        [TALK[0], TALK[0], TALK[1], TALK[1]],
    ],
    "nothing before the question": [TALK[:2], TALK[:3], [{"role": "system", "content": "Be kind."}, *TALK[:2]]],
    "too long": [chat("word " * 6000, "Nice!", "What?", "Max.")],
    "with content other than text": [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, *TALK[1:]],
    ],
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_unusable_chats_are_counted(convert, reason):
    lines = [line(messages) for messages in UNUSABLE[reason]]
    ended, records = convert([line(TALK), *lines])
    assert ended.code == 0
    assert records == [TALK]
    places = ", ".join(f"line {number}" for number in range(2, 2 + len(lines)))
    assert rows(ended) == {
        "written": ("1", "16 words each on average"),
        f"left out, {reason}": (str(len(lines)), places),
    }


def rows(ended):
    """The table that a converter prints, without its headings."""
    found = [
        [cell.strip() for cell in row.split("│")[1:-1]] for row in ended.output.splitlines() if row.startswith("│")
    ]
    return {row[0]: tuple(row[1:]) for row in found}


def test_the_longest_chat_is_an_option(convert):
    assert convert([line(TALK)], "--max-words", 16)[1] == [TALK]
    ended, records = convert([line(TALK)], "--max-words", 15)
    assert records is None
    assert ended.code == 2 and "no chat is left" in ended.errors


BAD_LINES = {
    "nope": "not JSON (Expecting value, column 1)",
    '{"messages": []': "not JSON",
    "[" * 100_000: "nested too deeply",
    "1" * 5_000: "too many digits",
    "3": "not an object with a list of messages",
    '{"messages": {}}': "not an object with a list of messages",
    '{"messages": [3]}': "message 1: not an object",
    '{"messages": [{"content": "x"}]}': "message 1: its role is not one of system, developer, user",
    '{"messages": [{"role": "user", "content": "x"}, {"role": ["user"], "content": "x"}]}': "message 2: its role",
    '{"messages": [{"role": "bot", "content": "x"}]}': "message 1: its role",
    '{"messages": [{"role": "user", "content": 3}]}': "neither a text nor a list of parts",
    '{"messages": [{"role": "user", "content": ["x"]}]}': "not an object with a type",
    '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}': "a text without text",
    '{"messages": [{"role": "user", "content": "\\ud800"}]}': "half a character",
    '{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}]}]}': "half a character",
    '{"messages": [{"role": "user", "content": "a\\u0000"}]}': "a text has a NUL character (U+0000 at character 2)",
    '{"messages": [{"role": null, "content": "x"}]}': "message 1: its role",
    '{"messages": null}': "not an object with a list of messages",
    '{"messages": ' + "[" * 500 + "]" * 500 + "}": "nested too deeply, 100 levels at most",
}


def test_what_is_null_is_absent(convert):
    parts = [{"type": "text", "text": "My dog is called Max.", "image_url": None}, None]
    empty = {"tool_calls": None, "function_call": math.nan, "name": None}
    talk = [None, {**TALK[0], **empty, "content": parts}, *({**message, **empty} for message in TALK[1:]), None]
    assert convert([line(talk, tools=None), line([*TALK, {**CALL, "content": math.nan}, {**TOOL, "name": None}])])[
        1
    ] == [
        TALK,
        TALK,
    ]


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda bad: bad[:40])
def test_a_bad_line_stops_or_is_skipped(convert, bad):
    lines = [line(TALK), "", bad, line(TALK)]
    ended, records = convert(lines)
    assert (ended.code, records) == (2, None)
    assert ended.errors.startswith("error: line 3: ") and BAD_LINES[bad] in ended.errors
    assert ended.errors.endswith("; correct it, or use --on-error skip\n") and ended.errors.count("\n") == 1
    ended, records = convert(lines, "--on-error", "skip")
    assert (ended.code, records) == (0, [TALK, TALK])
    assert ended.errors.startswith("line 3: ") and BAD_LINES[bad] in ended.errors
    assert rows(ended)["left out, bad records"] == ("1", "line 3")


def test_a_bad_line_may_be_the_first(convert):
    for bad in ("nope", '{"messages": [', "[]"):
        assert convert([bad, line(TALK)], "--on-error", "skip")[1] == [TALK]
    assert convert(b"\xff\xfe\n" + line(TALK).encode(), "--on-error", "skip")[1] == [TALK]
    assert "line 1: not UTF-8" in convert(b"\xff\xfe\n" + line(TALK).encode())[0].errors


def test_the_error_of_a_broken_list_has_its_place(convert):
    ended, _ = convert(["[", line(TALK) + ",", "nope]"], name="log.json")
    assert ended.code == 2 and "is not JSON (Expecting value, line 3, column 1)" in ended.errors
    ended, _ = convert(b"\xef\xbb\xbf{\n" + line(TALK).encode(), name="log.json")
    assert ended.code == 2 and "is not JSON" in ended.errors and "line 1" not in ended.errors
    ended, _ = convert([json.dumps([{"messages": TALK}, 3])], name="log.json")
    assert ended.errors.startswith("error: record 2: not an object with a list")


def test_a_log_without_a_chat_writes_nothing(convert):
    for lines in ([], [line([])], ["[]"]):
        ended, records = convert(lines)
        assert (ended.code, records) == (2, None)
        assert ended.errors == "error: no chat is left; nothing was written\n"


def test_many_places_are_not_all_shown(convert):
    ended, _ = convert([line(TALK), *[line([])] * 1_200])
    assert rows(ended)["left out, empty: a message without text"] == (
        "1,200",
        "line 2, line 3, line 4, line 5, line 6 and 1,195 more",
    )


def test_wrong_files_are_refused(monkeypatch, capsys, tmp_path):
    run = runner(chat_logs, monkeypatch, capsys)
    log = tmp_path / "log.jsonl"
    assert f"there is no file {log}" in run(log, tmp_path / "a" / "b" / "out").errors
    assert not (tmp_path / "a").exists()
    log.write_text(line(TALK))
    (tmp_path / "same.jsonl").symlink_to(log)
    (tmp_path / "there.jsonl").write_text("mine")
    for output in (log, tmp_path / "same.jsonl", tmp_path / "there.jsonl"):
        assert f"{output} exists already" in run(log, output).errors
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    ended = run(log, tmp_path)
    assert (ended.code, ended.output) == (2, "")
    assert ended.errors == f"error: {tmp_path} is a folder; name a .jsonl file in it\n"
    assert log.read_text() == line(TALK)


def test_brackets_in_a_name_are_not_markup(monkeypatch, capsys, tmp_path):
    (tmp_path / "log.jsonl").write_text(line(TALK))
    (tmp_path / "[").mkdir()
    ended = runner(chat_logs, monkeypatch, capsys)(tmp_path / "log.jsonl", tmp_path / "[/a].jsonl")
    assert (ended.code, ended.errors) == (0, "") and (tmp_path / "[" / "a].jsonl").is_file()


def test_a_bad_record_leaves_no_file(convert):
    assert convert([line(TALK)])[1] == [TALK]
    ended, records = convert([line(TALK), line(TALK), "nope"])
    assert (ended.code, records) == (2, None)


def test_names_from_a_file_are_escaped_on_the_terminal(tmp_path, capsys):
    found = [Found("line 1", TALK), Unusable("paper '[/red]'", EMPTY)]
    args = Namespace(input=tmp_path / "in", output=tmp_path / "out.jsonl", max_words=100, on_error="stop")
    write_episodes(found, args)
    assert "paper '[/red]'" in capsys.readouterr().out


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
texts = st.text(st.characters(), max_size=6) | st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": st.text(max_size=6)}), max_size=2
)
wild_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": texts | json_values},
    optional={"tool_calls": json_values},
)
wild_records = st.fixed_dictionaries({"messages": st.lists(wild_messages, max_size=8) | json_values}) | json_values


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(wild_records, min_size=1, max_size=4), st.sampled_from(["last", "all"]), st.booleans())
def test_every_chat_of_a_log_is_written_or_counted(tmp_path, records, answers, as_list):
    log = tmp_path / "log.json"
    log.write_text(json.dumps(records) if as_list else "".join(f"{json.dumps(record)}\n" for record in records))
    places = [record.place for record in json_records(log)]
    found = list(chats(log, answers, ToolMessages()))
    # Each record is counted once.
    assert list(dict.fromkeys(item.place.split(",")[0] for item in found)) == places
    for item in found:
        if isinstance(item, Found) and check(item, 1_000) is None:
            roles = [message["role"] for message in item.messages]
            assert roles[-4:] == ["user", "assistant"] * 2
            assert all(message["content"].strip() for message in item.messages)
            json.dumps(item.messages, ensure_ascii=False).encode()
        elif isinstance(item, Unusable) and item.reason == BAD:
            assert item.problem and "\n" not in item.problem


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet='{}[]", \n:mesag0', max_size=40).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path, content):
    log = tmp_path / "log.json"
    log.write_bytes(content)
    try:
        read = list(json_records(log))
    except ValueError as error:
        assert "give valid JSON" in str(error)
    else:
        for record in read:
            assert record.value is None or not record.problem
