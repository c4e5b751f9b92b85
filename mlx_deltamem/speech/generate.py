"""Makes conversations. The same settings, seed and index give the same conversation on every machine."""

import random
from dataclasses import replace

from .conversation import Conversation, Question, Turn, Written
from .facts import Fact, FactDrawer
from .messages import acknowledgement, forget, tell, tell_two, update, wish
from .ordinary import ordinary_messages_for
from .questions import Asker, Encode, assistant_says, limited
from .settings import SpeechSettings
from .short import follows_on, tell_next, update_short
from .storyteller import Storyteller

# The number of relations to try for a fact, since a side may have few values.
_TRIES = 20


def make_conversation(
    settings: SpeechSettings, seed: int | str, index: int, encode: Encode | None = None
) -> Conversation:
    """Make one conversation.

    Args:
        settings: The settings of the conversation.
        seed, index: The choice among the conversations that the settings allow.
        encode: A tokenizer's function, to count the tokens of values.

    Raises:
        ValueError: The settings need more relations or values than there are, or a library is not installed.
    """
    # Random hashes a text with SHA-512, which gives the same result in every process, unlike hash().
    rng = random.Random(f"{seed}/{index}")
    if settings.scenes and rng.random() < settings.scenes:
        return Storyteller(rng, settings, encode).conversation()
    drawer = FactDrawer(rng, settings)
    facts = []
    for _ in range(rng.randint(*settings.facts)):
        for _ in range(_TRIES):
            fact = drawer.fact()
            if fact is None:
                break
            if drawer.value(fact):
                facts.append(fact)
                break
    turns = _place_ordinary(rng, settings, _Teller(rng, settings, drawer, facts).turns())
    _note_turns(facts, turns)
    absent = [drawer.fact(absent=True) for _ in range(rng.randint(*settings.absent))]
    asker = Asker(rng, settings, len(turns), encode)
    questions = _questions(rng, settings, asker, facts)
    questions += [asker.absent(fact, facts) for fact in absent if fact is not None]
    rng.shuffle(questions)
    return Conversation(tuple(turn for turn, _ in turns), tuple(questions))


_Said = tuple[Turn, tuple[Fact, ...]]


class _Teller:
    """Writes the turns that tell, update and delete facts. Each fact is told before it is updated or deleted."""

    def __init__(self, rng: random.Random, settings: SpeechSettings, drawer: FactDrawer, facts: list[Fact]):
        self._rng, self._settings, self._drawer, self._facts = rng, settings, drawer, facts

    def turns(self) -> list[_Said]:
        said: list[_Said] = []
        waiting = list(self._facts)
        self._rng.shuffle(waiting)
        later: list[tuple[Fact, str]] = []
        while waiting or later:
            if waiting and (not later or self._rng.random() < 0.6):
                said.append(self._told(waiting, said))
                later += self._fates(said[-1][1])
            else:
                fact, fate = later.pop(self._rng.randrange(len(later)))
                if turn := self._update(fact, said) if fate == "update" else self._forget(fact):
                    said.append((turn, (fact,)))
                    later += self._fates((fact,)) if fate == "update" else []
        return said

    def _told(self, waiting: list[Fact], said: list[_Said]) -> _Said:
        """Tell the next fact, or the next two."""
        fact = waiting.pop()
        if fact.relation.by_assistant:
            asked, told = wish(self._rng, self._settings, fact)
            fact.style, fact.wording = "assistant", told.wordings[0]
            return Turn(asked, told.text, "assistant", (fact.relation.name,), told.wordings), (fact,)
        facts: tuple[Fact, ...] = (fact,)
        written: Written | None = None
        short = self._rng.random() < self._settings.short
        mates = [each for each in waiting if not each.relation.by_assistant]
        if mates and self._rng.random() < self._settings.two_facts:
            # Prefer a fact of the same relation, which may have a wording for two facts.
            mate = next((each for each in mates if each.relation is fact.relation), mates[-1])
            if written := tell_two(self._rng, self._settings, fact, mate):
                waiting.remove(mate)
                facts = (fact, mate)
        if not written and short and said and said[-1][0].tells:
            written = tell_next(self._rng, self._settings, fact, said[-1][1])
        written = written or tell(self._rng, self._settings, fact)
        for each, name in zip(facts, written.wordings, strict=True):
            each.style, each.wording = written.style, name
        # A model answers the request in the message.
        reply = None if written.style == "with_request" else acknowledgement(self._rng, self._settings)
        names = tuple(each.relation.name for each in facts)
        repeated, values = tuple(each.repeated() for each in facts), tuple(each.values[-1] for each in facts)
        return Turn(written.text, reply, "told", names, written.wordings, repeated, values), facts

    def _fates(self, facts: tuple[Fact, ...]) -> list[tuple[Fact, str]]:
        """Draw the updates and deletions of facts that were just told or updated."""
        found = []
        for fact in facts:
            drawn = self._rng.random()
            if fact.relation.by_assistant:
                continue
            if drawn < self._settings.updates:
                found.append((fact, "update"))
            elif drawn < self._settings.updates + self._settings.deletions:
                found.append((fact, "deletion"))
        return found

    def _update(self, fact: Fact, said: list[_Said]) -> Turn | None:
        if not self._drawer.value(fact):
            return None
        written = None
        if self._rng.random() < self._settings.short:
            written = update_short(self._rng, self._settings, fact, [facts for _, facts in said])
        written = written or update(self._rng, self._settings, fact)
        if written is None:
            fact.values.pop()
            return None
        fact.wording = written.wordings[-1]
        reply = acknowledgement(self._rng, self._settings)
        repeated, values = (fact.repeated(),), (fact.values[-1],)
        return Turn(written.text, reply, "update", (fact.relation.name,), written.wordings, repeated, values)

    def _forget(self, fact: Fact) -> Turn:
        written = forget(self._rng, self._settings, fact)
        fact.deleted = True
        return Turn(written.text, assistant_says("forgotten"), "deletion", (fact.relation.name,), written.wordings)


def _place_ordinary(rng: random.Random, settings: SpeechSettings, said: list[_Said]) -> list[_Said]:
    """Insert ordinary turns anywhere, but not before a message that goes on from the one before; and after all others.

    Raises:
        ValueError: The settings need more ordinary messages than there are.
    """
    between, after = rng.randint(*settings.ordinary), rng.randint(*settings.gap)
    turns = list(said)
    for number, message in enumerate(ordinary_messages_for(rng, between + after)):
        place = len(turns)
        if number < between:
            place = rng.choice([*(at for at, (turn, _) in enumerate(turns) if not follows_on(turn.wordings)), place])
        turns.insert(place, (Turn(message, None, "ordinary"), ()))
    return turns


def _note_turns(facts: list[Fact], turns: list[_Said]) -> None:
    for index, (_, told) in enumerate(turns):
        for fact in told:
            fact.turn = index


def _questions(rng: random.Random, settings: SpeechSettings, asker: Asker, facts: list[Fact]) -> list[Question]:
    """The questions about facts that were told."""
    found: list[Question | None] = []
    for fact in facts:
        sibling = any(each.relation is fact.relation for each in facts if each is not fact)
        about = [replace(asker.about(fact), sibling=sibling) for _ in range(settings.asked)]
        found += {question.text: question for question in about}.values()
        if not fact.deleted and "back" in fact.relation.texts and rng.random() < settings.reverse:
            found.append(asker.back(fact))
    for relation in dict.fromkeys(fact.relation for fact in facts):
        live = [fact for fact in facts if fact.relation is relation and not fact.deleted]
        if len(live) > 1 and "all" in relation.texts and rng.random() < settings.aggregated:
            found.append(asker.together(sorted(live, key=lambda fact: fact.turn)))
    return limited(rng, settings, [question for question in found if question is not None])
