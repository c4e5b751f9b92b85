"""Writes the messages that tell, update and delete facts."""

import random
import re

from .conversation import Style, Written
from .facts import Fact
from .ordinary import short_request
from .settings import SpeechSettings
from .short import joined_next
from .talk import talk, talk_id
from .wording import fill, is_sentence, lower_case, within

_DECLARES = re.compile(
    r"(\{(who|whose|value|a_value|it)\}|i|i'm|i've|i'd|my|our|we|we're|we've|the|it's|it|this|there's|there|they|a|an|"
    r"that|he|she|for|in|on|at|since|after|every|when|on)\b|\{",
    re.IGNORECASE,
)
_LONG = 110


def declares(template: str) -> bool:
    """Whether a template is one plain statement, which can follow other words in a sentence."""
    if re.search(r"[?!:;]|\.\.|[.] |\n", template) or len(template) > _LONG:
        return False
    return bool(_DECLARES.match(template))


def tell(rng: random.Random, settings: SpeechSettings, fact: Fact) -> Written:
    """Write a message that tells one fact."""
    template = rng.choice(fact.relation.wordings("tell", settings.split.wordings))
    text, style = _in_talk(rng, settings, template)
    text = typed(rng, settings, text)
    filled = fill(text, fact.blanks("tell"))
    return Written(filled, (fact.relation.wording_id("tell", template),), style)


def tell_two(rng: random.Random, settings: SpeechSettings, one: Fact, other: Fact) -> Written | None:
    """Write a message that tells two facts in a sentence; None if their wordings cannot be joined."""
    pairs = one.relation.wordings("pair", settings.split.wordings) if one.relation is other.relation else ()
    if pairs:
        template = rng.choice(pairs)
        blanks = one.blanks("tell") | {f"{slot}2": text for slot, text in other.blanks("tell").items()}
        name = one.relation.wording_id("pair", template)
        return Written(fill(typed(rng, settings, template), blanks), (name, name), "two_facts")
    if one.relation is other.relation and other.subject and rng.random() < settings.short:
        return _tell_list(rng, settings, one, other)
    drawn: list[tuple[str, dict[str, str]]] = []
    ids = []
    for fact in (one, other):
        told = [template for template, _ in drawn]
        found = [each for each in _statements(settings, fact) if each not in told]
        if not found:
            return None
        template = rng.choice(found)
        drawn.append((template, fact.blanks("tell")))
        ids.append(fact.relation.wording_id("tell", template))
    join = rng.choice(talk("join", settings.split.wordings))
    lower = not all(is_sentence(template) for template, _ in drawn) or rng.random() < settings.lower
    first, second = (fill(lower_case(template) if lower else template, blanks) for template, blanks in drawn)
    if not lower:
        second = _inner(drawn[1][0], drawn[1][1])
    text = f"{first.rstrip('.')}{join.lower() if lower else join} {second}"
    return Written(text, tuple(ids), "two_facts")


def _tell_list(rng: random.Random, settings: SpeechSettings, one: Fact, other: Fact) -> Written | None:
    """Write a message that tells one fact, and another of its relation by its subject and value only."""
    found = _statements(settings, one)
    rest = joined_next(rng, settings, other)
    if not found or not rest:
        return None
    template, (end, name) = rng.choice(found), rest
    first = fill(typed(rng, settings, template), one.blanks("tell"))
    return Written(f"{first.rstrip('.')}{end}", (one.relation.wording_id("tell", template), name), "two_facts")


def update(rng: random.Random, settings: SpeechSettings, fact: Fact) -> Written | None:
    """Write a message that gives a fact its new value; None if there is no wording for it."""
    side = settings.split.wordings
    own = fact.relation.wordings("update", side)
    again = _statements(settings, fact)
    leads = talk("correct", side) if fact.relation.lasting else (*talk("change", side), *talk("correct", side))
    if own and (rng.random() < 0.6 or not again or not leads):
        template = rng.choice(own)
        text = typed(rng, settings, template)
        return Written(fill(text, fact.blanks("tell")), (fact.relation.wording_id("update", template),), "plain")
    if not again or not leads:
        return None
    template, lead = rng.choice(again), rng.choice(leads)
    text = typed(rng, settings, f"{lead} {within(template)}", lead[:1].islower() or not is_sentence(template))
    ids = (talk_id("update", lead), fact.relation.wording_id("tell", template))
    return Written(fill(text, fact.blanks("tell")), ids, "plain")


def forget(rng: random.Random, settings: SpeechSettings, fact: Fact) -> Written:
    """Write a message that deletes a fact."""
    template = rng.choice(talk("forget", settings.split.wordings))
    text = typed(rng, settings, template)
    return Written(fill(text, {"topic": fact.called("topic")}), (talk_id("forget", template),), "plain")


def wish(rng: random.Random, settings: SpeechSettings, fact: Fact) -> tuple[str, Written]:
    """Write a message that asks the assistant for a value, and the reply with the value."""
    asked = typed(rng, settings, rng.choice(fact.relation.texts["wish"]))
    template = rng.choice(fact.relation.wordings("tell", settings.split.wordings))
    reply = fill(template, fact.blanks("answer"))
    return fill(asked, fact.blanks("ask")), Written(reply, (fact.relation.wording_id("tell", template),), "assistant")


def _statements(settings: SpeechSettings, fact: Fact) -> list[str]:
    """The wordings that tell a fact and are one plain statement."""
    return [each for each in fact.relation.wordings("tell", settings.split.wordings) if declares(each)]


def _inner(template: str, blanks: dict[str, str]) -> str:
    """Fill in a statement that follows another one in a sentence."""
    return fill(f"x {within(template)}", blanks)[2:]


def acknowledgement(rng: random.Random, settings: SpeechSettings) -> str | None:
    """Draw the short reply to a message that tells something; None stands for the reply of a model."""
    drawn = rng.random() < settings.replies
    return rng.choice(talk("acknowledge", "train")) if drawn else None


def typed(rng: random.Random, settings: SpeechSettings, text: str, lower: bool = False) -> str:
    """Return a template unchanged or, at random or with `lower`, in lower case."""
    if lower or (is_sentence(text) and rng.random() < settings.lower):
        return lower_case(text, apostrophes=rng.random() < 0.7)
    return text


def _in_talk(rng: random.Random, settings: SpeechSettings, template: str) -> tuple[str, Style]:
    """Return a template with talk around it, or alone, and the style."""
    drawn, lower = rng.random(), not is_sentence(template)
    style: Style
    if drawn < settings.small_talk:
        text, style = _small_talk(rng, template), "small_talk"
    elif drawn < settings.small_talk + settings.buried:
        before, after = (rng.choice(talk(use, "train")) for use in ("around_before", "around_after"))
        text, style = f"{before} {ended(template)} {after}", "buried"
    elif drawn < settings.small_talk + settings.buried + settings.with_request:
        parts = [ended(template), short_request(rng)]
        text, style = " ".join(parts if rng.random() < 0.6 else parts[::-1]), "with_request"
    else:
        return template, "plain"
    return (lower_case(text) if lower else text), style


def _small_talk(rng: random.Random, template: str) -> str:
    form = rng.random()
    if form < 0.45 and declares(template):
        lead = rng.choice([each for each in talk("lead", "train") if each[:1].islower() != is_sentence(template)])
        return f"{lead} {within(template)}"
    if form < 0.75:
        return f"{rng.choice(_like(template, 'before'))} {template}"
    return f"{ended(template)} {rng.choice(_like(template, 'after'))}"


def _like(template: str, use: str) -> list[str]:
    """The lines of a use with the same typing as the template: as sentences, or in lower case."""
    return [each for each in talk(use, "train") if each[:1].islower() != is_sentence(template)]


def ended(template: str) -> str:
    """Return a template with a mark at its end, after which a sentence may follow."""
    return template if template[-1:] in ".!?" else f"{template}."
