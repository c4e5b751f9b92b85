"""The turns of a history: split, chosen and joined again."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem.evaluation.baselines.turns import text_bytes, turn_texts, with_text, with_turns
from mlx_deltamem.evaluation.question import Question
from tests.evaluation.runs import chat, questions

SYSTEM = ({"role": "system", "content": "Be brief."},)


def asked(history=(), context: str = "", preface: int = 0) -> Question:
    rest = "\n\nNow: So?" if context else ""
    return Question(
        "0", "0", history, "So?", ("a",), "one", 4, context=context, preface=preface, question_with_context=rest
    )


def test_a_turn_is_a_message_with_its_replies():
    history = (*SYSTEM, *chat("a", "b", "c", "d"), {"role": "assistant", "content": "e"}, *chat("f"))
    assert turn_texts(asked(history)) == ["a\nb", "c\nd\ne", "f"]
    assert turn_texts(asked(SYSTEM)) == turn_texts(asked()) == []
    # Messages of the user alone, as in benchmarks.
    assert turn_texts(asked(chat("a")[:1] + chat("c")[:1])) == ["a", "c"]
    # A chat may begin with the assistant.
    assert turn_texts(asked(({"role": "assistant", "content": "hello"}, *chat("a", "b")))) == ["hello", "a\nb"]


def test_the_parts_of_a_context_end_at_blank_lines():
    question = asked(chat("x"), "Read this.\n\nA cat.\nIt is red.\n\n\nA dog.\n\n", len("Read this.\n\n"))
    assert turn_texts(question) == ["A cat.\nIt is red.\n\n\n", "A dog.\n\n"]
    some = with_turns(question, [1])
    assert some.messages(True)[-1]["content"] == "Read this.\n\nA dog.\n\n\n\nNow: So?"
    # With nothing to read the question is that of the conditions without a history.
    assert with_turns(question, ()).messages(True) == question.messages(False)


@given(st.text("ab\n ", max_size=40), st.integers(0, 5))
def test_the_parts_are_the_context(text, preface):
    question = asked(chat("x"), text, min(preface, len(text)))
    assert "".join(turn_texts(question)) == text[question.preface :] or not text
    assert with_turns(question, range(len(turn_texts(question)))) is question


@given(st.sets(st.integers(0, 4)))
def test_the_chosen_turns_stand_in_their_order(chosen):
    texts = ["one", "1", "two", "2", "three", "3", "four", "4", "five", "5"]
    question = asked((*SYSTEM, *chat(*texts)))
    shown = with_turns(question, sorted(chosen, reverse=True))
    wanted = [text for turn in sorted(chosen) for text in texts[2 * turn : 2 * turn + 2]]
    assert [message["content"] for message in shown.messages(True)] == ["Be brief.", *wanted, "So?"]
    assert (shown is question) == (len(chosen) == 5)
    assert replace(shown, history=question.history) == question


@pytest.mark.parametrize("in_prompt", [False, True])
def test_a_text_in_place_of_the_history(in_prompt):
    (question,) = questions(1, 1, in_prompt)
    *system, message = with_text(question, "A summary: none.").messages(True)
    assert [each["content"] for each in system] == ["Be brief."]
    assert message["content"].startswith("A summary: none.") and message["content"].endswith("What was it?")
    assert "Rex" not in message["content"]


def test_bytes_are_those_of_a_json_text():
    question = asked((*SYSTEM, *chat("Zoë", "b")))
    text = json.dumps([[*chat("Zoë", "b")]], ensure_ascii=False, separators=(",", ":"))
    assert text_bytes(question) == len(text.encode()) == len(text) + 1
    assert text_bytes(asked(chat("x"), "Read.\n\nZoë\n\nb", 7)) == len('["Zoë\\n\\n","b"]'.encode())
