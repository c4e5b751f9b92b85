"""Log-probabilities of tokens that are a part of a character, in OpenAI's two forms."""

import pytest

pytest.importorskip("starlette")

from mlx_deltamem.serving.api.logprobs import chat_form, text_form
from mlx_deltamem.serving.exchange import Piece, TokenLogprob


def part(raw: bytes, logprob: float) -> TokenLogprob:
    return TokenLogprob(raw.decode("utf-8", "replace"), logprob, raw)


FIRST, SECOND, A = part(b" \xc3", -0.5), part(b"\xa9", -1.5), part(b"a", -2.5)
PIECES = [Piece("", FIRST, (FIRST, SECOND, A)), Piece(" é", SECOND, (SECOND, FIRST))]


def test_a_part_of_a_character_is_told_by_its_bytes():
    content = chat_form(PIECES)["content"]
    assert [token["bytes"] for token in content] == [[0x20, 0xC3], [0xA9]]
    assert [top["bytes"] for top in content[0]["top_logprobs"]] == [[0x20, 0xC3], [0xA9], [0x61]]


def test_parts_of_characters_have_names_of_their_own():
    found = text_form(PIECES)
    assert found["tokens"] == [r"bytes: \xc3", r"bytes:\xa9"]
    assert found["top_logprobs"] == [
        {r"bytes: \xc3": -0.5, r"bytes:\xa9": -1.5, "a": -2.5},
        {r"bytes:\xa9": -1.5, r"bytes: \xc3": -0.5},
    ]


def test_of_two_tokens_with_the_same_text_the_likelier_one_is_told():
    assert text_form([Piece("a", A)])["top_logprobs"] is None
    found = text_form([Piece("a", A, (A, part(b"a", -9.0)))])
    assert found["top_logprobs"] == [{"a": -2.5}]
