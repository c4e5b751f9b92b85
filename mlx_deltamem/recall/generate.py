"""Makes episodes. The same settings, seed and index give the same episode on every machine."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mlx_deltamem.sessions.text.messages import Message

from .episode import Episode, Question
from .invented import invent
from .settings import EpisodeSettings, Range
from .vocabulary import Key, choose_keys, filler, shared, values_on


@dataclass(eq=False)
class _Fact:
    """A key with its values so far. `turn` is the last turn about it."""

    key: Key
    values: list[str] = field(default_factory=list)
    turn: int = -1
    deleted: bool = False


@dataclass(frozen=True)
class _Told:
    """A turn that tells, updates or deletes a fact."""

    fact: _Fact
    said: str
    reply: str
    value: str | None


@dataclass(frozen=True)
class _Filler:
    """A turn that tells no fact."""

    topic: str
    said: str
    reply: str


def make_episode(settings: EpisodeSettings, seed: int | str, index: int) -> Episode:
    """Make one episode.

    Args:
        settings: The settings of the episode.
        seed, index: The choice among the episodes that the settings allow.

    Raises:
        ValueError: The settings need more keys or values than there are.
    """
    # Random hashes a text with SHA-512, which gives the same result in every process, unlike hash().
    rng = random.Random(f"{seed}/{index}")
    count, absent = _draw(rng, settings.facts), _draw(rng, settings.absent)
    keys = _draw_keys(rng, settings, count + absent)
    facts = [_Fact(key) for key in keys[:count]]
    history = _history(rng, settings, _draw_told(rng, settings, facts))
    topics = tuple(turn.topic if isinstance(turn, _Filler) else None for turn in history)
    _remember(history)
    asked = facts if settings.questions is None else rng.sample(facts, min(settings.questions, count))
    questions = [_question(rng, settings, fact, topics) for fact in asked]
    questions += [_absent_question(rng, settings, key) for key in keys[count:]]
    rng.shuffle(questions)
    messages = [message for turn in history for message in _messages(turn.said, turn.reply)]
    return Episode(tuple(messages), topics, tuple(questions))


def _draw(rng: random.Random, limits: Range) -> int:
    return rng.randint(*limits)


def _draw_keys(rng: random.Random, settings: EpisodeSettings, count: int) -> list[Key]:
    keys = choose_keys(settings.keys, settings.split.keys)
    if count > len(keys):
        raise ValueError(
            f"{count} keys are needed for facts and absent questions, and there are {len(keys)} {settings.split.keys}"
            " keys; use fewer facts or name more keys"
        )
    return rng.sample(keys, count)


def _draw_value(rng: random.Random, settings: EpisodeSettings, key: Key, taken: set[str]) -> str:
    """Draw a value that is not a part of another value in the episode, and does not contain one."""
    values = values_on(key.values, settings.split.values)
    value = rng.choice(values)
    if settings.invented and not _has_digit(value) and rng.random() < settings.invented:
        value = invent(rng, settings.words, settings.split.values, value)
    if settings.doubled and not _has_digit(value):
        value = f"{value} {rng.choice([other for other in values if other != value])}"
    if _overlaps(value, taken):
        free = [value for value in values if not _overlaps(value, taken)]
        if not free:
            raise ValueError(
                f"an episode needs more {settings.split.values} {key.values} than there are; use fewer facts"
            )
        value = rng.choice(free)
    taken.add(value.casefold())
    return value


def _has_digit(value: str) -> bool:
    return any(character.isdigit() for character in value)


def _overlaps(value: str, taken: set[str]) -> bool:
    # An answer with "green" would be ambiguous beside "dark green", and "Ann" beside "Anna".
    folded = value.casefold()
    return any(folded in other or other in folded for other in taken)


def _draw_told(rng: random.Random, settings: EpisodeSettings, facts: list[_Fact]) -> list[_Told]:
    """Draw the turns about the facts, in an order in which each fact is told before it is updated or deleted."""
    taken: set[str] = set()
    deleted = rng.sample(facts, _draw(rng, settings.deletions))
    kept = [fact for fact in facts if fact not in deleted]
    updated = [rng.choice(kept) for _ in range(_draw(rng, settings.updates))]
    order = [*facts, *updated, *deleted]
    rng.shuffle(order)
    seen: list[_Fact] = []
    turns = []
    for fact in order:
        if fact not in seen:
            turns.append(_tell(rng, settings, fact, taken))
        elif fact in deleted:
            turns.append(_delete(rng, settings, fact))
        else:
            turns.append(_update(rng, settings, fact, taken))
        seen.append(fact)
    return turns


def _tell(rng: random.Random, settings: EpisodeSettings, fact: _Fact, taken: set[str]) -> _Told:
    value = _draw_value(rng, settings, fact.key, taken)
    phrasing = rng.choice(fact.key.family.tell[settings.split.phrasings])
    return _Told(fact, fact.key.say(phrasing, value), rng.choice(shared().acknowledge), value)


def _update(rng: random.Random, settings: EpisodeSettings, fact: _Fact, taken: set[str]) -> _Told:
    value = _draw_value(rng, settings, fact.key, taken)
    phrasing = rng.choice(fact.key.family.update(settings.split.phrasings))
    return _Told(fact, fact.key.say(phrasing, value), rng.choice(shared().acknowledge), value)


def _delete(rng: random.Random, settings: EpisodeSettings, fact: _Fact) -> _Told:
    phrasing = rng.choice(shared().delete[settings.split.phrasings])
    return _Told(fact, fact.key.say(phrasing), rng.choice(shared().forget), None)


def _history(rng: random.Random, settings: EpisodeSettings, told: list[_Told]) -> list[_Told | _Filler]:
    """Put filler turns between the turns about facts, and after them."""
    between, after = _draw(rng, settings.filler), _draw(rng, settings.gap)
    idle = _draw_filler(rng, settings, between + after)
    places = sorted(rng.randint(0, len(told)) for _ in range(between))
    history: list[_Told | _Filler] = []
    for index, turn in enumerate(told):
        history += [idle[place] for place in range(between) if places[place] == index]
        history.append(turn)
    return history + [idle[place] for place in range(between) if places[place] == len(told)] + idle[between:]


def _draw_filler(rng: random.Random, settings: EpisodeSettings, count: int) -> list[_Filler]:
    """Draw filler turns. None is repeated before all turns of its topic are used."""
    pools: dict[str, list[tuple[str, str]]] = {}
    turns = []
    for topic in _draw_topics(rng, settings, count):
        if not pools.get(topic):
            pools[topic] = list(filler()[topic])
            rng.shuffle(pools[topic])
        turns.append(_Filler(topic, *pools[topic].pop()))
    return turns


def _draw_topics(rng: random.Random, settings: EpisodeSettings, count: int) -> list[str]:
    topics = list(filler())
    if settings.topic_switches is None:
        return [rng.choice(topics) for _ in range(count)]
    if not count:
        return []
    starts = set(rng.sample(range(1, count), _draw(rng, settings.topic_switches)))
    drawn = [rng.choice(topics)]
    for index in range(1, count):
        others = [topic for topic in topics if topic != drawn[-1]]
        drawn.append(rng.choice(others) if index in starts else drawn[-1])
    return drawn


def _remember(history: Sequence[_Told | _Filler]) -> None:
    """Set the values, the last turn and the deletion of each fact at the end of the history."""
    for index, turn in enumerate(history):
        if isinstance(turn, _Told):
            turn.fact.turn = index
            turn.fact.deleted = turn.value is None
            if turn.value is not None:
                turn.fact.values.append(turn.value)


def _question(rng: random.Random, settings: EpisodeSettings, fact: _Fact, topics: tuple[str | None, ...]) -> Question:
    key = fact.key
    since = [topic for topic in topics[fact.turn + 1 :] if topic is not None]
    value = None if fact.deleted else fact.values[-1]
    return Question(
        text=key.say(rng.choice(key.family.ask[settings.split.phrasings])),
        answer=key.say(shared().deleted) if value is None else key.answer(value),
        value=value,
        kind="deleted" if fact.deleted else "updated" if len(fact.values) > 1 else "told",
        key=key.name,
        turn=fact.turn,
        distance=len(topics) - fact.turn,
        topic_switches=sum(one != other for one, other in pairwise(since)),
    )


def _absent_question(rng: random.Random, settings: EpisodeSettings, key: Key) -> Question:
    return Question(
        text=key.say(rng.choice(key.family.ask[settings.split.phrasings])),
        answer=key.say(shared().absent),
        value=None,
        kind="absent",
        key=key.name,
        turn=None,
        distance=None,
        topic_switches=None,
    )


def _messages(said: str, reply: str) -> tuple[Message, Message]:
    return {"role": "user", "content": said}, {"role": "assistant", "content": reply}
