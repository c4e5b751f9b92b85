"""Rank the turns of a history for a question: with BM25 (bm25s), or by static word vectors (model2vec)."""

import functools
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.evaluation.extras import check_extra, extra_module
from mlx_deltamem.files.atomic import one_line

_EXTRA = "baselines"


class Index(Protocol):
    """The turns of a history, prepared for the search."""

    def scores(self, query: str) -> np.ndarray:
        """`[N]` float, for each of N turns its score for a question; larger is better."""

    def kept_bytes(self) -> int:
        """The bytes of the index in the files that it is saved to, without the turns themselves."""


class Bm25Index:
    """BM25 over the words of turns, with the defaults of bm25s: Lucene's formula, and no English stop words.

    Args:
        texts: The turns; at least one.

    Raises:
        ValueError: bm25s is not installed.
    """

    def __init__(self, texts: Sequence[str]):
        self._library = extra_module("bm25s", "the condition bm25", _EXTRA)
        words = self._words(texts)
        self._count = len(texts)
        # bm25s cannot index texts that have no words at all.
        self._index: Any = None
        if any(words):
            self._index = self._library.BM25()
            self._index.index(words, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        (words,) = self._words([query])
        if self._index is None or not words:
            return np.zeros(self._count)
        return np.asarray(self._index.get_scores(words), dtype=float)

    def kept_bytes(self) -> int:
        if self._index is None:
            return 0
        with tempfile.TemporaryDirectory() as folder:
            self._index.save(folder, show_progress=False)
            return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = self._library.tokenize(list(texts), return_ids=False, show_progress=False)
        return found


class DenseIndex:
    """Static vectors of turns. The score is the cosine of the vectors of a turn and the question.

    Args:
        texts: The turns; at least one.
        name: The folder or Hub repo of a model of model2vec.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: model2vec is not installed, or the model is damaged.
    """

    def __init__(self, texts: Sequence[str], name: str):
        self._model = load_vectors(name)
        self._vectors = self._encode(texts)

    def scores(self, query: str) -> np.ndarray:
        return np.asarray(self._vectors @ self._encode([query])[0], dtype=float)

    def kept_bytes(self) -> int:
        file = io.BytesIO()
        np.save(file, self._vectors)
        return len(file.getvalue())

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.asarray(self._model.encode(list(texts), use_multiprocessing=False), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        # A text without a known word has the vector 0, and is like no other text.
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


@functools.lru_cache(maxsize=1)
def load_vectors(name: str) -> Any:
    """Load a model of model2vec.

    Args:
        name: Its folder or its Hub repo.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: model2vec is not installed, or the model is damaged.
    """
    library = extra_module("model2vec", "the condition dense", _EXTRA)
    try:
        with hub_errors(name):
            return library.StaticModel.from_pretrained(name, force_download=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--dense-model: {one_line(error)}") from None
    # The libraries for its files raise these, and one of them raises plain exceptions.
    except Exception as error:
        raise ValueError(
            f"--dense-model {name} cannot be read ({one_line(error)}); expected a model2vec model"
        ) from None


def check_bm25() -> None:
    """Check that bm25s is installed.

    Raises:
        ValueError: It is not.
    """
    check_extra("bm25s", "the condition bm25", _EXTRA)


def best(scores: np.ndarray, count: int, oldest_first: Sequence[int] | None = None) -> list[int]:
    """The indices of the `count` turns with the largest scores, best first. Of equal ones, the newer one is first.

    Args:
        scores: `[turns]` float, the scores.
        count: How many to choose.
        oldest_first: The turns from the oldest to the newest; None: they stand in this order.
    """
    return sorted(reversed(oldest_first or range(len(scores))), key=lambda index: -float(scores[index]))[:count]
