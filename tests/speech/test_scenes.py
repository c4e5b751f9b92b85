"""Conversations made of scenes: the scenes and their wordings, and what is told and asked."""

import json
import random
import re
from collections import Counter

import pytest

from mlx_deltamem.speech import SIDES, Conversation, SpeechSettings, Split, make_conversation, side_of
from mlx_deltamem.speech.scenes import _scene, scenes
from mlx_deltamem.speech.storyteller import Storyteller
from mlx_deltamem.speech.wording import contains, words

SCENES = {scene.name: scene for scene in scenes()}
COUNT = 300


def made(count: int = COUNT, **settings) -> list[Conversation]:
    chosen = SpeechSettings(scenes=1.0, **settings)
    return [make_conversation(chosen, "test", index) for index in range(count)]


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return made(updates=0.5)


# The files.


def test_scenes_are_not_one_template() -> None:
    for use in ("tell", "ask"):
        found = Counter(
            line
            for scene in SCENES.values()
            for lines in ([each.tell for each in scene.messages] if use == "tell" else scene.ask.values())
            for line in lines
        )
        assert len(found) >= 0.98 * found.total()


def test_values_are_open() -> None:
    """A short list of words would be learned by heart."""
    for scene in SCENES.values():
        for value, kind in scene.kinds.items():
            if value in scene.ask and "\n" in kind and "{" not in kind:
                assert len(kind.splitlines()) >= 10, (scene.name, value)


GOOD = {
    "values": {"cat": "pet_name", "vet": "doctor"},
    "tell": ["{cat} it is\nwe took {cat}\nso {cat} came", "{vet} saw {cat}\nseen by {vet}\nit was {vet}"],
    "ask": {"cat": "which cat\nwho came\nwhat name\nwho is it\nwhom did we take", "vet": "a\nb\nc\nd\ne {cat}"},
    "later": {"vet": "now {vet}\n{vet}, not {old}"},
    "never": "how old is it",
}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"values": GOOD["values"] | {"old": "{2-9}", "a_dog": "pet_name"}},
            "values named old, a_dog; old and a_ have",
        ),
        ({"sold": "no"}, "has missing or unknown entries: sold"),
        ({"values": GOOD["values"] | {"age": "winters"}}, "age of the kind 'winters', which no file of kinds/ has"),
        ({"values": GOOD["values"] | {"age": "{2-9} years"}}, "does not tell age"),
        ({"tell": ["{cat}\nyes {cat}\na cat", GOOD["tell"][1]]}, r"'a cat', which does not have \['cat'\]"),
        ({"tell": ["{cat}\nyes {cat}", GOOD["tell"][1]]}, "has 2 wordings in tell: '{cat}'; write 3 or more"),
        ({"tell": [GOOD["tell"][0], "{who}\nx {who}\ny {who}"]}, r"'\{who\}' with \['who'\]; expected names of values"),
        ({"ask": GOOD["ask"] | {"cat": "a\nb\nc\nd\ne {cat}"}}, r"ask, cat, has 'e \{cat\}' with \['cat'\]"),
        ({"ask": GOOD["ask"] | {"cat": "a\na\nb\nc\nd"}}, "the same line twice"),
        ({"ask": GOOD["ask"] | {"dog": "a\nb\nc\nd\ne"}}, "has dog in ask or later, which values does not have"),
        ({"later": {"vet": "not {old}\nnow {vet}"}}, r"'not \{old\}', which does not have \['vet'\]"),
        ({"never": "{who"}, "has a brace that belongs to no slot"),
    ],
)
def test_mistakes_in_a_file_are_refused(entry: dict, message: str) -> None:
    assert _scene("pets", "kitten", GOOD).name == "kitten"
    with pytest.raises(ValueError, match=message):
        _scene("pets", "kitten", GOOD | entry)


# What is told and asked.


def test_the_answer_was_told_and_is_not_in_the_question(conversations) -> None:
    kinds_of_questions = Counter()
    for conversation in conversations:
        assert conversation.questions
        for question in conversation.questions:
            kinds_of_questions[question.kind] += 1
            if question.value is None:
                assert question.kind == "absent" and question.turn is None
                continue
            assert question.value in question.answer
            assert not contains(words(question.text), words(question.value)), question
            turn = conversation.turns[question.turn]
            assert question.distance == len(conversation.turns) - question.turn
            assert question.value.casefold() in f"{turn.user} {turn.assistant}".casefold()
            assert (turn.kind == "update") == (question.kind == "update")
    assert set(kinds_of_questions) == {"fact", "two_facts", "update", "absent", "assistant"}
    assert min(kinds_of_questions.values()) > 20


def test_values_cannot_be_confused(conversations) -> None:
    for conversation in conversations:
        values = {words(question.value) for question in conversation.questions if question.value}
        for one in values:
            assert not any(contains(other, one) for other in values if other != one)


def test_absent_values_were_not_told(conversations) -> None:
    for conversation in conversations:
        told = {(each.relation, each.subject) for each in conversation.questions if each.value}
        for question in conversation.questions:
            assert question.kind != "absent" or (question.relation, question.subject) not in told


def test_simple_grammar(conversations) -> None:
    wrong = re.compile(r"[{}]|  | [,?!](?![.?!])|\b(the the|to to|in in|at at|an? an?)\b", re.IGNORECASE)
    for conversation in conversations:
        for text in [*(turn.user for turn in conversation.turns), *(each.text for each in conversation.questions)]:
            assert not wrong.search(text), text


def test_a_question_names_values_of_its_own_time(monkeypatch) -> None:
    """A value that was told anew need not have what the one before it had."""
    entry = GOOD | {
        "ask": GOOD["ask"] | {"vet": "a\nb\nc\nd\nwho saw {cat}"},
        "later": {"cat": "now it is {cat}\n{cat}, not {old}"},
    }
    scene = _scene("pets", "kitten", entry)
    monkeypatch.setattr("mlx_deltamem.speech.storyteller.scenes_on", lambda *sides: (scene,))
    asked = Counter()
    for conversation in made(60, facts=(2, 2), updates=0.5, asked=9, absent=(0, 0)):
        is_new = any(turn.kind == "update" for turn in conversation.turns)
        asked[is_new, any("who saw" in question.text.lower() for question in conversation.questions)] += 1
    assert asked[True, False] and asked[False, True] and not asked[True, True]


def test_scenes_with_the_same_question_are_not_together(monkeypatch) -> None:
    two = tuple(_scene("pets", name, GOOD) for name in ("kitten", "puppy"))
    monkeypatch.setattr("mlx_deltamem.speech.storyteller.scenes_on", lambda *sides: two)
    for conversation in made(20, facts=(4, 4)):
        assert len({turn.relations for turn in conversation.turns if turn.relations}) == 1


def test_ordinary_turns_do_not_part_messages_that_go_on() -> None:
    """The messages of a scene stand together; only a value that is told anew may come later."""
    for conversation in made(100, facts=(4, 6), ordinary=(3, 3), updates=0.5):
        order = [turn.relations for turn in conversation.turns if turn.kind != "update"]
        blocks = [each for place, each in enumerate(order) if not place or each != order[place - 1]]
        told = [each for each in blocks if each]
        assert len(told) == len(set(told))
        assert sum(not each for each in order) >= 3


def test_a_number_of_facts_and_of_questions() -> None:
    for conversation in made(50, facts=(2, 2), absent=(1, 1), questions=1):
        assert sum(question.value is not None for question in conversation.questions) == 1
        assert sum(question.kind == "absent" for question in conversation.questions) == 1


def test_a_conversation_without_a_wish_for_facts_tells_one() -> None:
    for conversation in made(30, facts=(0, 0), absent=(1, 1)):
        assert any(turn.kind in ("told", "assistant") for turn in conversation.turns)


def test_the_same_seed_gives_the_same_conversations(conversations) -> None:
    assert made(20, updates=0.5) == conversations[:20]
    for conversation in conversations[:20]:
        assert Conversation.from_json(json.loads(json.dumps(conversation.as_json()))) == conversation


@pytest.mark.parametrize("what", ["values", "relations", "wordings"])
def test_the_sides_have_nothing_in_common(what: str) -> None:
    found = {}
    for side in SIDES:
        questions = [each for one in made(150, split=Split(**{what: side})) for each in one.questions if each.value]
        assert len(questions) > 150
        assert len({question.relation for question in questions}) > 50
        if what == "values":
            found[side] = {question.value.casefold() for question in questions}
        elif what == "relations":
            found[side] = {question.relation for question in questions}
            assert all(side_of(name) == side for name in found[side])
        else:
            found[side] = {name for question in questions for name in (question.asked_in, question.told_in)}
    assert not found["train"] & found["held_out"]


def test_messages_of_a_scene_may_be_sent_as_one() -> None:
    apart, one = made(100, two_facts=0.0, facts=(6, 6)), made(100, two_facts=1.0, facts=(6, 6))
    assert all(len(turn.wordings) == 1 for conversation in apart for turn in conversation.turns if turn.relations)
    joined = [turn for conversation in one for turn in conversation.turns if len(turn.wordings) > 1]
    assert len(joined) > 50
    # The request for what the assistant tells, and its reply, are not part of a longer message.
    assert {turn.kind for turn in joined} == {"told"}
    for conversation in one:
        told = [turn for turn in conversation.turns if turn.kind == "told"]
        scenes_told = Counter(turn.relations for turn in told)
        by_assistant = {turn.relations for turn in conversation.turns if turn.kind == "assistant"}
        assert all(count == 1 for relations, count in scenes_told.items() if relations not in by_assistant)
        for question in conversation.questions:
            if question.kind in ("fact", "two_facts"):
                assert question.told_in in conversation.turns[question.turn].wordings


def test_a_joined_message_is_typed_in_one_way() -> None:
    """Where one of its sentences has no capital, none has one; no full stop is missing between two."""
    storyteller = Storyteller(random.Random(0), SpeechSettings(scenes=1.0, lower=0.0), None)
    assert storyteller._typed_as_one(["Seen by {vet}", "It was {cat}."]) == "Seen by {vet}. It was {cat}."
    assert storyteller._typed_as_one(["we took {cat}", "It was {vet}."]) == "we took {cat}. it was {vet}"
