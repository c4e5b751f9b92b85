"""Log-probabilities in OpenAI's two forms."""

from collections.abc import Mapping, Sequence

from mlx_deltamem.serving.exchange import Piece, TokenLogprob

# JSON has no infinity.
_LEAST = -9999.0


def chat_form(pieces: Sequence[Piece]) -> Mapping[str, object]:
    """The field `logprobs` of a choice of a chat."""
    content = [
        {**_token(piece.logprob), "top_logprobs": [_token(top) for top in piece.top]}
        for piece in pieces
        if piece.logprob is not None
    ]
    return {"content": content, "refusal": None}


def text_form(pieces: Sequence[Piece], offset: int = 0) -> Mapping[str, object]:
    """The field `logprobs` of a completion.

    Args:
        pieces: The steps.
        offset: The number of characters before them.
    """
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    chosen = [piece.logprob for piece in pieces if piece.logprob is not None]
    return {
        "tokens": [_name(token) for token in chosen],
        "token_logprobs": [_number(token.logprob) for token in chosen],
        "top_logprobs": [_by_name(piece.top) for piece in pieces] if any(piece.top for piece in pieces) else None,
        "text_offset": offsets,
    }


def _token(token: TokenLogprob) -> Mapping[str, object]:
    return {"token": token.token, "logprob": _number(token.logprob), "bytes": list(token.raw)}


def _by_name(likeliest: Sequence[TokenLogprob]) -> Mapping[str, float]:
    """The likeliest tokens by name, the likeliest one first. Of two with the same text, the likelier one is told."""
    found: dict[str, float] = {}
    for token in likeliest:
        found.setdefault(_name(token), _number(token.logprob))
    return found


def _name(token: TokenLogprob) -> str:
    """The text of a token; for a part of a character, its bytes, as OpenAI writes them."""
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in token.raw)


def _number(logprob: float) -> float:
    # The comparison is false for NaN.
    return logprob if logprob > _LEAST else _LEAST
