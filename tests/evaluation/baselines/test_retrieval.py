"""The order in which BM25 and vectors put the turns of a history."""

import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("bm25s")
pytest.importorskip("model2vec")

from mlx_deltamem.evaluation.baselines.retrieval import Bm25Index, DenseIndex, best, load_vectors
from tests.evaluation.baselines.vectors import save_vectors
from tests.evaluation.runs import FACTS


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> str:
    return save_vectors(tmp_path_factory.mktemp("vectors"))


@pytest.mark.parametrize(
    ("query", "first"),
    [("What is my dog called?", 0), ("do I LIVE by the sea?", 1), ("lucky", 2), ("the violin, the dog, the violin", 3)],
)
def test_bm25_finds_the_words_of_the_question(query, first):
    assert best(Bm25Index(FACTS).scores(query), 1) == [first]


def test_rare_words_count_more():
    texts = ["red dog", "red cat", "red bird", "blue bird bird"]
    scores = Bm25Index(texts).scores("red bird")
    assert best(scores, 4)[0] == 2 and scores[3] > scores[0] == scores[1] > 0


@pytest.mark.parametrize("query", ["", "the and of", "zebra", "?!", "ж"])
def test_a_question_without_a_known_word_takes_the_newest_turns(query):
    assert best(Bm25Index(FACTS).scores(query), 2) == [3, 2]
    assert best(Bm25Index(FACTS).scores(query), 2, (3, 2, 1, 0)) == [0, 1]


@pytest.mark.parametrize("texts", [["the", "?"], [""], ["a"]])
def test_turns_without_words(texts):
    index = Bm25Index(texts)
    assert best(index.scores("the dog"), 9) == list(range(len(texts)))[::-1]
    assert index.kept_bytes() == 0


def test_the_bytes_of_bm25_are_those_of_its_files(tmp_path):
    index = Bm25Index(FACTS)
    index._index.save(tmp_path)
    assert index.kept_bytes() == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert Bm25Index([*FACTS, "A new word: zebra."]).kept_bytes() > index.kept_bytes() > 0


def test_near_words_are_found_by_their_vectors(vectors):
    index = DenseIndex([*FACTS, "unheard"], vectors)
    assert best(index.scores("puppy"), 1) == [0]
    assert index.scores("puppy")[0] == pytest.approx(index.scores("dog")[0], rel=1e-6)
    # A turn without a known word has no direction, and no score.
    assert index.scores("violin")[4] == 0 and best(index.scores("unheard"), 2) == [4, 3]


def test_the_bytes_of_vectors(vectors):
    index, file = DenseIndex(FACTS, vectors), io.BytesIO()
    np.save(file, np.zeros((len(FACTS), 11), np.float32))
    assert index.kept_bytes() == len(file.getvalue())


def test_models_that_cannot_be_read(tmp_path, vectors):
    with pytest.raises(FileNotFoundError, match=r"--dense-model: .*there"):
        load_vectors(str(tmp_path / "there"))
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=r"--dense-model"):
        load_vectors(str(tmp_path / "empty"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(vectors).iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"--dense-model .* cannot be read"):
        load_vectors(str(broken))
