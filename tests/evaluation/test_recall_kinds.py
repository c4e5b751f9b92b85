"""The kinds of recall: each answer follows from the chat, and only from the turns that are called its evidence."""

from collections import Counter

import pytest

from mlx_deltamem.evaluation.baselines.turns import turn_texts
from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.tasks.recall import Recall
from mlx_deltamem.evaluation.tasks.recall_kinds import KINDS, WRITTEN
from mlx_deltamem.recall.vocabulary import values_on
from tests.evaluation.tables import asked, check_questions, oracle_and_mute

EASY = Recall(kinds=KINDS, questions_each=12, facts=(2,), filler=(0, 3))
HARD = Recall(kinds=KINDS, questions_each=12, facts=(2,), filler=(0, 3), gap=(1, 1), hard=True, seed=4)
both = pytest.mark.parametrize("task", [EASY, HARD], ids=["easy", "hard"])


def said(question: Question) -> list[str]:
    """The messages of the user."""
    return [message["content"] for message in question.history if message["role"] == "user"]


@pytest.mark.slow
@both
def test_as_many_questions_of_each_kind(task):
    questions = asked(task)
    check_questions(questions)
    assert [question.category for question in questions] == list(KINDS) * 12
    assert questions == asked(task) != asked(Recall(kinds=KINDS, questions_each=12, facts=(2,), hard=task.hard, seed=9))
    # A shorter run asks the first of the same questions.
    shorter = Recall(**{**vars(task), "questions_each": 3})
    assert asked(shorter) == questions[: 3 * len(KINDS)]


@pytest.mark.slow
@both
def test_an_oracle_scores_all_and_a_mute_one_nothing(task):
    oracle_and_mute(task, asked(task))


@pytest.mark.slow
@both
def test_the_answer_stands_in_the_evidence(task):
    for question in asked(task):
        texts = turn_texts(question)
        if question.category == "absent":
            assert question.evidence == ()
            continue
        evidence = [texts[turn] for turn in question.evidence]
        assert len(evidence) == {"joined": 2, "often": 3}.get(question.category, 1)
        if question.category == "deleted":
            continue
        # A fact that was updated names only the new value there.
        value = str(question.labels["value"])
        assert sum(value in text for text in evidence) == (3 if question.category == "often" else 1)
        assert not any(value in text for turn, text in enumerate(texts) if turn not in question.evidence)


@pytest.mark.slow
@both
def test_the_answers_follow_from_the_chats(task):
    for question in asked(task):
        value, told = str(question.labels.get("value")), str(question.labels["told"]).split("\n")
        texts = said(question)
        if question.category == "joined":
            person = next(each for each in _PERSONS if f"my {each}" in question.question)
            (first,) = [text for text in texts if f"my {person}" in text.replace("My", "my")]
            (name,) = [each for each in values_on("first_names", "held_out") if f" {each} " in f" {first.rstrip('.')} "]
            (second,) = [text for text in texts if name in text and text != first]
            assert value in second and value not in first
        elif question.category == "people":
            name = question.question.removeprefix("This is ").split()[0].rstrip(".")
            assert [value in text for text in texts if name in text] == [True]
            assert len([text for text in texts if any(each in text for each in told)]) == len(told) > 1
        elif question.category == "often":
            counts = Counter(each for each in told for text in texts if each in text)
            assert counts.most_common()[0] == (value, 3) and set(counts.values()) == {1, 3}
        if question.category in ("joined", "people", "often"):
            assert task.score(question, f"It is {told[1]}.") == {"exact": 0.0, "named": 0.0}
            assert task.score(question, f"It is {value}.") == {"exact": 1.0, "named": 1.0}
            assert task.score(question, f"{value} or {told[1]}") == {"exact": 0.0, "named": 1.0}


_PERSONS = ("sister", "brother", "neighbour", "boss", "cousin", "dentist", "landlord", "best friend")


@pytest.mark.slow
def test_hard_chats_have_more_rivals_and_longer_values():
    for question in asked(HARD):
        told = str(question.labels["told"]).split("\n")
        if question.category in WRITTEN:
            assert len(told) == 4 and all(" " in value for value in told)
        assert int(question.labels["facts"]) >= 4
    assert {question.labels["values"] for question in asked(HARD) if question.category == "told"} == {
        "first_names",
        "towns",
    }
    usual = Recall(facts=(2,), questions_each=40, filler=(0, 0), hard=True)
    questions = asked(usual)
    oracle_and_mute(usual, questions)
    assert len(questions) == 40 and all(len(said(question)) == 5 for question in questions)
    doubled = [" " in str(question.labels["value"]) for question in questions]
    assert sum(doubled) > 0.8 * len(doubled)


def test_impossible_kinds():
    with pytest.raises(ValueError, match="recall-kinds"):
        Recall(kinds=("told", "dreamt"))
