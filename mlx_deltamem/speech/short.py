"""Writes messages that leave out what the conversation has said: "and the side gate: 9920", "no wait, Thursday"."""

import random
from collections.abc import Iterable, Sequence

from .conversation import Written
from .facts import Fact
from .settings import SpeechSettings
from .talk import talk, talk_id, use_of
from .wording import fill, is_sentence, lower_case

# The uses with messages that mean nothing without the message before.
_FOLLOWING = ("next", "changed_value", "corrected_value")


def tell_next(rng: random.Random, settings: SpeechSettings, fact: Fact, before: Sequence[Fact]) -> Written | None:
    """Write a message that tells a fact by its subject and value only.

    Args:
        rng: The source of random choices.
        settings: The settings of the conversation.
        fact: The fact.
        before: The facts of the message before that told something.

    Returns:
        The message; None if no fact before has the same relation, or if the relation has no subjects.
    """
    if fact.subject is None or not any(each.relation is fact.relation for each in before):
        return None
    return _drawn(rng, settings, "next", fact)


def joined_next(rng: random.Random, settings: SpeechSettings, fact: Fact) -> tuple[str, str] | None:
    """Write the end of a sentence that has told a fact of the same relation, and return it with its wording's name.

    Returns:
        The two texts; None if the side of the split has no such wordings.
    """
    template = _template(rng, settings, "next_joined")
    if template is None:
        return None
    return fill(f"x{template}", fact.short())[1:], talk_id("next_joined", template)


def update_short(
    rng: random.Random, settings: SpeechSettings, fact: Fact, told: Sequence[Sequence[Fact]]
) -> Written | None:
    """Write a message that gives a fact its new value, and names only its subject or not even that.

    Args:
        rng: The source of random choices.
        settings: The settings of the conversation.
        fact: The fact.
        told: The facts of all messages so far that told, updated or deleted some.

    Returns:
        The message; None if the subject would not say which fact is meant.
    """
    why = "corrected" if fact.relation.lasting or rng.random() < 0.5 else "changed"
    if len(told[-1]) == 1 and told[-1][0] is fact:
        return _drawn(rng, settings, f"{why}_value", fact)
    others = [each for facts in told for each in facts if each is not fact]
    if fact.subject is None or any(each.subject == fact.subject for each in others):
        return None
    return _drawn(rng, settings, f"{why}_subject", fact)


def follows_on(wordings: Iterable[str]) -> bool:
    """Whether a message with these wordings goes on from the message before it, and means nothing without it."""
    return any(use_of(name) in _FOLLOWING for name in wordings)


def _drawn(rng: random.Random, settings: SpeechSettings, use: str, fact: Fact) -> Written | None:
    template = _template(rng, settings, use)
    if template is None:
        return None
    lower = is_sentence(template) and rng.random() < settings.lower
    text = fill(lower_case(template, apostrophes=rng.random() < 0.7) if lower else template, fact.short())
    return Written(text, (talk_id(use, template),), "short")


def _template(rng: random.Random, settings: SpeechSettings, use: str) -> str | None:
    """Draw a wording of a use; None if the side of the split has none."""
    lines = talk(use, settings.split.wordings)
    return rng.choice(lines) if lines else None
