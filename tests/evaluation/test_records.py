"""Records that survive a kill, and settings that must be the same to continue a run."""

import json

import pytest

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.evaluation.records import JsonLines
from mlx_deltamem.evaluation.settings import SETTINGS_FILE, compare_settings, keep_settings

ROWS = [{"id": "1", "reply": "Grüße\u2028 \n"}, {"id": "2", "reply": "日本"}]
ORIGIN = Origin("model", "b1", "a1", "t1")


def test_what_was_added_is_read_again(tmp_path):
    path = tmp_path / "records.jsonl"
    one = JsonLines(path)
    one.add(ROWS[:1])
    one.add(ROWS[1:])
    assert one.rows == JsonLines(path).rows == ROWS
    assert path.read_text(encoding="utf-8").count("\n") == 2


def test_a_row_cut_off_anywhere_is_dropped(tmp_path):
    path = tmp_path / "records.jsonl"
    JsonLines(path).add(ROWS)
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = JsonLines(path)
        assert whole.rows == ROWS[: 1 if length >= first else 0]
        whole.add(ROWS[len(whole.rows) :])
        assert path.read_bytes() == content


@pytest.mark.parametrize("line", ["{", "3", "\xff"])
def test_another_damaged_row_is_named(line, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": 1}\n' + line.encode("latin-1") + b'\n{"id": 2}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl line 2 is damaged \(.*\); remove the file"):
        JsonLines(path)


def check(folder, origin=ORIGIN, plan=(("seed", 0),), tasks=(("recall", {"questions": 3, "stop": ("\n",)}),)):
    keep_settings(folder, compare_settings(folder, origin, dict(plan), dict(tasks)))


def test_the_same_settings_go_on(tmp_path):
    check(tmp_path)
    check(tmp_path)
    check(tmp_path, tasks=[("locomo", {"questions": 1})])
    assert set(json.loads((tmp_path / SETTINGS_FILE).read_text())["tasks"]) == {"recall", "locomo"}
    check(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"origin": Origin("model", "b2", "a1", "t1")},
            "has another backbone; use the same, or name a",
        ),
        ({"origin": Origin("model", "b1", "a2", "t1")}, "has another adapter;"),
        ({"origin": Origin("model", "b1", "a1", "t2")}, "has another tokenizer;"),
        ({"plan": (("seed", 1),)}, r"has another plan \(seed\);"),
        ({"tasks": (("recall", {"questions": 4, "stop": ("\n",)}),)}, r"has another recall \(questions\);"),
    ],
)
def test_others_are_refused(changes, message, tmp_path):
    check(tmp_path)
    before = (tmp_path / SETTINGS_FILE).read_bytes()
    with pytest.raises(ValueError, match=message):
        check(tmp_path, **changes)
    assert (tmp_path / SETTINGS_FILE).read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"tasks": 3}', "\xff"])
def test_damaged_settings_are_named(content, tmp_path):
    (tmp_path / SETTINGS_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"settings\.json is damaged; expected the settings of a run"):
        check(tmp_path)
