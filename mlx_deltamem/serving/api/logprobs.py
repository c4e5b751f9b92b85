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
        "tokens": [token.token for token in chosen],
        "token_logprobs": [_number(token.logprob) for token in chosen],
        "top_logprobs": [{top.token: _number(top.logprob) for top in piece.top} for piece in pieces],
        "text_offset": offsets,
    }


def _token(token: TokenLogprob) -> Mapping[str, object]:
    return {"token": token.token, "logprob": _number(token.logprob), "bytes": list(token.raw)}


def _number(logprob: float) -> float:
    # The comparison is false for NaN.
    return logprob if logprob > _LEAST else _LEAST
