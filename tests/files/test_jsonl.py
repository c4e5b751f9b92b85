"""Records of JSON files in each form, damaged ones included."""

import pytest

from mlx_deltamem.files.jsonl import JsonRecord, json_records, write_json_lines


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
