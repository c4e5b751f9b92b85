"""The task recall: the rule that scores a reply, checked by hand, and questions that are what the options say."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_deltamem.evaluation.question import Question
from mlx_deltamem.evaluation.task import Backbone
from mlx_deltamem.evaluation.tasks.answers import first_line
from mlx_deltamem.evaluation.tasks.naming import names, names_only, says_not_told
from mlx_deltamem.evaluation.tasks.recall import Recall
from mlx_deltamem.recall.split import side_of
from mlx_deltamem.recall.vocabulary import keys, shared, values
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from tests.conftest import backbone

DOG, COLOUR, NUMBER = "What is my dog called?", "Which colour do I like best?", "What is my lucky number?"
TOWN, JOB, WORD, FLOWER = "Where do I live?", "What is my job?", "Red door.", "Which flower do I like best?"

# Question, list of values, value, what else was told, reply, and the scores: exact, named.
NAMED = [
    (DOG, "first_names", "Leon", "", "Your dog is called Leon.", 1, 1),
    (DOG, "first_names", "Leon", "", "Leon", 1, 1),
    (DOG, "first_names", "Leon", "", "leon", 1, 1),
    (DOG, "first_names", "Leon", "", "LEON!", 1, 1),
    (DOG, "first_names", "Leon", "", "  Leon. ", 1, 1),
    (DOG, "first_names", "Leon", "", '"Leon"', 1, 1),
    (DOG, "first_names", "Leon", "", "It's Leon, of course.", 1, 1),
    (DOG, "first_names", "Leon", "", "Leon's the name.", 1, 1),
    (DOG, "first_names", "Leon", "", "\n\nYour dog is called Leon.", 1, 1),
    (DOG, "first_names", "Leon", "", "Your dog is called Leon.\nYour dog is called Max.", 1, 1),
    (DOG, "first_names", "Leon", "", "Your dog is called Leona.", 0, 0),
    (DOG, "first_names", "Leon", "", "Your dog is called Le on.", 0, 0),
    (DOG, "first_names", "Leon", "", "Your dog is called Max.", 0, 0),
    (DOG, "first_names", "Leon", "", "Your dog is called Max.\nLeon", 0, 0),
    (DOG, "first_names", "Leon", "", "Your dog is called Leon or Max.", 0, 1),
    (DOG, "first_names", "Leon", "", "Anna, Leon, Max.", 0, 1),
    (DOG, "first_names", "Leon", "", "leon, max or anna", 0, 1),
    (DOG, "first_names", "Leon", "", "First it was Max, and now it is Leon.", 0, 1),
    (DOG, "first_names", "Leon", "", "Your dog is not called Leon.", 0, 1),
    (DOG, "first_names", "Leon", "", "Your dog isn't called Leon.", 0, 1),
    (DOG, "first_names", "Leon", "", "Your dog isn’t called Leon.", 0, 1),
    (DOG, "first_names", "Leon", "", "I do not know. Leon?", 0, 1),
    (DOG, "first_names", "Leon", "", "You have not told me your dog's name, Leon.", 0, 1),
    (DOG, "first_names", "Leon", "", "You asked me to forget Leon.", 0, 1),
    (DOG, "first_names", "Leon", "", "", 0, 0),
    (DOG, "first_names", "Leon", "", " \n ", 0, 0),
    (DOG, "first_names", "Leon", "", "Your dog is called.", 0, 0),
    (DOG, "first_names", "Leon", "", "What is my dog called?", 0, 0),
    (DOG, "first_names", "Leon", "Oslo", "Leon lives in Oslo.", 0, 1),
    (DOG, "first_names", "Leon", "Oslo", "Leon lives in Rome.", 1, 1),
    # "Will" is a name, "will" is none, unless nothing is written with a capital.
    (DOG, "first_names", "Leon", "", "I will call your dog Leon.", 1, 1),
    (DOG, "first_names", "Leon", "", "Your dog is Leon, Will.", 0, 1),
    (DOG, "first_names", "Leon", "", "i will say leon", 0, 1),
    (DOG, "first_names", "Will", "", "Your dog is called Will.", 1, 1),
    (COLOUR, "colours", "dark green", "", "Your favourite colour is dark green.", 1, 1),
    (COLOUR, "colours", "dark green", "", "Dark green!", 1, 1),
    (COLOUR, "colours", "dark green", "", "dark-green", 1, 1),
    (COLOUR, "colours", "dark green", "", "Your favourite colour is green.", 0, 0),
    (COLOUR, "colours", "dark green", "", "Your favourite colour is dark blue.", 0, 0),
    (COLOUR, "colours", "dark green", "", "Dark green, and blue.", 0, 1),
    (COLOUR, "colours", "green", "", "A green, the green.", 1, 1),
    (COLOUR, "colours", "green", "", "green or red", 0, 1),
    (NUMBER, "numbers", "17", "", "Your lucky number is 17.", 1, 1),
    (NUMBER, "numbers", "17", "", "17", 1, 1),
    (NUMBER, "numbers", "17", "", "Your lucky number is 171.", 0, 0),
    (NUMBER, "numbers", "17", "", "Your lucky number is 7.", 0, 0),
    (NUMBER, "numbers", "17", "", "Your lucky number is 17 or 18.", 0, 1),
    (NUMBER, "numbers", "17", "", "Your lucky number is 1 7.", 0, 0),
    (NUMBER, "numbers", "17", "", "12, 17", 0, 1),
    (TOWN, "towns", "Oslo", "", "You live in Oslo.", 1, 1),
    (TOWN, "towns", "Oslo", "", "In Oslo, Norway.", 1, 1),
    (TOWN, "towns", "Oslo", "", "You live in Oslo or Bergen.", 0, 1),
    (TOWN, "towns", "Oslo", "", "You live in oslo.", 1, 1),
    (JOB, "jobs", "airline pilot", "", "You work as an airline pilot.", 1, 1),
    (JOB, "jobs", "airline pilot", "", "You are the airline pilot.", 1, 1),
    (JOB, "jobs", "airline pilot", "", "You are a pilot.", 0, 0),
    (JOB, "jobs", "airline pilot", "", "You fly for an airline. A pilot!", 1, 1),
    (JOB, "jobs", "baker", "", "You are a baker, and an actor too.", 0, 1),
    (WORD, "words", "acorn", "", "acorn.", 1, 1),
    (WORD, "words", "acorn", "", "Acorn!", 1, 1),
    (WORD, "words", "acorn", "", "Red door.", 0, 0),
    (WORD, "words", "acorn", "", "Red door: acorn.", 1, 1),
    (WORD, "words", "acorn", "", "acorns", 0, 0),
    (WORD, "words", "acorn", "", "acorn, anchor", 0, 1),
    (FLOWER, "flowers", "forget-me-nots", "", "Your favourite flower is forget-me-nots.", 1, 1),
    (FLOWER, "flowers", "forget-me-nots", "", "Your favourite flower is not forget-me-nots.", 0, 1),
]

# What cannot be recalled: question, list of values, what was told, reply, exact, named.
UNKNOWN = [
    (DOG, "first_names", "", "You have not told me your dog's name.", 1, 1),
    (DOG, "first_names", "", "You asked me to forget your dog's name.", 1, 1),
    (DOG, "first_names", "", "I don't know.", 1, 1),
    (DOG, "first_names", "", "I don’t know.", 1, 1),
    (DOG, "first_names", "", "I dont know", 1, 1),
    (DOG, "first_names", "", "You haven't told me.", 1, 1),
    (DOG, "first_names", "", "That is unknown to me.", 1, 1),
    (DOG, "first_names", "", "I have no idea.", 1, 1),
    (DOG, "first_names", "", "You never said.", 1, 1),
    (DOG, "first_names", "", "I cannot say.", 1, 1),
    (DOG, "first_names", "", "I have forgotten it.", 1, 1),
    (DOG, "first_names", "", "Your dog is called Leon.", 0, 0),
    (DOG, "first_names", "", "I don't know, perhaps Leon.", 0, 1),
    (DOG, "first_names", "Oslo", "You have not told me, but you live in Oslo.", 0, 1),
    (DOG, "first_names", "", "", 0, 0),
    (DOG, "first_names", "", "I know it well.", 0, 0),
    (DOG, "first_names", "", "I noticed.", 0, 0),
    (DOG, "first_names", "", "Nothing was said about a dog.", 1, 1),
    (DOG, "first_names", "", "Sure!\nI don't know.", 0, 0),
    (DOG, "first_names", "", "You said nothing about that.", 1, 1),
    (DOG, "first_names", "", "I'm sorry. I do not have any information about your dog.", 1, 1),
    (DOG, "first_names", "", "As a chatbot I don't have the ability to know your dog.", 1, 1),
    # A denial of something else.
    (DOG, "first_names", "", "Bello, not far from a wolf.", 0, 0),
    (DOG, "first_names", "", "Bello. No need to worry!", 0, 0),
    (DOG, "first_names", "", "It's Bello, isn't it? I know.", 0, 0),
    (DOG, "first_names", "", "Don't forget to feed Bello.", 0, 0),
    (DOG, "first_names", "", "Bello never barks.", 0, 0),
]


# The value may be a part of a denial.
@pytest.mark.parametrize(
    ("value", "reply"),
    [
        ("Ann", "I cannot say whether it is Ann."),
        ("Eve", "You never told me. Eve is a nice name."),
        ("Bob", "I cannot say whether it is Bob."),
    ],
)
def test_a_denial_that_holds_the_value_in_a_word(value, reply):
    assert not names_only(reply, value, [], DOG)


def question(asked: str, listed: str, value: str | None, told: str) -> Question:
    labels = {"values": listed, "told": "\n".join(filter(None, (value, told)))}
    if value is not None:
        labels["value"] = value
    category = "absent" if value is None else "told"
    return Question("1", "1", (), asked, (value or "I don't know.",), category, 16, labels=labels)


@pytest.mark.parametrize(("asked", "listed", "value", "told", "reply", "exact", "named"), NAMED)
def test_a_reply_that_should_name_a_value(asked, listed, value, told, reply, exact, named):
    assert Recall().score(question(asked, listed, value, told), reply) == {"exact": exact, "named": named}


@pytest.mark.parametrize(("asked", "listed", "told", "reply", "exact", "named"), UNKNOWN)
def test_a_reply_that_should_say_that_it_does_not_know(asked, listed, told, reply, exact, named):
    assert Recall().score(question(asked, listed, None, told), reply) == {"exact": exact, "named": named}


def test_the_hand_checked_values_are_in_their_lists():
    # Or else they would not be rivals of each other.
    for listed, names_of in {
        "first_names": ("Leon", "Max", "Anna", "Will"),
        "colours": ("green", "dark green", "blue", "red"),
        "numbers": ("17", "18", "12"),
        "towns": ("Oslo", "Bergen"),
        "words": ("acorn", "anchor"),
        "flowers": ("forget-me-nots",),
        "jobs": ("baker", "actor", "airline pilot"),
    }.items():
        assert set(names_of) <= set(values(listed))


@pytest.mark.slow
@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_the_right_answer_of_every_key_and_value_is_exact(key):
    asked = key.say(key.family.ask["held_out"][0])
    for value in values(key.values)[::7]:
        right = question(asked, key.values, value, "")
        for reply in (value, key.answer(value), key.answer(value).lower()):
            assert Recall().score(right, reply) == {"exact": 1, "named": 1}, reply
    nothing = question(asked, key.values, None, "")
    for reply in (key.say(shared().absent), key.say(shared().deleted)):
        assert Recall().score(nothing, reply) == {"exact": 1, "named": 1}, reply


@given(st.text(), st.sampled_from(values("first_names")))
def test_any_reply_has_a_score(reply, value):
    assert names_only(reply, value, values("first_names"), DOG) <= names(reply, value)
    assert "\n" not in first_line(reply)
    says_not_told(reply)


# Questions.


TOKENIZER = load_tokenizer(Path(backbone()))


def made(**options) -> list[Question]:
    return list(Recall(**options).questions(Backbone(TOKENIZER, None)))


def test_as_many_questions_for_each_number_of_facts():
    found = made(facts=(1, 3), questions_each=7)
    assert [each.labels["facts"] for each in found].count(1) == 7
    assert [each.labels["facts"] for each in found].count(3) == 7
    # In turns, so that a few of the first questions are of all kinds.
    assert [each.labels["facts"] for each in found[:5]] == [1, 3, 3, 3, 1]
    assert len({each.id for each in found}) == 14
    assert len({each.group for each in found if each.labels["facts"] == 3}) == 3


def test_values_are_held_out_and_told():
    for each in made(facts=(2,), questions_each=20):
        assert side_of(each.labels["value"]) == "held_out"
        assert each.labels["value"].casefold() in str(each.history).casefold()
        assert each.golds[0] == each.labels["value"]
        assert each.context == "" and each.max_tokens == 16


@pytest.mark.parametrize("options", [{"facts": (1, 2)}, {"natural": True}, {"kinds": ("told", "people")}])
def test_each_question_has_random_numbers_of_its_own(options):
    found = made(**options)
    assert [each.index for each in found] == list(range(len(found)))


def test_answers_by_their_length_in_tokens():
    class Words:
        """A tokenizer with a token for each word."""

        def encode(self, text, add_special_tokens):
            assert text.startswith(" ") and not add_special_tokens
            return text.split()

    asked = list(Recall(natural=True).questions(Backbone(Words(), 512)))
    lengths = {each.id: each.labels.get("tokens of the answer") for each in asked}
    for each in asked:
        if each.category == "absent":
            assert lengths[each.id] is None
        else:
            shortest = min(len(answer.split()) for answer in each.golds)
            assert lengths[each.id] == {1: "1", 2: "2"}.get(shortest, "3 or more")
    assert set(lengths.values()) == {None, "1", "2", "3 or more"}


def test_the_same_seed_gives_the_same_questions():
    assert made(facts=(2,), questions_each=9, seed=3) == made(facts=(2,), questions_each=9, seed=3)
    assert made(facts=(2,), questions_each=9, seed=3) != made(facts=(2,), questions_each=9, seed=4)
    assert made(facts=(2,), questions_each=5) == made(facts=(2,), questions_each=9)[:5]


def test_distances():
    template = ChatTemplate(TOKENIZER)
    found = made(facts=(2,), questions_each=12, filler=(0, 4), gap=(1, 3), system_prompt="Be brief.")
    for each in found:
        assert each.history[0] == {"role": "system", "content": "Be brief."}
        turns = each.labels["distance_turns"]
        told = len(each.history) - 2 * turns
        assert each.labels["value"].casefold() in each.history[told]["content"].casefold()
        before = template.whole(each.history[: told + 1]).ids
        assert each.labels["distance_tokens"] == len(template.whole(each.history).ids) - len(before)
    assert len({each.labels["distance_tokens"] for each in found}) > 4


def test_updates_deletions_and_what_was_never_told():
    found = made(facts=(3,), questions_each=60, updates=(1, 1), deletions=(1, 1), absent=(1, 1))
    categories = {each.category for each in found}
    assert categories == {"told", "updated", "deleted", "absent"}
    task = Recall()
    for each in found:
        assert ("value" in each.labels) == ("distance_turns" in each.labels) == (each.category in ("told", "updated"))
        if each.category == "updated":
            old = [value for value in values(each.labels["values"]) if f" {value}" in str(each.history)]
            rivals = [value for value in old if value not in each.labels["value"] and value not in each.question]
            if rivals:
                reply = f"{rivals[0]}, {each.labels['value']}"
                assert task.score(each, reply)["exact"] == 0


def test_an_oracle_scores_all_and_a_mute_one_nothing():
    task = Recall()
    for each in made(facts=(1, 4), questions_each=60, updates=(0, 1), absent=(0, 2), filler=(0, 2)):
        for gold in each.golds:
            assert task.score(each, gold) == {"exact": 1.0, "named": 1.0}
        assert task.score(each, "") == {"exact": 0.0, "named": 0.0}


def test_keys_and_phrasings_can_be_held_out_and_named():
    assert {each.labels["key"] for each in made(facts=(1,), questions_each=20, keys=("dog_name",))} == {"dog_name"}
    found = made(facts=(1,), questions_each=9, keys=("code_word",), held_out_keys=True, held_out_phrasings=True)
    assert {each.labels["key"] for each in found} <= {"old_oak", "north_wind"}
    assert {each.labels["kind"] for each in found} == {"instruction"}
    assert all(each.question.startswith("Listen: ") for each in found)


@settings(max_examples=20)
@given(st.integers(0, 3), st.integers(1, 4), st.integers(0, 3))
def test_topic_shifts(facts, filler, switches):
    options = {"facts": (facts + 1,), "questions_each": 3, "filler": (filler, filler)}
    if switches >= filler:
        with pytest.raises(ValueError, match="topic switches in"):
            made(**options, topic_shifts=(0, max(switches, filler, 1)))
    else:
        assert len(made(**options, topic_shifts=(switches, switches))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"facts": ()}, r"--recall-facts is \(\); expected one or more values, each a whole number from 0"),
        ({"questions_each": 0}, "--recall-questions-each is 0; expected a whole number from 1 to"),
        ({"max_tokens": 0}, "--recall-max-tokens is 0; expected a whole number from 1 to"),
        ({"facts": (0,)}, "an episode may have no question"),
        ({"facts": (1,), "deletions": (0, 2)}, "there may be 2 deletions of 1 facts"),
        ({"filler": (3, 1)}, "filler is 3 to 1"),
    ],
)
def test_what_cannot_be_met_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Recall(**options)


def test_keys_that_there_are_not():
    with pytest.raises(ValueError, match="there is no key 'wings'"):
        made(keys=("wings",))
