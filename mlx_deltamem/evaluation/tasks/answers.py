"""What answers to questions are compared by: three ways to normalise a text, and the F1 of its tokens.

The ways differ in small things that published scores depend on, so each benchmark keeps its own.
"""

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from mlx_deltamem.evaluation.tasks.extras import evaluate_extra

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# A letter with an accent that was taken apart is still one letter: in "á" there is no "a".
_LOCOMO_ARTICLES = re.compile("(?<![\\w\u0300-\u036f])(a|an|the|and)(?![\\w\u0300-\u036f])")
_NO_WORD = re.compile(r"[^\w\s]")


def first_line(text: str) -> str:
    """The first line that is not blank, without white space around it; "" where there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def squad_tokens(text: str) -> list[str]:
    """The words of an answer as SQuAD's and HotpotQA's official scorers see it: "the U.S." is "us"."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def span_tokens(text: str) -> list[str]:
    """The words of an answer as the published δ-mem scores of HotpotQA and MemoryAgentBench see it (facts 4.2, 4.3).

    Articles go before punctuation, and punctuation parts words: "the U.S." is "u s".
    """
    return _NO_WORD.sub(" ", _ARTICLES.sub(" ", text.lower())).split()


def locomo_tokens(text: str) -> list[str]:
    """The stems of an answer as LoCoMo's scorer sees it (facts 4.1): "and" is an article, and accents are letters.

    Raises:
        ValueError: The stemmer is not installed.
    """
    words = unicodedata.normalize("NFD", text.replace(",", "")).lower().translate(_PUNCTUATION)
    return [porter_stem()(word) for word in _LOCOMO_ARTICLES.sub(" ", words).split()]


def token_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """The F1 of the words of an answer, each counted as often as it occurs in both; 0 where none does."""
    same = sum((Counter(predicted) & Counter(gold)).values())
    # 2PR / (P + R), with P = same / predicted and R = same / gold.
    return 2 * same / (len(predicted) + len(gold)) if same else 0.0


@functools.cache
def porter_stem() -> Callable[[str], str]:
    """Porter's stemmer as LoCoMo's scorer has it: NLTK's, with NLTK's extensions.

    It stems "buy" to "buy", where Porter's own algorithm (and Snowball's) makes it "bui": 151 of the 5,936 words of
    LoCoMo come out otherwise there. There is no score without it.

    Raises:
        ValueError: NLTK is not installed.
    """
    stemmer = evaluate_extra("nltk.stem.porter", "LoCoMo's F1").PorterStemmer
    return stemmer(mode=stemmer.NLTK_EXTENSIONS).stem
