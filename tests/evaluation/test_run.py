"""Runs: every question is asked once, even if the run is killed and continued."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mlx_deltamem import load
from mlx_deltamem.evaluation.analysis import analyse
from mlx_deltamem.evaluation.asking import Manner
from mlx_deltamem.evaluation.conditions import parse_conditions
from mlx_deltamem.evaluation.effects import sum_up
from mlx_deltamem.evaluation.partners import partner_groups
from mlx_deltamem.evaluation.prepared import PreparedTask, prepare
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.run import MEASURES_FILE, RECORDS_FILE, EvaluationRun, PartOfRun, Plan
from mlx_deltamem.evaluation.task import Backbone, Sampling
from tests.conftest import adapter, backbone
from tests.evaluation.runs import Small, loaded, questions

CONDITIONS = parse_conditions(("base", "state", "zeroed", "none", "shuffled"))
PLAN = Plan(CONDITIONS, seeds=(3, 4), batch_size=4)


def ask(
    folder: Path, plan: Plan = PLAN, manner: Manner | None = None, limit: int | None = None, task=None
) -> EvaluationRun:
    asked = prepared(manner, limit, task)
    run = EvaluationRun(*loaded(), plan, folder)
    told = []
    run.ask([asked], lambda what, more: told.append(more))
    assert sum(told) == run.amount(asked)
    return run


def prepared(manner: Manner | None = None, limit: int | None = None, task=None) -> PreparedTask:
    return prepare(task or Small(), manner or Manner(), *loaded(), limit)


def records(folder: Path) -> bytes:
    return (folder / RECORDS_FILE).read_bytes()


@pytest.mark.slow
def test_every_question_is_asked_once_under_every_condition(tmp_path):
    ask(tmp_path)
    rows = [json.loads(line) for line in records(tmp_path).splitlines()]
    expected = [(condition.name, 3, each.id) for condition in CONDITIONS for each in questions()]
    assert [(row["condition"], row["seed"], row["id"]) for row in rows] == expected
    assert all(row["task"] == "small" and row["scores"]["right"] in (0.0, 1.0) for row in rows)


@pytest.mark.slow
def test_sampled_replies_are_asked_with_every_seed(tmp_path):
    run = ask(tmp_path, manner=Manner(Sampling(temp=1.0)))
    assert [row["seed"] for row in run.records.rows[:4]] == [3, 4, 3, 4]
    assert len(run.records.rows) == 2 * len(CONDITIONS) * len(questions())


@pytest.mark.slow
def test_a_run_that_was_killed_anywhere_goes_on_to_the_same_records(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    ask(whole)
    content = records(whole)
    broken = tmp_path / "broken"
    broken.mkdir()
    # Between two rows, within one, and after some batches.
    for length in (0, 10, len(content) // 5 + 7, len(content) // 2, content.rindex(b"\n", 0, -1) + 1, len(content) - 1):
        (broken / RECORDS_FILE).write_bytes(content[:length])
        ask(broken)
        assert records(broken) == content


def test_what_was_asked_is_not_asked_again(tmp_path, monkeypatch):
    ask(tmp_path)
    content = records(tmp_path)
    monkeypatch.setattr("mlx_deltamem.evaluation.asking.Asker.ask", lambda *_: pytest.fail("asked again"))
    ask(tmp_path)
    assert records(tmp_path) == content


def test_conditions_may_be_added(tmp_path):
    ask(tmp_path, Plan(parse_conditions(("state",))))
    run = ask(tmp_path, Plan(parse_conditions(("none",))))
    model, tokenizer = loaded()
    prepared = prepare(Small(), Manner(), model, tokenizer, None)
    assert run.complete_conditions(prepared) == ["state", "none"]
    rows = run.rows(prepared, ["state", "none"])
    assert len(rows) == 12 and [row["id"] for row in rows[:2]] == ["0/0", "0/0"]
    assert analyse(Small(), rows, ["state", "none"], 0).whole.means["none", "right"].questions == 6


@pytest.mark.slow
def test_a_condition_that_is_not_complete_is_left_out(tmp_path):
    ask(tmp_path)
    content = records(tmp_path)
    (tmp_path / RECORDS_FILE).write_bytes(content[: len(content) // 2])
    model, tokenizer = loaded()
    run = EvaluationRun(model, tokenizer, PLAN, tmp_path)
    assert run.complete_conditions(prepare(Small(), Manner(), model, tokenizer, None)) == ["base", "state"]


@pytest.mark.slow
def test_measures_are_kept_by_condition(tmp_path):
    run = ask(tmp_path)
    small = prepared()
    costs = {condition.name: sum_up(run.measures_of(small, condition.name)) for condition in CONDITIONS}
    assert costs["state"].norm > 0 and costs["state"].correction > 0 and 0 < costs["state"].write < 1
    assert costs["none"].norm == costs["none"].correction == costs["zeroed"].norm == 0
    assert costs["none"].write is None
    assert all(each.prompt_tps > 0 and each.reply_tps > 0 and each.peak_memory > 0 for each in costs.values())
    # The histories were read before `shuffled` was asked, and their gates are known all the same.
    assert costs["shuffled"].write == pytest.approx(costs["state"].write, rel=0.05)
    assert len((tmp_path / MEASURES_FILE).read_text().splitlines()) == 2 * len(CONDITIONS)


@pytest.mark.slow
def test_measures_are_of_the_questions_of_a_result(tmp_path):
    def of(folder: Path, *limits: int | None) -> dict[str, tuple[float, ...]]:
        folder.mkdir()
        for limit in limits:
            run = ask(folder, limit=limit)
        small = prepared(limit=limits[-1])
        found = {condition.name: run.measures_of(small, condition.name) for condition in CONDITIONS}
        return {name: (sum(row["prompts"] for row in rows), sum_up(rows).norm) for name, rows in found.items()}

    # More than before, with a batch that had been cut; and fewer, of whole batches.
    assert of(tmp_path / "more", 3, None) == of(tmp_path / "all", None)
    assert of(tmp_path / "fewer", None, 4) == of(tmp_path / "four", 4)


def test_long_prompts_are_not_asked_side_by_side(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr("mlx_deltamem.evaluation.run._MOST_CHARACTERS", 70)
    original = PartOfRun._ask_batch
    monkeypatch.setattr(
        PartOfRun,
        "_ask_batch",
        lambda self, run, asker, batch, *rest: sizes.append(len(batch)) or original(self, run, asker, batch, *rest),
    )
    ask(tmp_path, Plan(parse_conditions(("base", "state"))))
    assert sizes == [1] * 6 + [2, 2, 2]


def summary(task=None, manner=None, limit=None) -> dict:
    return prepare(task or Small(), manner or Manner(), *loaded(), limit).summary


def test_the_summary_tells_what_decides_the_records():
    assert summary() == summary() == summary(manner=Manner(prefill_step_size=3))
    for other in ({"manner": Manner(write="all")}, {"limit": 3}, {"manner": Manner(Sampling(temp=0.5))}):
        assert summary(**other) != summary()
    assert summary(Other())["sha256"] != summary()["sha256"]


@dataclass(frozen=True)
class Other(Small):
    """The small task with one change in its last question."""

    changes: tuple[tuple[str, object], ...] = (("max_tokens", 8),)

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        *same, last = questions()
        yield from (*same, replace(last, **dict(self.changes)))


@pytest.mark.slow
def test_more_questions_or_fewer_may_be_asked_later(tmp_path):
    plan = Plan(CONDITIONS, batch_size=1)
    (tmp_path / "whole").mkdir()
    whole = ask(tmp_path / "whole", plan)
    for limit in (4, 6, 5):
        run = ask(tmp_path, plan, limit=limit)
        prepared = prepare(Small(), Manner(), *loaded(), limit)
        names = run.complete_conditions(prepared)
        assert names == ["base", "state", "none", "zeroed", "shuffled"]
        wanted = {each.id for each in questions()[:limit]}
        expected = [row for name in names for row in whole.records.rows if row["condition"] == name]
        found = sorted(run.rows(prepared, names), key=lambda row: names.index(row["condition"]))
        assert found == [row for row in expected if row["id"] in wanted]
    assert len(run.records.rows) == len(whole.records.rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"question": "And now?"},
        {"history": (*questions()[-1].history[:-1], {"role": "assistant", "content": "Well."})},
        {"context": "Read that.", "question_with_context": "Now: so?"},
        {"golds": ("Another.",)},
        {"max_tokens": 8},
        {"index": 9},
        {"labels": {"level": 3}},
    ],
)
def test_another_question_in_the_place_of_one_is_refused(changes, tmp_path):
    run = ask(tmp_path)
    assert run.check(prepare(Small(), Manner(), *loaded(), None)) is None
    other = prepare(Other(changes=tuple(changes.items())), Manner(), *loaded(), None)
    with pytest.raises(ValueError, match=r"has another small question '2/1'; use the same data and options"):
        run.check(other)


@pytest.mark.slow
def test_what_was_not_asked_before_may_be_anything(tmp_path):
    run = ask(tmp_path, limit=5)
    assert run.check(prepare(Other(), Manner(), *loaded(), None)) is None


def test_another_memory_under_shuffled_is_refused(tmp_path):
    run = ask(tmp_path, Plan(parse_conditions(("shuffled",))))
    fewer = [each for each in questions() if each.group != "group 1"]
    prepared = prepare(Small(), Manner(), *loaded(), None)
    one_less = replace(prepared, questions=tuple(fewer))
    assert partner_groups([f"group {number}" for number in range(3)], 0)["group 0"] == "group 1"
    with pytest.raises(ValueError, match="has another small question '0/0'"):
        run.check(one_less)
    (tmp_path / "state").mkdir()
    assert ask(tmp_path / "state", Plan(parse_conditions(("state",)))).check(one_less) is None


ALTERNATING = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}{{ raise_exception('not first') }}{% endif %}"
    "{% if not loop.first and m.role == loop.previtem.role %}{{ raise_exception('must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class InRow(Small):
    """Its history is two messages of the user in a row, and in the text a part of one."""

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        for question in questions(in_prompt=True):
            yield replace(question, history=(question.history[1], question.history[1]))


def test_a_template_that_refuses_the_prompts_is_told_before_anything_is_asked(tmp_path):
    model, tokenizer = load(backbone(), adapter=adapter())
    tokenizer.chat_template = ALTERNATING
    prepared = prepare(InRow(), Manner(), model, tokenizer, None)
    assert (
        EvaluationRun(model, tokenizer, Plan(parse_conditions(("base", "full", "none"))), tmp_path).check(prepared)
        is None
    )
    for name in ("state", "zeroed", "shuffled", "replay"):
        run = EvaluationRun(model, tokenizer, Plan(parse_conditions(("base", name))), tmp_path)
        with pytest.raises(ValueError, match=r"the chat template refuses 2 messages \(user, user\)"):
            run.check(prepared)


def test_there_is_no_other_memory_of_one_history(tmp_path):
    run = EvaluationRun(*loaded(), PLAN, tmp_path)
    with pytest.raises(ValueError, match="shuffled needs the memory of another history"):
        run.check(prepare(Small(), Manner(), *loaded(), 2))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "small has no questions; check its data and options"),
        (questions(1, 1) * 2, "small has two questions with the same id; expected unique ids"),
        (questions(2, 2)[::2] + questions(2, 2)[1:2], "small has questions of one group in several places"),
    ],
)
def test_questions_that_cannot_be_asked(found, message, monkeypatch):
    monkeypatch.setattr(Small, "questions", lambda self, backbone: iter(found))
    with pytest.raises(ValueError, match=message):
        prepare(Small(), Manner(), *loaded(), None)
