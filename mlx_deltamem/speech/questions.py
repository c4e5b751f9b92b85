"""Writes the questions about facts that were told, and about absent facts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from .conversation import Kind, Question
from .facts import Fact
from .settings import SpeechSettings
from .talk import talk, talk_id
from .wording import fill, is_sentence, lower_case, within

Encode = Callable[[str], Sequence[int]]


def assistant_says(use: str, **blanks: str) -> str:
    """Return a reply of the assistant to a question, or to the wish to forget a fact, by its use in talk.yaml."""
    [template] = talk(use, "train")
    return fill(template, blanks)


def pieces_of(value: str | None, encode: Encode | None) -> int | None:
    """Return the number of tokens of a value, 0 if there is none; None without a tokenizer's function."""
    return None if encode is None else len(encode(f" {value}")) if value else 0


def limited(rng: random.Random, settings: SpeechSettings, questions: list[Question]) -> list[Question]:
    """Return the questions about told facts, or as many of them as the settings allow."""
    most = settings.questions
    return questions if most is None or len(questions) <= most else rng.sample(questions, most)


class Asker:
    """Writes the questions of a conversation.

    Args:
        rng: The source of random choices.
        settings: The settings of the conversation.
        turns: The number of turns of the conversation.
        encode: A tokenizer's function, to count the tokens of values.
    """

    def __init__(self, rng: random.Random, settings: SpeechSettings, turns: int, encode: Encode | None):
        self._rng, self._settings, self._turns, self._encode = rng, settings, turns, encode

    def about(self, fact: Fact) -> Question:
        """Write a question about a fact that was told."""
        kind: Kind = "fact"
        if fact.deleted:
            kind = "deletion"
        elif len(fact.values) > 1:
            kind = "update"
        elif fact.style in ("two_facts", "assistant"):
            kind = fact.style
        text, asked_in = self._ask(fact)
        if fact.deleted:
            return self._question(fact, kind, text, assistant_says("deleted"), None, asked_in)
        value = fact.values[-1]
        answer = assistant_says("answer_own" if fact.relation.by_assistant else "answer", value=fact.phrase(value))
        return self._question(fact, kind, text, answer, value, asked_in)

    def absent(self, fact: Fact, told: Sequence[Fact]) -> Question:
        """Write a question about an absent fact, given the facts that were told."""
        text, asked_in = self._ask(fact)
        answer = assistant_says("absent_own" if fact.relation.by_assistant else "absent")
        sibling = any(each.relation.theme == fact.relation.theme for each in told)
        return replace(self._question(fact, "absent", text, answer, None, asked_in), sibling=sibling)

    def together(self, facts: Sequence[Fact]) -> Question | None:
        """Write a question for all facts of a relation; None if it has no wording for this."""
        templates = facts[0].relation.wordings("all", self._settings.split.wordings)
        if not templates:
            return None
        template = self._rng.choice(templates)
        last = max(facts, key=lambda fact: fact.turn)
        values = [fact.phrase(fact.values[-1]) for fact in facts]
        value = f"{', '.join(values[:-1])} and {values[-1]}"
        answer = assistant_says("answer_own" if last.relation.by_assistant else "answer", value=value)
        asked_in = last.relation.wording_id("all", template)
        question = self._question(last, "aggregated", self._typed(template), answer, value, asked_in)
        return replace(question, subject="", sibling=True)

    def back(self, fact: Fact) -> Question | None:
        """Write a question for the subject of a value; None if the relation has no wording for this."""
        templates = fact.relation.wordings("back", self._settings.split.wordings)
        if not templates or fact.subject is None:
            return None
        template = self._rng.choice(templates)
        blanks = fact.blanks("answer")
        value = blanks.get("it") or blanks["who"]
        answer = assistant_says("answer", value=fact.subject_phrase("answer"))
        text = fill(self._typed(template), fact.blanks("ask"))
        return self._question(fact, "reverse", text, answer, value, fact.relation.wording_id("back", template))

    def _ask(self, fact: Fact) -> tuple[str, str]:
        """Draw a question; return it and the name of its wording."""
        fact.by_name = self._rng.random() < 0.75
        shared = talk("ask", self._settings.split.wordings)
        if shared and not fact.relation.by_assistant and self._rng.random() < self._settings.shared:
            template = self._rng.choice(shared)
            name = talk_id("ask", template)
            blanks = {use: fact.called(use) for use in ("about", "topic")}
        else:
            template = self._rng.choice(fact.relation.wordings("ask", self._settings.split.wordings))
            name = fact.relation.wording_id("ask", template)
            blanks = {slot: text for slot, text in fact.blanks("ask").items() if slot not in ("value", "old")}
        return fill(self._typed(template), blanks), name

    def _typed(self, template: str) -> str:
        """Add a few words to a question or not, and type it in lower case or not, at random."""
        sentence, form = is_sentence(template), self._rng.random()
        if form < 0.08 and not (template[:1] == "{" and not sentence):
            template = f"{self._rng.choice(_like(sentence, 'ask_lead'))} {within(template)}"
        elif form < 0.16 and template[-1:] in ".?!":
            template = f"{template} {self._rng.choice(_like(sentence, 'ask_after'))}"
        lower = sentence and self._rng.random() < self._settings.lower
        return lower_case(template, apostrophes=self._rng.random() < 0.7) if lower else template

    def _question(self, fact: Fact, kind: Kind, text: str, answer: str, value: str | None, asked_in: str) -> Question:
        told = kind != "absent"
        return Question(
            text=text,
            answer=answer,
            value=value,
            kind=kind,
            relation=fact.relation.name,
            theme=fact.relation.theme,
            subject=fact.subject.key if fact.subject else "",
            value_kind=fact.relation.value_kind,
            told_in=fact.wording,
            asked_in=asked_in,
            style=fact.style if told else None,
            sibling=False,
            turn=fact.turn if told else None,
            distance=self._turns - fact.turn if told else None,
            pieces=pieces_of(value, self._encode),
        )


def _like(sentence: bool, use: str) -> list[str]:
    return [each for each in talk(use, "train") if each[:1].islower() != sentence]
