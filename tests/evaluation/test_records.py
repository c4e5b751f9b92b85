"""Records that survive a kill, and settings that must be the same to continue a run."""

import json
import os

import pytest

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.evaluation.records import JsonLines
from mlx_deltamem.evaluation.settings import SETTINGS_FILE, compare_settings, keep_settings

ROW = {
    **{"task": "recall", "condition": "state", "seed": 0, "id": "1", "group": "g", "category": "", "golds": ["a"]},
    **{
        "labels": {"distance": 3, "kind": "x"},
        "reply": "Grüße\u2028 \n",
        "ending": None,
        "scores": {"f1": 1, "em": 0.5},
    },
}
ROWS = [ROW, {**ROW, "id": "2", "reply": "日本"}]
MEASURES = {
    **{"task": "recall", "condition": "state", "questions": ["0/1"], "prompt_tokens": 3, "prompt_seconds": 0.5},
    **{"reply_tokens": 2, "reply_seconds": 0, "peak_memory": 10**12, "beyond_window": 0, "write": 0.5, "written": 3},
    **{"correction": 0.1, "corrected": 3, "norm": 1.0, "prompts": 1, "kept_bytes": 59_136, "memory_bytes": 59_136},
    **{"turns": 2, "read_tokens": 39, "told_seconds": 0.5, "asked_seconds": 1.5},
}
DEEP = "[" * 900 + "]" * 900
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


@pytest.mark.parametrize("line", ["{", "3", "\xff", "{}", "[]", '"x"', "null", DEEP, f'{{"id": {DEEP}}}'])
def test_another_damaged_row_is_named(line, tmp_path):
    path = tmp_path / "records.jsonl"
    row = json.dumps(ROW).encode()
    path.write_bytes(row + b"\n" + line.encode("latin-1") + b"\n" + row + b"\n")
    with pytest.raises(ValueError, match=r"records\.jsonl line 2 is damaged \(.*\); remove the file"):
        JsonLines(path)


TEXTS, WHOLES, FLOATS = ("task", "id", "reply"), ("seed",), ("prompt_seconds", "write", "norm", "asked_seconds")
WRONG = [
    *((ROW, name, value) for name in TEXTS for value in (None, 5, True, [], {})),
    *((ROW, name, value) for name in WHOLES for value in (None, 2.5, True, "0", 10**400)),
    *((ROW, "ending", value) for value in (0, [], True)),
    *((ROW, "golds", value) for value in (None, "a", {}, [None], [5], [["a"]])),
    *((ROW, "labels", value) for value in (None, [], {"a": None}, {"a": []}, {"a": 10**400}, {"a": True})),
    *((ROW, "scores", value) for value in (None, [], {}, {"f1": None}, {"f1": "x"}, {"f1": 10**400}, {"f1": [1]})),
    *((MEASURES, name, value) for name in FLOATS for value in (None, "x", [], {}, True, 10**400)),
    *((MEASURES, "prompts", value) for value in (None, 1.5, "x")),
    *((MEASURES, "questions", value) for value in (None, "0/1", [1], {})),
]


def test_a_value_of_another_type_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    for whole, name, value in WRONG:
        path.write_text(json.dumps({**whole, name: value}) + "\n")
        with pytest.raises(ValueError, match=rf"rows\.jsonl line 1 is damaged \(its {name} (is|are|has) .*; remove"):
            JsonLines(path)


def test_a_whole_number_is_a_number_and_what_is_not_finite_is_one_too(tmp_path):
    rows = [MEASURES, {**MEASURES, "write": 3, "norm": float("inf"), "peak_memory": 2**70}]
    JsonLines(tmp_path / "measures.jsonl").add(rows)
    assert JsonLines(tmp_path / "measures.jsonl").rows == rows


def test_a_row_that_lacks_a_key_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    for name in ROW:
        path.write_text(json.dumps({key: value for key, value in ROW.items() if key != name}) + "\n")
        with pytest.raises(ValueError, match=rf"line 1 is damaged \(it has no {name}\)"):
            JsonLines(path)


def test_the_scores_of_a_task_have_the_same_names(tmp_path):
    path = tmp_path / "records.jsonl"
    JsonLines(path).add([ROW, {**ROW, "task": "other", "scores": {"x": 1.0}}])
    # A task of lm-evaluation-harness may have other scores under another condition.
    JsonLines(path).add([{**ROW, "condition": "another", "scores": {"f1": 1.0}}])
    assert len(JsonLines(path).rows) == 3
    JsonLines(path).add([{**ROW, "scores": {"f1": 1.0}}])
    with pytest.raises(ValueError, match=r"line 4 is damaged \(its scores are f1, expected those of the other rec"):
        JsonLines(path)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "records.jsonl")
    with pytest.raises(ValueError, match=r"records\.jsonl is a pipe; expected a file"):
        JsonLines(tmp_path / "records.jsonl")


def check(folder, origin=ORIGIN, plan=(("seed", 0),), tasks=(("recall", {"questions": 3, "stop": ("\n",)}),)):
    keep_settings(folder, compare_settings(folder, origin, dict(plan), dict(tasks)))


def test_conditions_without_a_dense_model_may_be_added_and_those_with_one(tmp_path):
    for given in (None, "vectors", None, "vectors"):
        check(tmp_path, tasks=[("recall", {"questions": 3, "dense_model": given})])
    kept = json.loads((tmp_path / SETTINGS_FILE).read_text())["tasks"]["recall"]
    assert kept == {"questions": 3, "dense_model": "vectors"}
    # A file of before this setting.
    (tmp_path / "older").mkdir()
    check(tmp_path / "older", tasks=[("recall", {"questions": 3})])
    check(tmp_path / "older", tasks=[("recall", {"questions": 3, "dense_model": None})])
    with pytest.raises(ValueError, match=r"has another recall \(dense_model\)"):
        check(tmp_path, tasks=[("recall", {"questions": 3, "dense_model": "others"})])


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
