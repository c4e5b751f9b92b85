"""Rows that were a table, and rows that are damaged: null is absent, what is odd is left out, counted and told."""

import json
import math
import warnings
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem.evaluation.task import Task
from mlx_deltamem.evaluation.tasks.hotpotqa import HotpotQA
from mlx_deltamem.evaluation.tasks.left_out import LeftOut
from mlx_deltamem.evaluation.tasks.locomo import Locomo
from mlx_deltamem.evaluation.tasks.memory_agent_bench import MemoryAgentBench
from mlx_deltamem.evaluation.tasks.movies import load_films
from mlx_deltamem.evaluation.tasks.recall import Recall
from tests.evaluation import test_hotpotqa, test_memory_agent_bench
from tests.evaluation.odd_values import ODD, changed, check_texts, paths, table_rows, without_nulls
from tests.evaluation.tables import asked, tiny_backbone
from tests.evaluation.test_locomo import LOCOMO10, needs_locomo10, qa, sample

pytest.importorskip("nltk")
pytest.importorskip("rapidfuzz")


def locomo_rows() -> list:
    first = sample(
        qa("multi_hop"),
        qa("temporal", answer=2022),
        qa("open_domain", answer="Likely no; she likes figs"),
        qa("adversarial", answer="figs"),
        # The file has two questions with both answers.
        qa("adversarial", answer="Yes") | {"answer": "No"},
    )
    rows = [first, sample(qa("single_hop"), name="conv-2") | {"event_summary": {"session_1": ["She moved."]}}]
    for each in rows:
        # "None." would look like a value that became a text.
        each["conversation"]["session_2"][1]["text"] = "No."
    return rows


def hotpot_rows() -> list:
    original = test_hotpotqa.row("b")
    original["_id"] = original.pop("id")
    original["context"] = [list(pair) for pair in zip(*original["context"].values(), strict=True)]
    return [test_hotpotqa.row("a"), original]


def mab_rows() -> list:
    row = test_memory_agent_bench.row
    facts = row("ruler_qa1_197K", ("Who?", ["Mia", "Tom"]), ("When?", ["2022"]))
    films = row("recsys_redial_full", ("Which?", ["1", "2"]))
    films["metadata"]["keypoints"] = ["x"]
    return [facts, films]


KINDS = {"locomo": (Locomo, locomo_rows), "hotpotqa": (HotpotQA, hotpot_rows), "mab": (MemoryAgentBench, mab_rows)}


@pytest.fixture
def task(tmp_path):
    """A function that makes a task of rows."""
    (tmp_path / "entity2id.json").write_text(json.dumps(test_memory_agent_bench.FILMS))

    def make(name: str, rows: object, **options) -> Task:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return KINDS[name][0](data=tmp_path / "rows.json", **options)

    load_films.cache_clear()
    return make


@pytest.mark.parametrize("absent", [None, math.nan])
@pytest.mark.parametrize("name", KINDS)
def test_every_field_that_is_null_is_absent(task, name, absent):
    rows = without_nulls(KINDS[name][1]())
    filled = table_rows(rows, absent)
    assert filled != rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        questions = asked(task(name, rows))
        assert asked(task(name, filled)) == questions
    check_texts(questions)


def test_a_table_may_write_whole_numbers_as_floats(task):
    rows = locomo_rows()
    floats = json.loads(json.dumps(rows))
    for each in floats:
        for question in each["qa"]:
            question["category"] = float(question["category"])
            if isinstance(question.get("answer"), int):
                question["answer"] = float(question["answer"])
    assert asked(task("locomo", floats)) == asked(task("locomo", rows))
    numbers = mab_rows()
    numbers[0]["answers"][1], numbers[1]["answers"][0] = [2022.0], [1, 2.0]
    assert asked(task("mab", numbers)) == asked(task("mab", mab_rows()))


def test_lists_of_a_table_may_end_with_nulls(task):
    rows = locomo_rows()
    for each in rows:
        each["conversation"]["session_1"].append(None)
        each["qa"][0]["evidence"].append(None)
    assert asked(task("locomo", rows)) == asked(task("locomo", locomo_rows()))
    rows = mab_rows()
    for each in rows:
        each["questions"].append(None)
        each["answers"].append(None)
        each["answers"][0].append(None)
    assert [question.golds for question in asked(task("mab", rows))] == [
        question.golds for question in asked(task("mab", mab_rows()))
    ]
    rows = hotpot_rows()
    for each in rows[0]["context"].values():
        each.append(None)
    rows[1]["context"][0][1].append(None)
    assert asked(task("hotpotqa", rows)) == asked(task("hotpotqa", hotpot_rows()))


@pytest.mark.parametrize(
    ("name", "path", "odd", "message"),
    [
        ("locomo", (0, "qa", 1, "answer"), None, "conversation 1, question 2, is damaged (no 'answer')"),
        ("locomo", (0, "qa", 1, "answer"), [1], "question 2, is damaged ('answer' is a list; expected a text)"),
        ("locomo", (0, "qa", 1, "answer"), False, "question 2, is damaged ('answer' is true or false; expected"),
        ("locomo", (0, "qa", 3, "adversarial_answer"), None, "question 4, is damaged (no 'adversarial_answer')"),
        ("locomo", (0, "qa", 2, "answer"), ";so", "question 3, is damaged ('answer' has nothing before a semicolon"),
        ("locomo", (0, "qa", 2, "question"), " ", "question 3, is damaged ('question' is blank)"),
        ("locomo", (0, "qa", 0), None, "conversation 1, question 1, is damaged (nothing instead of an object)"),
        ("locomo", (0, "qa", 0, "category"), True, "question 1, is damaged (category True, expected 1 to 5)"),
        ("locomo", (0, "qa", 0, "question"), "a\ud800", "question 1, is damaged ('question' has half a character ("),
        ("locomo", (0, "qa", 0, "evidence"), "D1:1", "question 1, is damaged (a text instead of a list)"),
        ("locomo", (0, "conversation", "speaker_a"), "\x00", "conversation 1 is damaged ('speaker_a' has a NUL"),
        (
            "locomo",
            (0, "sample_id"),
            "conv-2",
            "conversation 2 is damaged (its name 'conv-2' is that of an earlier one",
        ),
        ("locomo", (1,), None, "conversation 2 is damaged (nothing instead of an object)"),
        ("hotpotqa", (0, "answer"), None, "rows.json row 1 has no text `answer`"),
        ("hotpotqa", (0, "id"), "b", "rows.json row 2 has the name 'b', which an earlier row has"),
        ("hotpotqa", (0, "context", "title", 0), None, "titles and sentences (a title is nothing; expected a text)"),
        ("hotpotqa", (1, "context", 0, 1, 0), "\x00", "titles and sentences (a sentence has a NUL character ("),
        ("hotpotqa", (1,), 3, "rows.json row 2 is a number, expected an object"),
        ("mab", (0, "answers", 0), [None], "rows.json row 1 has a question without an answer (question 1)"),
        ("mab", (0, "answers", 0), {"a": 1}, "a question with an answer that is an object; expected a text (question"),
        ("mab", (0, "questions", 1), None, "rows.json row 1 has a question without a text (question 2)"),
        ("mab", (0, "questions", 1), 3, "rows.json row 1 has a question that is a number; expected a text"),
        ("mab", (0, "context"), "\ud800", "rows.json row 1 has a `context` that has half a character ("),
        ("mab", (0, "metadata", "source"), "new", "rows.json row 1 has an unknown source (there is no source 'new' in"),
        ("mab", (1, "answers", 0, 1), "99", "recsys_redial_full/0/0 has the films '99', which are not in entity2id"),
    ],
)
def test_what_is_odd_is_left_out_and_told_and_the_rest_is_as_before(task, name, path, odd, message):
    rows = KINDS[name][1]()
    before = {question.id: question for question in asked(task(name, rows, **_options(name)))}
    changed_task = task(name, changed(rows, path, odd), **_options(name))
    with pytest.warns(UserWarning) as told:
        questions = asked(changed_task)
    (warning,) = told
    assert "rows.json: 1 left out, the rest is used as " in str(warning.message) and message in str(warning.message)
    assert 0 < len(questions) < len(before)
    # With another name or source, the places are others.
    if path[-1] not in ("sample_id", "id", "source"):
        assert all(question == before[question.id] for question in questions)


@pytest.mark.parametrize(
    ("path", "odd", "message"),
    [
        (("session_1", 0, "text"), None, "conversation 1, session_1, turn 1, is damaged (no 'text')"),
        (("session_1", 0, "speaker"), 3, "session_1, turn 1, is damaged ('speaker' is a number; expected a text)"),
        (("session_1",), {}, "conversation 1, session_1, is damaged (an object instead of a list)"),
        (("session_1_date_time",), None, "session_1, is damaged (no 'session_1_date_time')"),
    ],
)
def test_an_odd_part_of_a_conversation_is_left_out_and_told(task, path, odd, message):
    changed_task = task("locomo", changed(locomo_rows(), (0, "conversation", *path), odd))
    with pytest.warns(UserWarning) as told:
        questions = asked(changed_task)
    assert message in str(told[0].message) and len(questions) == 6
    assert not any("I bought figs" in question.context for question in questions if question.group == "conv-1")


def test_a_session_that_is_null_is_absent(task):
    rows = changed(locomo_rows(), (0, "conversation", "session_3"), None)
    rows = changed(rows, (0, "conversation", "session_3_date_time"), None)
    rows = changed(rows, (0, "conversation", "session_12"), None)
    assert asked(task("locomo", rows)) == asked(task("locomo", locomo_rows()))


def test_lines_that_are_not_json_are_left_out(tmp_path):
    lines = [json.dumps(test_hotpotqa.row(name)) for name in "ab"]
    (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], "{", "[" * 5000, '{"a": "\xff"}', lines[1]]))
    with pytest.warns(UserWarning, match=r"rows\.jsonl: 3 left out.* row 2 \(line 2\) is not JSON .*nested too deep"):
        questions = asked(HotpotQA(data=tmp_path / "rows.jsonl"))
    assert [question.id for question in questions] == ["a", "b"]


def test_a_file_of_odd_rows_alone_is_refused(task):
    rows = [row | {"answers": [[None]], "questions": ["q"]} for row in mab_rows()]
    with pytest.raises(ValueError) as told:
        asked(task("mab", rows))
    assert "rows.json has nothing that can be used as rows of MemoryAgentBench: rows.json row 1 has a que" in str(
        told.value
    )
    assert "\n" not in str(told.value)


def test_films_without_a_number_are_left_out(task, tmp_path):
    films = test_memory_agent_bench.FILMS | {"Jaws": None, "Up": [3], "Alien\ud800": 9}
    with_films = task("mab", mab_rows())
    (tmp_path / "entity2id.json").write_text(json.dumps(films))
    with pytest.warns(UserWarning, match=r"entity2id\.json: 2 left out.* film 'Up': its number is a list; expected a"):
        assert len(asked(with_films)) == 3
    with warnings.catch_warnings(record=True):
        assert "None" not in load_films(tmp_path, "other name of the repo")


def test_what_was_left_out_is_told_once_with_its_first_problems(recwarn):
    left_out = LeftOut("data.jsonl", "rows")
    for number in range(5):
        left_out.add(f"row {number} is odd")
    assert list(left_out.told(iter("ab"))) == ["a", "b"]
    (warning,) = recwarn
    assert str(warning.message) == (
        "data.jsonl: 5 left out, the rest is used as rows: row 0 is odd; row 1 is odd; row 2 is odd; and 2 more"
    )


def test_what_was_left_out_before_a_limit_is_told(recwarn):
    left_out = LeftOut("data.jsonl", "rows")
    questions = left_out.told(iter("abc"))
    assert next(questions) == "a"
    left_out.add("row 2 is odd")
    questions.close()
    assert len(recwarn) == 1


def test_nothing_is_told_where_nothing_is_left_out(recwarn):
    assert not list(LeftOut("data.jsonl", "rows").told(iter(""))) and not recwarn.list


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_gives_clean_questions_or_one_line(task, name, data):
    rows = table_rows(KINDS[name][1]())
    for path in data.draw(st.lists(st.sampled_from(list(paths(rows))), min_size=1, max_size=3)):
        # An earlier change may have removed the place.
        if path in set(paths(rows)):
            rows = changed(rows, path, data.draw(st.sampled_from(ODD)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            check_texts(asked(task(name, rows, **_options(name))))
            lines = [str(warning.message) for warning in told]
        except ValueError as error:
            lines = [str(error)]
    for line in lines:
        assert line.isprintable() and line.encode()


@pytest.mark.slow
@needs_locomo10
@pytest.mark.parametrize("absent", [None, math.nan])
def test_the_real_conversations_give_the_same_questions_as_a_table(task, absent):
    rows = json.loads(LOCOMO10.read_text(encoding="utf-8"))
    filled = table_rows(rows, absent)
    assert sum("answer" in question for each in filled for question in each["qa"]) == 1986
    questions = asked(Locomo(data=LOCOMO10, mode="replay"))
    assert len(questions) == 1986
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = asked(task("locomo", filled, mode="replay"))
    # What the audit says about an answer is known for the file itself only.
    unaudited = [{name: label for name, label in each.labels.items() if name != "answer key"} for each in questions]
    assert found == [replace(each, labels=labels) for each, labels in zip(questions, unaudited, strict=True)]


@pytest.mark.parametrize("natural", [False, True])
def test_the_system_prompt_of_recall_is_text(natural):
    for prompt, problem in (("a\ud800", "half a character"), ("\x00", "a NUL character")):
        with pytest.raises(ValueError, match=f"--recall-system-prompt has {problem}"):
            Recall(system_prompt=prompt, natural=natural)
    question = next(Recall(system_prompt="\ufeffHi\x1b", natural=natural).questions(tiny_backbone()))
    assert question.history[0] == {"role": "system", "content": "Hi\x1b"}


def _options(name: str) -> dict[str, str]:
    return {"mode": "replay"} if name == "locomo" else {}
