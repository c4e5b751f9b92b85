"""Compare replies with answers: three ways to normalise a text, and the F1 of its words.

The ways differ in details that published scores depend on, so each benchmark has its own.
"""

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from mlx_deltamem.evaluation.tasks.rows import evaluate_extra

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# After NFD, "á" is "a" and an accent. It must not match the article "a".
_LOCOMO_ARTICLES = re.compile("(?<![\\w\u0300-\u036f])(a|an|the|and)(?![\\w\u0300-\u036f])")
_NO_WORD = re.compile(r"[^\w\s]")


def first_line(text: str) -> str:
    """The first line that is not blank, without surrounding white space; "" if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def squad_tokens(text: str) -> list[str]:
    """The words of an answer, as in the official scorers of SQuAD and HotpotQA: "the U.S." gives "us"."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def span_tokens(text: str) -> list[str]:
    """The words of an answer, as in the published δ-mem scores of HotpotQA and MemoryAgentBench (facts 4.2, 4.3).

    Articles are removed before punctuation, and punctuation separates words: "the U.S." gives "u", "s".
    """
    return _NO_WORD.sub(" ", _ARTICLES.sub(" ", text.lower())).split()


def locomo_tokens(text: str) -> list[str]:
    """The stems of an answer, as in LoCoMo's scorer (facts 4.1). "and" counts as an article.

    Raises:
        ValueError: NLTK, which has the stemmer, is not installed.
    """
    words = unicodedata.normalize("NFD", text.replace(",", "")).lower().translate(_PUNCTUATION)
    return [porter_stem()(word) for word in _LOCOMO_ARTICLES.sub(" ", words).split()]


def token_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """The F1 of two lists of words, where repeated words count repeatedly; 0 if no word is in both."""
    same = sum((Counter(predicted) & Counter(gold)).values())
    # 2PR / (P + R), with P = same / predicted and R = same / gold.
    return 2 * same / (len(predicted) + len(gold)) if same else 0.0


@functools.cache
def porter_stem() -> Callable[[str], str]:
    """The stemmer of LoCoMo's scorer: NLTK's Porter stemmer with NLTK's extensions.

    It stems "buy" to "buy". Porter's original algorithm and Snowball's give "bui", and differ for 151 of the 5,936
    words of LoCoMo, so they cannot replace it.

    Raises:
        ValueError: NLTK is not installed.
    """
    stemmer = evaluate_extra("nltk.stem.porter", "LoCoMo's F1").PorterStemmer
    return stemmer(mode=stemmer.NLTK_EXTENSIONS).stem
