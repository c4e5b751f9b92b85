"""A request for a reply while it waits and runs, and the way of its pieces to the client."""

import asyncio
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.generate import GenerationResponse
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.exchange import Done, Piece, RefusedError, ReplyRequest, TokenLogprob
from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.serving.readers import Reader
from mlx_deltamem.serving.token_bytes import token_bytes
from mlx_deltamem.serving.watching import Watch
from mlx_deltamem.sessions.batch.batched_reply import BatchedReply
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.snapshot import Snapshot


class Outlet:
    """Takes the pieces of a reply from the generation thread to an event loop.

    Attributes:
        is_closed: Whether the client has gone. The engine's thread sets it, in all ranks at the same place.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Done | Exception] = asyncio.Queue()

    def put(self, item: Piece | Done | Exception) -> None:
        """Send something to the client. Any thread may call it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self) -> Piece | Done:
        """Wait for the next piece.

        Raises:
            RefusedError: The request failed.
        """
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item


@dataclass
class NobodysOutlet:
    """Takes the pieces of a reply in a rank that has no clients: rank 0 sends them.

    Attributes:
        is_closed: As in `Outlet`.
    """

    is_closed: bool = False

    def put(self, item: Piece | Done | Exception) -> None:
        """Drop something."""


@dataclass(eq=False)
class ReplyJob:
    """A request for a reply.

    Attributes:
        request: The request.
        outlet: Where its pieces go.
        memory: The memory that it uses, or None until it is found.
        chat: The chat that the reply runs in: that of the memory, or that of `reader`.
        reader: The copy of the memory that the reply runs in, if the memory is only read.
        row: Its row in the batch.
        before: The chat before the turn, to go back to after an error.
        pieces: The number of pieces that were handed to the outlet.
        has_received: Whether anything was sent to the client, when the client has gone.
        read_tokens, prompt_tokens: As in `Done`.
        note: As in `Done`.
        begun: The tokens that the client has given as the beginning of the reply. They are part of it, and the client
            gets the rest.
        unsent: The characters of their text that were not generated yet.
        watch: Reports the tokens to those who watch the memory, or None.
        holds: The memory while the turn that is added to it is under way: other work on it waits. None before and after
            that, and if the memory is only read.
    """

    request: ReplyRequest
    outlet: Outlet | NobodysOutlet
    memory: Memory | None = None
    chat: ChatSession | None = None
    reader: Reader | None = None
    row: BatchedReply | None = None
    before: Snapshot | None = None
    pieces: int = 0
    has_received: bool = False
    read_tokens: int = 0
    prompt_tokens: int = 0
    note: str | None = None
    begun: tuple[int, ...] = ()
    unsent: int = 0
    watch: Watch | None = None
    holds: Memory | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the turn is added to the chat, so that the next request can go on from it."""
        return self.holds is not None or (self.request.text is None and self.request.goes_on)

    def send(self, response: GenerationResponse, tokenizer: TokenizerWrapper) -> None:
        """Send a step of the reply to the client."""
        self.pieces += 1
        note = self.note if self.pieces == 1 else None
        text = response.text[self.unsent :]
        self.unsent = max(0, self.unsent - len(response.text))
        is_given = self.pieces <= len(self.begun)
        if self.request.top_logprobs is None or is_given or response.token in tokenizer.eos_token_ids:
            self.outlet.put(Piece(text, note=note))
            return
        logprobs = response.logprobs.astype(mx.float32)
        count = self.request.top_logprobs
        top: tuple[TokenLogprob, ...] = ()
        if count:
            values = np.array(logprobs)
            likeliest = np.argsort(-values, kind="stable")[:count]
            top = tuple(_token(tokenizer, int(token), float(values[token])) for token in likeliest)
        chosen = _token(tokenizer, response.token, logprobs[response.token].item())
        self.outlet.put(Piece(text, chosen, top, note))

    def fail(self, error: Exception) -> None:
        """Tell the client of an error."""
        refused = isinstance(error, RefusedError)
        self.outlet.put(error if refused else RefusedError(500, "failed", f"the reply failed: {type(error).__name__}"))


def _token(tokenizer: TokenizerWrapper, token: int, logprob: float | int | complex) -> TokenLogprob:
    raw = token_bytes(tokenizer, token)
    return TokenLogprob(raw.decode("utf-8", "replace"), float(logprob.real), raw)
