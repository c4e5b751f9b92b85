"""A small model of model2vec: each word has a direction of its own."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ("[UNK]", "dog", "Rex", "Oslo", "sea", "number", "17", "violin", "puppy", "called", "live")


def save_vectors(folder: Path) -> str:
    """Save the model. "puppy" lies near "dog"; an unknown word has no direction at all."""
    from model2vec import StaticModel  # noqa: PLC0415 - the caller has checked that it is installed

    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.eye(len(WORDS), dtype=np.float32)
    vectors[0] = 0
    vectors[WORDS.index("puppy")] = 0.9 * vectors[WORDS.index("dog")]
    StaticModel(vectors, tokenizer).save_pretrained(folder)
    return str(folder)
