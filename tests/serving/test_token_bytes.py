"""The bytes of tokens, with vocabularies of the two kinds that models have."""

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mlx_deltamem.serving.token_bytes import token_bytes
from tests.sessions.test_session import loaded


@pytest.mark.parametrize("text", ["Zoë 语言 — 🙂\n\t x", "<|im_end|> a", " "])
def test_the_bytes_of_the_tokens_of_a_text_are_the_text(text):
    _, tokenizer = loaded()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(token_bytes(tokenizer, token) for token in ids) == text.encode()


def test_each_byte_is_a_token_of_a_byte_level_vocabulary():
    _, tokenizer = loaded()
    found = [token_bytes(tokenizer, token) for token in range(len(tokenizer))]
    assert {each for each in found if len(each) == 1} == {bytes([byte]) for byte in range(256)}
    # The model has more tokens than the tokenizer.
    assert token_bytes(tokenizer, len(tokenizer) + 1) == b""


def test_a_vocabulary_with_byte_tokens():
    entries = ["<0x0A>", "<0xC3>", "<0xA9>", "▁the", "▁", "é", "Ã", "Ġ", "x", "<s>"]
    made = Tokenizer(BPE({entry: place for place, entry in enumerate(entries)}, [], byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>"))
    assert [token_bytes(tokenizer, token) for token in range(len(entries))] == [
        b"\n",
        b"\xc3",
        b"\xa9",
        b" the",
        b" ",
        "é".encode(),
        "Ã".encode(),
        "Ġ".encode(),
        b"x",
        b"<s>",
    ]
