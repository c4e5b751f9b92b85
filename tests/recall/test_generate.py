"""The synthetic episodes: their vocabulary, and that they match their settings."""

import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem.recall import SIDES, EpisodeSettings, Split, make_episode, words_of
from mlx_deltamem.recall.invented import invent
from mlx_deltamem.recall.split import HELD_OUT_SHARE, on_side, side_of
from mlx_deltamem.recall.vocabulary import (
    choose_keys,
    filler,
    keys,
    shared,
    value_lists,
    values,
    values_on,
    with_article,
)

LEAST = {
    "first_names": 400,
    "towns": 150,
    "foods": 100,
    "animals": 80,
    "jobs": 80,
    "colours": 40,
    "instruments": 60,
    "sports": 60,
    "hobbies": 60,
}
KEYS = {key.name: key for key in keys()}
HARD = EpisodeSettings(
    facts=(3, 5), filler=(2, 6), gap=(0, 3), updates=(0, 3), deletions=(0, 2), absent=(0, 2), topic_switches=(1, 1)
)

PINNED_NAMES = []
PINNED_HISTORY = [
    "Out of every fruit I like dragon fruit most.",
    "Noted.",
    "The tap in the garden drips.",
    "It may need a new washer.",
    "This year my flatmate studies poetry.",
    "Got it!",
    "The screen is too bright.",
    "Turn the brightness down.",
    "Do not remember the subject my flatmate studies any longer.",
    "All right, it is forgotten.",
    "What is a compiler?",
    "A program that turns code into machine code.",
    "Asked for a sport, I always say dodgeball.",
    "Right!",
    "The flower I like best is wallflowers.",
    "Thank you for telling me.",
    "I made a mistake, my favourite fruit is guavas.",
    "Oh, nice!",
    "What is spam?",
    "Mail that nobody asked for.",
    "How do I free some disk space?",
    "Delete large files that are not needed.",
]


def phrasings():
    """One key of every family."""
    return list({key.family: key for key in keys()}.values())


# Vocabulary.


@pytest.mark.parametrize("name", value_lists())
def test_a_list_of_values_is_large_and_clean(name):
    listed = values(name)
    assert len(listed) >= LEAST.get(name, 50)
    assert [value for value, count in Counter(value.casefold() for value in listed).items() if count > 1] == []
    assert [value for value in listed if not re.fullmatch(r"[\w'-]+( [\w'-]+)*", value)] == []


def test_values_are_on_one_side_each():
    for name in value_lists():
        train, held_out = (set(values_on(name, side)) for side in SIDES)
        assert train and held_out
        assert not train & held_out
        assert train | held_out == set(values(name))
    every = [value for name in value_lists() for value in values(name)]
    share = sum(side_of(value) == "held_out" for value in every) / len(every)
    assert share == pytest.approx(HELD_OUT_SHARE, abs=0.02)


def test_a_value_stays_on_its_side_when_its_list_changes():
    listed = values("first_names")
    assert on_side(listed[100:50:-1], "held_out") == tuple(reversed(on_side(listed[51:101], "held_out")))
    # The list and the capitals do not matter.
    assert side_of("Orange") == side_of("orange")
    # An adapter was trained on this split, so it must stay the same.
    assert [name for name in listed[:30] if side_of(name) == "held_out"] == PINNED_NAMES


def test_names_of_keys_families_and_lists_differ():
    assert len(KEYS) == len(keys()) >= 100
    families = Counter(key.family.name for key in keys())
    for key in keys():
        # `--keys` takes names of all kinds.
        assert families.get(key.name, 1) == 1
        assert key.name not in value_lists()
    assert not set(families) & set(value_lists())
    assert {key.side for key in keys()} == set(SIDES)


@pytest.mark.parametrize("key", phrasings(), ids=lambda key: key.family.name)
def test_a_family_has_many_phrasings(key):
    family = key.family
    sets = {"tell": (family.tell, 6), "ask": (family.ask, 5)}
    for phrases, least in sets.values():
        assert len(phrases["train"]) + len(phrases["held_out"]) >= least
        assert phrases["train"] and phrases["held_out"]
        assert not set(phrases["train"]) & set(phrases["held_out"])
        assert len(set(phrases["train"])) == len(phrases["train"])
    assert not set(family.update("train")) & set(family.update("held_out"))
    assert not set(shared().delete["train"]) & set(shared().delete["held_out"])


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.name)
def test_all_phrasings_of_a_key_can_be_filled_in(key):
    value = values(key.values)[0]
    for side in SIDES:
        for phrase in (*key.family.tell[side], *key.family.update(side)):
            assert_sentence(key.say(phrase, value))
            assert value.casefold() in key.say(phrase, value).casefold()
        for phrase in (*key.family.ask[side], *shared().delete[side]):
            assert_sentence(key.say(phrase))
            assert "{value}" not in phrase and "{a_value}" not in phrase
    for answer in (shared().absent, shared().deleted):
        assert_sentence(key.say(answer))
    for told in values(key.values):
        assert key.answer(told).endswith(f"{told}.")
        assert len(key.answer(told).split()) <= 9


def test_keys_cannot_be_confused():
    for side in SIDES:
        asked = Counter(key.say(phrase) for key in keys() for phrase in {*key.family.ask[side]})
        assert [text for text, count in asked.items() if count > 1] == []


def assert_sentence(text):
    assert re.fullmatch(r"[A-Z0-9].*[.?!]", text), text
    assert not re.search(r"[{}]|  | [.,?!]", text), text


def test_a_noun_gets_its_article():
    nouns = ("actor", "editor", "Isuzu", "Opel", "undertaker", "baker")
    assert [with_article(noun)[:2] for noun in nouns] == ["an"] * 5 + ["a "]
    # No list that needs an article may have a noun with another first sound than its letter suggests.
    nouns = set()
    for key in keys():
        texts = str(vars(key.family))
        nouns |= {noun for blank, noun in key.blanks.items() if f"{{a_{blank}}}" in texts}
        nouns |= set(values(key.values)) if "{a_value}" in texts else set()
    assert {"aunt", "actor", "Audi"} <= nouns
    assert [noun for noun in nouns if re.match(r"(?i)(eu|uni|use|usu|one\b|uk|hour|hon(est|our)|heir|x-)", noun)] == []


def test_there_is_enough_filler():
    turns = [turn for topic in filler().values() for turn in topic]
    assert len(filler()) >= 8
    assert len(turns) == len(set(turns)) >= 120
    assert len(set(shared().acknowledge)) == len(shared().acknowledge) >= 30
    for said, reply in turns:
        assert_sentence(said)
        assert_sentence(reply)
        assert not re.search(r"\b(called|named|[Mm]y (name|favourite|job|dog|cat))\b", said)


def test_keys_are_chosen_by_key_family_or_list():
    assert [key.name for key in choose_keys(("dog_name",), "train")] == ["dog_name"]
    assert {key.family.name for key in choose_keys(("pet_name",), "held_out")} == {"pet_name"}
    names = choose_keys(("first_names",), "train")
    assert {key.family.name for key in names} == {"pet_name", "person_name", "own_name"}
    assert choose_keys(("first_names", "dog_name"), "train") == names
    assert {*choose_keys((), "train"), *choose_keys((), "held_out")} == set(keys())
    with pytest.raises(ValueError, match="there is no key 'wings'"):
        choose_keys(("dog_name", "wings"), "train")
    with pytest.raises(ValueError, match="'dog_name' has no held_out key"):
        choose_keys(("dog_name",), "held_out")
    with pytest.raises(ValueError, match="there is no list of values 'wings'"):
        values("wings")


# Episodes.


def test_an_episode_is_the_same_everywhere():
    assert [message["content"] for message in make_episode(HARD, 0, 0).history] == PINNED_HISTORY
    assert make_episode(HARD, 0, 0) == make_episode(HARD, 0, 0)
    episodes = [make_episode(HARD, *which) for which in ((0, 0), (0, 1), (1, 0), ("0/test", 0))]
    assert len({str(episode) for episode in episodes}) == 4


@st.composite
def episode_settings(draw):
    facts = draw(st.integers(1, 6))
    deletions = draw(st.integers(0, facts - 1))
    between = draw(st.integers(0, 6))
    gap = draw(st.integers(0, 4))
    return EpisodeSettings(
        facts=(facts, facts + draw(st.integers(0, 2))),
        filler=(between, between + draw(st.integers(0, 2))),
        gap=(gap, gap),
        updates=(0, draw(st.integers(0, 3))),
        deletions=(0, deletions),
        absent=(0, draw(st.integers(0, 2))),
        questions=draw(st.none() | st.integers(1, 4)),
        topic_switches=draw(st.none() | st.integers(0, max(between + gap - 1, 0)).map(lambda count: (count, count))),
        split=Split(*(draw(st.sampled_from(SIDES)) for _ in range(3))),
    )


@pytest.mark.slow
@settings(max_examples=200)
@given(episode_settings(), st.integers(0, 10**6))
def test_an_episode_matches_its_settings(wanted, index):
    episode = make_episode(wanted, "test", index)
    turns = len(episode.topics)
    assert [message["role"] for message in episode.history] == ["user", "assistant"] * turns
    idle = [topic for topic in episode.topics if topic is not None]
    assert wanted.filler[0] + wanted.gap[0] <= len(idle) <= wanted.filler[1] + wanted.gap[0]
    assert None not in episode.topics[turns - wanted.gap[0] :]
    if wanted.topic_switches is not None:
        assert switches(idle) == wanted.topic_switches[0]
    kinds = Counter(question.kind for question in episode.questions)
    told = len(episode.questions) - kinds["absent"]
    assert told <= wanted.facts[1] if wanted.questions is None else told <= wanted.questions
    assert told >= min(wanted.facts[0], wanted.questions or wanted.facts[0])
    assert kinds["absent"] <= wanted.absent[1] and kinds["deleted"] <= wanted.deletions[1]
    assert len({question.key for question in episode.questions}) == len(episode.questions)
    recalled = [question.value for question in episode.questions if question.value is not None]
    assert len(set(recalled)) == len(recalled)
    for question in episode.questions:
        assert_question(question, episode, wanted.split)


def assert_question(question, episode, split):
    key = KEYS[question.key]
    assert key.side == split.keys
    assert question.text in {key.say(phrase) for phrase in key.family.ask[split.phrasings]}
    if question.kind == "absent":
        assert (question.turn, question.distance, question.topic_switches, question.value) == (None,) * 4
        assert question.answer == key.say("You have not told me {your}.")
        return
    said = episode.history[2 * question.turn]["content"]
    assert question.distance == len(episode.topics) - question.turn >= 1
    assert question.topic_switches == switches([topic for topic in episode.topics[question.turn :] if topic])
    if question.kind == "deleted":
        assert question.value is None
        assert question.answer == key.say("You asked me to forget {your}.")
        assert said in {key.say(phrase) for phrase in shared().delete[split.phrasings]}
        return
    assert side_of(question.value) == split.values and question.value in values(key.values)
    assert question.answer == key.answer(question.value)
    family = key.family
    phrases = family.tell[split.phrasings] if question.kind == "told" else family.update(split.phrasings)
    assert said in {key.say(phrase, question.value) for phrase in phrases}
    # No other message of the history has the value, or another value later.
    later = [message["content"] for message in episode.history[2 * question.turn + 1 :]]
    told = {key.say(phrase, value) for value in values(key.values) for phrase in family.update(split.phrasings)}
    assert not told & set(later)


def switches(topics):
    return sum(one != other for one, other in pairwise(topics))


def test_filler_is_not_repeated():
    episode = make_episode(EpisodeSettings(filler=(15, 15), topic_switches=(0, 0)), 0, 0)
    assert len({topic for topic in episode.topics if topic}) == 1
    said = [message["content"] for message in episode.history[::2]]
    assert len(set(said)) == 16
    longer = make_episode(EpisodeSettings(filler=(40, 40), topic_switches=(0, 0)), 0, 0)
    assert len(longer.topics) == 41


def test_values_of_an_episode_are_not_parts_of_each_other():
    crowded = EpisodeSettings(facts=(20, 20), keys=("first_names",), split=Split("held_out"))
    for index in range(20):
        found = [question.value.casefold() for question in make_episode(crowded, 0, index).questions]
        assert not [(one, other) for one in found for other in found if one is not other and one in other]


@pytest.mark.slow
def test_updates_and_deletions_follow_their_fact():
    for index in range(50):
        episode = make_episode(HARD, 1, index)
        for question in episode.questions:
            key = KEYS[question.key]
            before = {message["content"] for message in episode.history[: 2 * (question.turn or 0)]}
            tell = {key.say(phrase, value) for phrase in key.family.tell["train"] for value in values(key.values)}
            assert bool(tell & before) == (question.kind in ("updated", "deleted"))


@pytest.mark.slow
def test_each_update_and_deletion_is_made():
    wanted = EpisodeSettings(facts=(3, 3), updates=(2, 2), deletions=(1, 1))
    family_texts = {
        key.say(phrase, value)
        for key in choose_keys((), "train")
        for phrase in key.family.update("train")
        for value in values_on(key.values, "train")
    }
    for index in range(20):
        episode = make_episode(wanted, 0, index)
        assert len(episode.topics) == 6
        assert sum(message["content"] in family_texts for message in episode.history) == 2
        kinds = Counter(question.kind for question in episode.questions)
        assert kinds["deleted"] == 1 and kinds["updated"] >= 1


def test_updates_of_lasting_facts_are_corrections():
    lasting = {key.family for key in keys() if key.family.lasting}
    assert {family.name for family in lasting} == {"surname", "birthplace", "birthday"}
    for family in lasting:
        assert not [phrase for phrase in family.update("train") + family.update("held_out") if "now" in phrase]
    assert [phrase for phrase in KEYS["job"].family.update("train") if "now" in phrase]


def test_questions_come_in_any_order():
    episodes = [make_episode(EpisodeSettings(facts=(2, 2), absent=(1, 1)), 0, index) for index in range(40)]
    orders = {tuple(question.turn for question in episode.questions) for episode in episodes}
    assert len(orders) == 6


def test_records_share_their_history():
    episode = make_episode(HARD, 0, 3)
    records = list(episode.records())
    assert len(records) == len(episode.questions)
    for record, question in zip(records, episode.questions, strict=True):
        assert record["messages"][:-2] == list(episode.history)
        assert [message["role"] for message in record["messages"][-2:]] == ["user", "assistant"]
        assert [message["content"] for message in record["messages"][-2:]] == [question.text, question.answer]
        assert record.get("value") == question.value
        assert ("value" in record) == (question.kind in ("told", "updated"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"facts": (3, 2)}, "facts is 3 to 2"),
        ({"gap": (-1, 2)}, "gap is -1 to 2"),
        ({"topic_switches": (2, 1)}, "topic_switches is 2 to 1"),
        ({"questions": -1}, "questions is -1"),
        ({"facts": (0, 0)}, "may have no question"),
        ({"questions": 0}, "may have no question"),
        ({"facts": (0, 3), "absent": (1, 1), "updates": (0, 1)}, "may have no facts to update"),
        ({"facts": (1, 3), "deletions": (2, 2)}, "there may be 2 deletions of 1 facts"),
        ({"facts": (2, 2), "deletions": (0, 2), "updates": (0, 1)}, "all facts may be deleted"),
        ({"invented": 1.5, "words": ("lamp",)}, r"invented is 1\.5"),
        ({"invented": 0.5}, "give words"),
        (
            {"filler": (1, 3), "gap": (1, 1), "topic_switches": (0, 2)},
            "there may be 2 topic switches in 2 filler",
        ),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSettings(**wrong)


def test_a_split_with_another_side_is_refused():
    with pytest.raises(ValueError, match="keys of a split is 'test'"):
        Split(keys="test")


def test_more_keys_or_values_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"2 keys are needed .* there are 1 train keys"):
        make_episode(EpisodeSettings(facts=(2, 2), keys=("dog_name",)), 0, 0)
    few = EpisodeSettings(updates=(30, 30), keys=("favourite_drink",), split=Split("held_out"))
    with pytest.raises(ValueError, match="more held_out drinks than there are"):
        make_episode(few, 0, 0)


def test_the_words_of_a_vocabulary():
    vocabulary = [
        "\u0120lamp",
        "\u2581Lamp",
        "\u0120Tree",
        "ing",
        "\u0120of",
        "\u0120caf\u00e9",
        "\u0120a1b",
        "\u0120",
        "lid",
    ]
    assert words_of(vocabulary) == ("lamp",)


WORDS = ("lamp", "tree", "river", "cloud", "stone", "paper", "glass", "metal")


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from(SIDES), st.sampled_from(["Anna", "tea"]))
def test_an_invented_value_has_words_of_its_side(seed, side, like):
    value = invent(random.Random(seed), WORDS, side, like)
    parts = [value.casefold(), *(word for word in WORDS if word in value.casefold())]
    assert {side_of(part) for part in parts} == {side}
    assert value[0].isupper() == (like == "Anna") and value[1:] == value[1:].lower()
    lower = value.lower()
    assert lower in {*WORDS, *(one + space + other for one in WORDS for other in WORDS for space in ("", " "))}


def test_words_that_give_no_value_on_a_side_are_refused():
    alone = next(word for word in WORDS if all(side_of(v) == "train" for v in (word, word + word, f"{word} {word}")))
    with pytest.raises(ValueError, match="no held_out value can be made of the 1 given words"):
        make_episode(EpisodeSettings(keys=("dog_name",), words=(alone,), invented=1, split=Split("held_out")), 0, 0)


def test_a_share_of_the_values_is_invented_but_no_numbers_or_dates():
    wanted = EpisodeSettings(facts=(2, 2), words=WORDS, invented=0.5)
    asked = [each for index in range(300) for each in make_episode(wanted, 0, index).questions]
    listed = Counter(each.value in values(KEYS[each.key].values) for each in asked if not has_digit(each.value))
    assert 0.4 < listed[False] / listed.total() < 0.6
    assert all(each.value in values(KEYS[each.key].values) for each in asked if KEYS[each.key].values == "dates")
    values_told = [each.value.casefold() for each in asked]
    for one, other in zip(values_told[::2], values_told[1::2], strict=True):
        assert one not in other and other not in one


def has_digit(value):
    return re.search(r"\d", value) is not None
