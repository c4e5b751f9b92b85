"""Fill in what is written with slots, `{who} has my {it}`, and mend what the filling breaks."""

import hashlib
import re
from collections.abc import Mapping

_SLOT = re.compile(r"\{(\w+)\}")
_STARTS = re.compile(r"(?:^|(?<=[.!?] ))([a-zA-Z])")
# Words that begin with a vowel's letter and a consonant's sound, and the other way round.
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
    """The names of a template's slots."""
    return set(_SLOT.findall(template))


def article(noun: str) -> str:
    """ "a" or "an", as the noun begins."""
    if _CONSONANT.match(noun):
        return "a"
    return "an" if _VOWEL.match(noun) or noun[:1].lower() in tuple("aeiou") else "a"


def capital(text: str) -> str:
    """The text with a capital at its beginning; codes, passwords and addresses stay as they are."""
    return text if re.match(r"\S*[\d_@]|\S+\.\S", text) else text[:1].upper() + text[1:]


def is_sentence(template: str) -> bool:
    """Whether it is written as sentences are: a capital, or a slot that may get one, and a mark at the end."""
    return template[:1] != template[:1].lower() or (template[:1] == "{" and template[-1:] in ".!?")


def fill(template: str, blanks: Mapping[str, str]) -> str:
    """Fill a template's slots in; `{a_value}` is `{value}` after its article. What begins a sentence gets a capital.

    Raises:
        ValueError: There is nothing for a slot.
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
            raise ValueError(f"nothing is given for {{{name}}} in {template!r}")
        begins = match.start() == 0 or template[max(match.start() - 2, 0) : match.start()] in (". ", "! ", "? ")
        return capital(text) if sentence and begins else text

    return _SLOT.sub(found, template)


def second_person(text: str) -> str:
    """What the user calls "my" or "I" as the assistant calls it, "your" or "you"."""
    return _FIRST_PERSON.sub(lambda match: _SECOND[match[1].lower()], text)


def lower_case(template: str, apostrophes: bool = True) -> str:
    """A template as somebody in a hurry types it: no capitals at the beginning, no full stop at the end."""
    text = _STARTS.sub(
        lambda match: match[1].lower() if not _PROPER.match(template, match.start()) else match[1], template
    )
    text = re.sub(r"\bI\b", "i", text)
    text = text[:-1] if text.endswith(".") and not text.endswith("..") else text
    return text if apostrophes else _CONTRACTED.sub(lambda match: match[1].replace("'", ""), text)


def within(template: str) -> str:
    """A template as it is written after other words of the same sentence."""
    if re.match(r"I\b|\{", template) or _PROPER.match(template) or template[:2].isupper():
        return template
    return template[:1].lower() + template[1:]


def words(text: str) -> tuple[str, ...]:
    """The words and numbers of a text, in lower case, by which two texts are compared."""
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def contains(text: tuple[str, ...], part: tuple[str, ...]) -> bool:
    """Whether the words of one text follow each other in another's."""
    return bool(part) and any(text[at : at + len(part)] == part for at in range(len(text) - len(part) + 1))


def wording_id(owner: str, use: str, template: str) -> str:
    """The name of a wording: whose it is, what for, and a hash of its text, which stays when others are added."""
    return f"{owner}/{use}/{hashlib.sha256(template.encode()).hexdigest()[:8]}"
