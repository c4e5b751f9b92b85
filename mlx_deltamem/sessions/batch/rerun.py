"""Run the tokens of a batched reply again, in the prompt cache of its own chat, after the batch is lost."""

import mlx.core as mx

from mlx_deltamem.sessions.batch.batched_reply import BatchedReply, chosen
from mlx_deltamem.sessions.reading import running
from mlx_deltamem.sessions.reading.prefill import prefill
from mlx_deltamem.sessions.replies.reply import logits_of
from mlx_deltamem.sessions.text.segments import Segments


def open_again(row: BatchedReply) -> None:
    """Run the last token of the messages if the chat's own cache does not hold it."""
    if row.turn.logits is None:
        row.turn, row.is_opened = running.open_again(row.state, row.turn), True


def next_again(row: BatchedReply) -> tuple[int, mx.array]:
    """Run the tokens that the chat's own cache does not hold; returns the next token, as `chosen` does."""
    open_again(row)
    logits, new = logits_of(row.turn), Segments.without_spans(row.tokens.ids[row.kept :])
    if new.ids:
        logits = prefill(row.state.model, row.state.filled_cache, new, row.turn.reply_written)
    row.kept, row.tokens.unread = len(row.tokens.ids), 0
    return chosen(row, logits)
