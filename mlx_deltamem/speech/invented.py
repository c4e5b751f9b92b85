"""Invented words that can be pronounced. No model knows them, so that they can only be recalled."""

import random

_ONSETS = "b br c ch cl d dr f fl g gl gr h j k kr l m n p pl pr qu r s sh sk sl st t th tr v w y z zh b d k l m n r t"
_VOWELS = "a e i o u a e i o u a e i o u a e i o ai au ea ei ou y"
_CODAS = "b ck d g k l ll m n nd ng nt r rd rk rn s sh st t th x z"
_ENDINGS = {
    "name": ("", "", "a", "o", "i", "en", "is", "elle", "wyn", "ko", "mir", "ine", "u"),
    "surname": ("", "son", "ski", "sen", "ez", "ov", "ini", "man", "wood", "er", "ic", "aru"),
    "place": ("", "ton", "ford", "by", "ville", "burg", "stad", "wick", "mouth", "dale", "grad", "ia", "ham", "holm"),
    "medicine": ("ol", "ine", "ex", "in", "azole", "pril", "ide", "ium", "statin", "cillin", "amab"),
    "brand": ("", "", "o", "ly", "ix", "on", "ra", "io", "eo", "tek", "us", "a"),
}
KINDS = tuple(_ENDINGS)


def invent(rng: random.Random, kind: str) -> str:
    """Invent a word of two to four syllables that sounds like a `kind`, one of `KINDS`.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in _ENDINGS:
        raise ValueError(f"there is no kind {kind!r} of invented words; expected one of {', '.join(KINDS)}")
    ending = rng.choice(_ENDINGS[kind])
    syllables = rng.choice((1, 2, 2)) if ending else rng.choice((2, 2, 3))
    stem = "".join(_syllable(rng, last=at == syllables - 1 and not ending) for at in range(syllables))
    if ending[:1] in tuple("aeiou") and stem[-1] in "aeiouy":
        stem += rng.choice("dklmnrstvz")
    elif ending and stem[-1] in "aeiouy" and ending[:1] not in tuple("aeiou") and rng.random() < 0.5:
        stem += rng.choice("lnr")
    return (stem + ending).capitalize()


def _syllable(rng: random.Random, last: bool) -> str:
    onset = rng.choice(_ONSETS.split()) if rng.random() < 0.9 else ""
    vowel = rng.choice(_VOWELS.split())
    if onset == "qu" and vowel[0] == "u":
        vowel = "a"
    return onset + vowel + (rng.choice(_CODAS.split()) if last and rng.random() < 0.6 else "")
