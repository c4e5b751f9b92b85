"""Messages that leave out what the conversation has said."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mlx_deltamem.speech import Conversation, SpeechSettings, make_conversation, relations
from mlx_deltamem.speech.conversation import Turn
from mlx_deltamem.speech.facts import Fact
from mlx_deltamem.speech.short import tell_next, update_short
from mlx_deltamem.speech.subjects import Subject
from mlx_deltamem.speech.talk import SHORT, talk, talk_id
from mlx_deltamem.speech.wording import contains, words

SETTINGS = SpeechSettings(
    facts=(2, 4),
    ordinary=(0, 0),
    gap=(0, 0),
    short=1,
    updates=0.3,
    siblings=0.8,
    small_talk=0,
    buried=0,
    with_request=0,
)
RELATIONS = {each.name: each for each in relations()}


def ids(use: str) -> set[str]:
    return {talk_id(use, line) for line in talk(use, "train")}


# Ordinary messages and deletions come between the others, and must not part them.
MIXED = replace(SETTINGS, ordinary=(2, 5), deletions=0.3)


@pytest.fixture(scope="module", params=[SETTINGS, MIXED], ids=["plain", "mixed"])
def conversations(request: pytest.FixtureRequest) -> list[Conversation]:
    return [make_conversation(request.param, "short", index) for index in range(200)]


def short_turns(conversations: list[Conversation], use: str) -> Iterator[tuple[Turn, list[Turn]]]:
    """The turns with a wording of a use, each with the turns before it."""
    known = ids(use)
    for each in conversations:
        for place, turn in enumerate(each.turns):
            if known & set(turn.wordings):
                yield turn, list(each.turns[:place])


@pytest.mark.parametrize("use", SHORT)
def test_each_use_occurs_and_names_the_value(conversations: list[Conversation], use: str) -> None:
    found = list(short_turns(conversations, use))
    assert found
    for turn, _ in found:
        assert contains(words(turn.user), words(turn.values[-1]))


def test_the_next_sibling_follows_a_fact_of_its_relation(conversations: list[Conversation]) -> None:
    for turn, before in short_turns(conversations, "next"):
        assert turn.relations[0] in before[-1].relations and before[-1].tells
        assert RELATIONS[turn.relations[0]].of is not None


@pytest.mark.parametrize("use", ["changed_value", "corrected_value"])
def test_a_value_alone_updates_the_only_fact_of_the_message_before(conversations: list[Conversation], use: str) -> None:
    for turn, before in short_turns(conversations, use):
        assert before[-1].relations == turn.relations and before[-1].tells


def test_what_lasts_is_corrected_and_does_not_change(conversations: list[Conversation]) -> None:
    for use in ("changed_value", "changed_subject"):
        for turn, _ in short_turns(conversations, use):
            assert not RELATIONS[turn.relations[0]].lasting


def test_without_short_messages() -> None:
    plain = [make_conversation(SpeechSettings(facts=(2, 4), siblings=0.8, short=0), "short", i) for i in range(100)]
    for use in SHORT:
        assert not list(short_turns(plain, use))


def test_a_fact_that_is_not_said_is_told_in_full() -> None:
    fact = Fact(RELATIONS["spare_key_with"], Subject(it="summer cottage"), ["Hormir", "Anna"])
    other = Fact(RELATIONS["spare_key_with"], Subject(it="storage unit"), ["Stako"])
    same = Fact(RELATIONS["exam_date"], Subject(it="summer cottage"), ["Monday"])
    rng = random.Random(1)
    assert tell_next(rng, SETTINGS, fact, [same]) is None
    assert tell_next(rng, SETTINGS, fact, [other]) is not None
    # After a message with two facts, or with another one, the subject is named, if it belongs to one fact only.
    alone = update_short(rng, SETTINGS, fact, [[other], [fact]])
    assert alone is not None
    assert "cottage" not in alone.text.lower()
    for told in ([[fact, other]], [[fact], [other]]):
        named = update_short(rng, SETTINGS, fact, told)
        assert named is not None
        assert "the summer cottage" in named.text.lower()
        assert update_short(rng, SETTINGS, fact, [*told, [same]]) is None


def test_more_ordinary_messages_than_there_are() -> None:
    with pytest.raises(ValueError, match="9000 ordinary messages; expected fewer, as they are all different"):
        make_conversation(replace(SETTINGS, gap=(9000, 9000)), "short", 0)


def test_phrases_have_the_articles_of_the_relation() -> None:
    phrases = Fact(RELATIONS["spare_key_with"], Subject(it="summer cottage"), ["Hormir", "Anna"]).short()
    assert phrases == {"subject": "the summer cottage", "old": "Hormir", "value": "Anna"}
    assert Fact(RELATIONS["spare_key_with"], Subject(it="summer cottage"), ["Hormir"]).short().keys() == {
        "subject",
        "value",
    }
