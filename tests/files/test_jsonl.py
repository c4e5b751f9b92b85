"""Records of JSON files in each form, damaged ones included."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.files import jsonl
from mlx_deltamem.files.jsonl import (
    JsonRecord,
    json_lines,
    json_records,
    kind_of,
    parsed_json,
    read_json,
    write_json_lines,
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}\n\n{"a": 2}\n', [("line 1", {"a": 1}), ("line 3", {"a": 2})]),
        (b'[{"a": 1},\n {"a": 2}]', [("record 1", {"a": 1}), ("record 2", {"a": 2})]),
        (b'{\n "a": 1\n}', [("record 1", {"a": 1})]),
        (b'\xef\xbb\xbf{"a": 1}', [("line 1", {"a": 1})]),
        (b"", []),
    ],
)
def test_the_form_is_recognised_by_the_content(tmp_path, content, expected):
    (tmp_path / "a.json").write_bytes(content)
    assert list(json_records(tmp_path / "a.json")) == [JsonRecord(place, value) for place, value in expected]


def test_broken_lines_are_yielded_with_the_reason(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": \n"\xff"\n' + b"[" * 100_000 + b"\n")
    first, *broken = json_records(tmp_path / "a.jsonl")
    assert first == JsonRecord("line 1", {"a": 1})
    assert [(record.place, record.value) for record in broken] == [(f"line {number}", None) for number in (2, 3, 4)]
    reasons = ["not JSON (Expecting value, column", "not UTF-8", "JSON that is nested too deeply"]
    assert all(record.problem.startswith(reason) for record, reason in zip(broken, reasons, strict=True))


@pytest.mark.parametrize("content", ["[1, 2", '{\n "a": 1'])
def test_a_broken_list_or_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json is not JSON \(.*\); give valid JSON, or one record a line"):
        json_records(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        json_records(tmp_path / "b.json")


def test_what_is_written_is_read(tmp_path):
    records = [{"text": "δ-mem\n"}, [1, None], "x"]
    write_json_lines(tmp_path / "a.jsonl", records)
    assert [record.value for record in json_records(tmp_path / "a.jsonl")] == records


def test_a_list_in_one_long_line_is_read_as_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 100)
    for value in ([{"a": 1}] * 50, {"a": [1] * 50}):
        (tmp_path / "a.json").write_text(json.dumps(value))
        expected = value if isinstance(value, list) else [value]
        assert [record.value for record in json_records(tmp_path / "a.json")] == expected


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_that_is_too_long_is_told_and_the_next_is_read(tmp_path, monkeypatch, end):
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 100)
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n"{"x" * 98}"\n"{"x" * 99}"\n{" " * 300}\n[{"1," * 5000}1]{end}')
    records = list(json_records(tmp_path / "a.jsonl"))
    assert records[:2] == [JsonRecord("line 1", {"a": 1}), JsonRecord("line 2", "x" * 98)]
    assert records[2:] == [JsonRecord(f"line {number}", None, "longer than 100 bytes") for number in (3, 4, 5)]


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LARGEST_FILE", 100)
    (tmp_path / "a.json").write_text("[\n" + "1," * 100 + "1]")
    for read in (json_records, read_json):
        with pytest.raises(ValueError, match=r"a\.json is a JSON text of 204 bytes, 100 at most"):
            read(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' * 100)
    assert len(list(json_records(tmp_path / "a.jsonl"))) == 100
    (tmp_path / "b.jsonl").write_text('{"a": \n' + '{"a": 1}\n' * 100)
    assert [record.problem[:8] for record in json_records(tmp_path / "b.jsonl")] == ["not JSON", *[""] * 100]


def deep(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * levels + "1" + closing * levels).encode()


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"[": ', "}]"), ('["]]]}}", ', "]")])
def test_the_depth_is_bounded(opening, closing):
    levels = 100 // sum(map(opening.replace('"[": ', "").replace('"]]]}}"', "").count, "[{"))
    value, problem = parsed_json(deep(levels, opening, closing))
    assert not problem and json.dumps(value)
    assert parsed_json(deep(levels + 1, opening, closing)) == (
        None,
        "JSON that is nested too deeply, 100 levels at most",
    )


def test_brackets_in_strings_and_side_by_side_do_not_count_as_depth():
    text = json.dumps(["[" * 500, '\\"[' * 500, *[[1]] * 500])
    assert parsed_json(text.encode()) == (json.loads(text), "")


def test_the_number_of_values_is_bounded():
    assert parsed_json(b"[1, 2, [3]]", most_values=5)[1] == ""
    assert parsed_json(b"[1, 2, [3]]", most_values=4)[1] == "JSON with more than 4 values"
    assert parsed_json(b'["1, 2, 3, 4, 5", 6]', most_values=3) == (["1, 2, 3, 4, 5", 6], "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b'{"rank": 8, "alpha": 1, "rank": 8}', "'rank'"),
        (b'[1, {"a": {"\\u0061": 1, "a": null}}]', "'a'"),
        (b'{"a\\n": 1, "a\\n": 2}', r"'a\n'"),
        (b'{"' + b"x" * 90 + b'": 1, "' + b"x" * 90 + b'": 1}', f"'{'x' * 60}...'"),
    ],
)
def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path, text, shown):
    assert parsed_json(text) == (None, f"JSON with {shown} twice (leave one of them out)")
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"a\.json is JSON with .* twice"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + text + b"\n")
    assert [bool(record.problem) for record in json_records(tmp_path / "a.jsonl")] == [False, True]


def test_a_name_may_stand_in_several_objects():
    assert parsed_json(b'[{"a": {"a": 1}}, {"a": 2}]') == ([{"a": {"a": 1}}, {"a": 2}], "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [b"[" * 3_000_000, b'[[],"' * 1_000_000, b'"' + b'\\"' * 2_000_000, b"[" + b"[]," * 2_000_000, b"9" * 3_000_000],
    ids=["deep", "strings", "escapes", "wide", "digits"],
)
def test_hostile_lines_take_little_time(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    start = time.process_time()
    records = list(json_records(tmp_path / "a.jsonl"))
    assert time.process_time() - start < 5
    assert [bool(record.problem) for record in records] == [False, True, False]


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        json_records(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(OSError):
            list(json_lines(path))
    with pytest.raises(ValueError, match="pipe is a pipe; expected a file"):
        read_json(tmp_path / "pipe")


def test_a_link_to_a_device_is_not_read(tmp_path):
    (tmp_path / "a.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"a\.json is a device; expected a file"):
        read_json(tmp_path / "a.json")
    for read in (json_records, json_lines):
        with pytest.raises(OSError, match=r"a\.json"):
            list(read(tmp_path / "a.json"))


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="only Linux has such files")
def test_a_file_that_grows_while_it_is_read_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LARGEST_FILE", 100)
    # Such files have a size of 0, whatever they hold.
    with pytest.raises(ValueError, match="too large"):
        read_json(Path("/proc/self/mountinfo"))


def test_a_record_with_half_a_character_is_not_written(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", ["before"])
    with pytest.raises(ValueError, match=r"record 2 for .*a\.jsonl has half a character \(a lone surrogate, U\+D800"):
        write_json_lines(tmp_path / "a.jsonl", ["x", {"text": "\ud800"}])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert (tmp_path / "a.jsonl").read_text() == '"before"\n'


def test_kinds_in_words():
    values = ({}, [], [1], "x", True, None, 1, 2.5)
    expected = "an object", "an empty list", "a list", "a text", "true or false", "nothing", "a number", "a number"
    assert tuple(map(kind_of, values)) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.slow
@given(JSON)
def test_every_json_value_is_read_as_it_is(value):
    text = json.dumps(value).encode()
    assert parsed_json(text) == (value, "") and parsed_json(text, 10_000) == (value, "")


@pytest.mark.slow
@given(st.binary() | st.text('[]{}",:\\0e- \n').map(str.encode))
def test_any_bytes_are_read_or_told_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        problems = [record.problem for record in json_records(path)]
    except ValueError as error:
        problems = [str(error)]
    assert not any("\n" in problem for problem in problems)
