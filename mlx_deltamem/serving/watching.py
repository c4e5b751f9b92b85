"""Reports of a memory while a reply is generated, for clients that watch it."""

from collections.abc import Callable, Mapping

import mlx.core as mx

from mlx_deltamem.core.key_shift import square
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.sessions.turns.state import ChatState

Event = Mapping[str, object]
# The digits of a state that are sent. A picture shows fewer.
_DIGITS = 4


class Watch:
    """Reports each token of one reply. It is an `Observer` of forward passes.

    Args:
        listeners: Called with each event.
    """

    def __init__(self, listeners: list[Callable[[Event], None]]):
        self._listeners = listeners
        self._gates: dict[int, mx.array] = {}

    def __call__(self, layer: int, reads: Reads, output: mx.array) -> None:
        if reads.written:
            self._gates[layer] = reads.gates.write.mean()

    def token(self, text: str, state: ChatState) -> None:
        """Report a token that has run.

        Args:
            text: Its text.
            state: The chat.
        """
        gates, self._gates = self._gates, {}
        event = {
            "event": "token",
            "text": text,
            "beta": {str(layer): round(gate.item().real, _DIGITS) for layer, gate in gates.items()},
            **states(dict(enumerate(state.filled_cache[-1].cache))),
        }
        self.tell(event)

    def tell(self, event: Event) -> None:
        """Give an event to all who listen."""
        for listener in list(self._listeners):
            listener(event)


def states(memory: Mapping[int, mx.array]) -> dict[str, object]:
    """The states of a memory for drawing, `heat`, and their norms by layer.

    Args:
        memory: By layer, `[1, H, r, r]` or, with a key shift, `[1, H, r + 1, r]`; empty for a layer without a memory.
            The row of a key shift is left out: it is not content of the memory.
    """
    squares = {layer: square(state)[0] for layer, state in memory.items() if state.size}
    norms = {str(layer): round(mx.linalg.norm(state).item().real, _DIGITS) for layer, state in squares.items()}
    heat = [
        {"layer": layer, "head": head, "values": mx.round(values, _DIGITS).tolist()}
        for layer, state in squares.items()
        for head, values in enumerate(state)
    ]
    return {"norms": norms, "heat": heat}
