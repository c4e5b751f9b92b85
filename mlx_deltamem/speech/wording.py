"""Fills in templates with slots, `{who} has my {it}`, with the right articles and capitals."""

import hashlib
import re
from collections.abc import Mapping

_SLOT = re.compile(r"\{(\w+)\}")
_STARTS = re.compile(r"(?:^|(?<=[.!?] ))([a-zA-Z])")
# Words that begin with a vowel letter and a consonant sound, and the other way round.
_CONSONANT = re.compile(r"(uni|use|usu|ukulele|eu|one\b|once|ute)", re.IGNORECASE)
_VOWEL = re.compile(r"(hour|honest|heir|8|11\b|18\b|1[18],)", re.IGNORECASE)
_PROPER = re.compile(
    r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(Dr|Mrs|Mr|Ms|God|English|French|Christmas|OK|TV|DIY)\b"
)
_SECOND = {
    "i am": "you are",
    "i was": "you were",
    "am i": "are you",
    "was i": "were you",
    "i'm": "you're",
    "i've": "you've",
    "i'd": "you'd",
    "i'll": "you'll",
    "we're": "you're",
    "we've": "you've",
    "i": "you",
    "we": "you",
    "me": "you",
    "us": "you",
    "my": "your",
    "our": "your",
    "mine": "yours",
    "ours": "yours",
    "myself": "yourself",
}
_FIRST_PERSON = re.compile(rf"(?<![\w'])({'|'.join(_SECOND)})(?![\w'])", re.IGNORECASE)
_CONTRACTED = re.compile(r"\b(\w+n't|I'm|i'm|[Tt]hat's|[Ii]t's|[Ww]hat's|[Ww]ho's|[Yy]ou're|I've|i've)(?!\w)")


def slots(template: str) -> set[str]:
    """Return the names of a template's slots."""
    return set(_SLOT.findall(template))


def named(template: str) -> tuple[str, ...]:
    """Return the names of a template's slots in order, without the prefix for an article.

    Raises:
        ValueError: There is a brace that belongs to no slot.
    """
    if set("{}") & set(_SLOT.sub("", template)):
        raise ValueError(f"{template!r} has a brace that belongs to no slot; a slot is written {{name}}")
    return tuple(dict.fromkeys(name.removeprefix("a_") for name in _SLOT.findall(template)))


def article(noun: str) -> str:
    """Return "a" or "an", by the first sound of the noun."""
    if _CONSONANT.match(noun):
        return "a"
    return "an" if _VOWEL.match(noun) or noun[:1].lower() in tuple("aeiou") else "a"


def capital(text: str) -> str:
    """Return the text with a capital first letter; codes, passwords and addresses do not change."""
    return text if re.match(r"\S*[\d_@]|\S+\.\S", text) else text[:1].upper() + text[1:]


def is_sentence(template: str) -> bool:
    """Whether a template begins with a capital, or with a slot and ends with a punctuation mark."""
    return template[:1] != template[:1].lower() or (template[:1] == "{" and template[-1:] in ".!?")


def fill(template: str, blanks: Mapping[str, str]) -> str:
    """Fill in a template. `{a_value}` is `{value}` with its article. The beginning of a sentence gets a capital.

    Raises:
        ValueError: A slot has no text.
    """
    sentence = is_sentence(template)

    def found(match: re.Match[str]) -> str:
        name = match[1]
        if name in blanks:
            text = blanks[name]
        elif name.startswith("a_") and name[2:] in blanks:
            noun = blanks[name[2:]]
            text = f"{article(noun)} {noun}"
        else:
            raise ValueError(f"{template!r} has the slot {{{name}}}, and there is no text for it")
        begins = match.start() == 0 or template[max(match.start() - 2, 0) : match.start()] in (". ", "! ", "? ")
        return capital(text) if sentence and begins else text

    return _SLOT.sub(found, template)


def second_person(text: str) -> str:
    """Change the first person to the second: "my" to "your", "I" to "you"."""
    return _FIRST_PERSON.sub(lambda match: _SECOND[match[1].lower()], text)


def lower_case(template: str, apostrophes: bool = True) -> str:
    """Return a template in hurried typing: without capitals at the beginning of sentences and without a full stop."""
    text = _STARTS.sub(
        lambda match: match[1].lower() if not _PROPER.match(template, match.start()) else match[1], template
    )
    text = re.sub(r"\bI\b", "i", text)
    text = text[:-1] if text.endswith(".") and not text.endswith("..") else text
    return text if apostrophes else _CONTRACTED.sub(lambda match: match[1].replace("'", ""), text)


def within(template: str) -> str:
    """Return a template as it is written after other words of a sentence."""
    if re.match(r"I\b|\{", template) or _PROPER.match(template) or template[:2].isupper():
        return template
    return template[:1].lower() + template[1:]


def words(text: str) -> tuple[str, ...]:
    """Return the words and numbers of a text in lower case, to compare texts."""
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def contains(text: tuple[str, ...], part: tuple[str, ...]) -> bool:
    """Whether the words of `part` follow each other in `text`."""
    return bool(part) and any(text[at : at + len(part)] == part for at in range(len(text) - len(part) + 1))


def wording_id(owner: str, use: str, template: str) -> str:
    """Return the name of a wording: its owner, its use, and a hash of its text."""
    return f"{owner}/{use}/{hashlib.sha256(template.encode()).hexdigest()[:8]}"
