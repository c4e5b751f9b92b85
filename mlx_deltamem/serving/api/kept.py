"""The replies of /v1/responses that are kept in RAM, so that clients can fetch and continue them."""

from collections import OrderedDict
from dataclasses import dataclass

from mlx_deltamem.serving.exchange import Mode
from mlx_deltamem.sessions.text.messages import Message

# All replies together with their chats, in bytes.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class KeptResponse:
    """A reply that can be continued.

    Attributes:
        content: The reply as it was sent, as JSON.
        turn: The id of the turn in the engine.
        memory: The name of the memory; None: a private one.
        mode: How the reply used it. What goes on from the reply does not do more: it may have to read the whole chat
            again, and would write messages that were not to be written.
        messages: The chat up to the end of the reply, without system messages. The memory may lose the turn, for
            example if a client goes on from an earlier one.
    """

    content: bytes
    turn: str
    memory: str | None
    mode: Mode
    messages: tuple[Message, ...] = ()

    @property
    def nbytes(self) -> int:
        """About the bytes that it takes. Replies of one chat share messages, and each of them counts them."""
        return len(self.content) + sum(len(message["content"]) for message in self.messages)


class KeptResponses:
    """Replies by id. The one that was not used for the longest time is dropped first.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int):
        self._most = most
        self._bytes = 0
        self._kept: OrderedDict[str, KeptResponse] = OrderedDict()

    def keep(self, name: str, response: KeptResponse) -> None:
        """Add a reply."""
        self.drop(name)
        self._kept[name] = response
        self._bytes += response.nbytes
        while self._kept and (len(self._kept) > self._most or self._bytes > _MOST_BYTES):
            self.drop(next(iter(self._kept)))

    def find(self, name: str) -> KeptResponse | None:
        """The reply with an id; None if it is not kept."""
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def drop(self, name: str) -> bool:
        """Remove a reply, and return whether it was there."""
        dropped = self._kept.pop(name, None)
        self._bytes -= dropped.nbytes if dropped else 0
        return dropped is not None
