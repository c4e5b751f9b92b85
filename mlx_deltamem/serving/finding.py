"""Find the memory that a request uses, and whether it adds a turn to it."""

from collections.abc import Sequence

from mlx_deltamem.serving.exchange import Mode, RefusedError, ReplyRequest
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.serving.memory import Memory
from mlx_deltamem.sessions.text.messages import Message
from mlx_deltamem.sessions.turns.place import Exchange, Place, are_same_messages, asked, find_place, turn_ids
from mlx_deltamem.sessions.turns.turn import said_turns
from mlx_deltamem.sessions.turns.writing import NONE

# As from `_fitness`: the chat ends at the place.
_ENDS_THERE = 2


def find_memory(memories: Memories, request: ReplyRequest, think_end: str | None) -> Memory:
    """The memory that a request uses: the one that it names, the private one that knows its messages, or a new one.

    A new private memory stays in RAM only if the chat may go on.

    Args:
        memories: The memories.
        request: The request.
        think_end: The text that ends the reasoning of a reply, or None.

    Raises:
        RefusedError: The memory that it names cannot be used, or no memory has the turn that it continues.
    """
    if request.memory is not None and request.mode is not Mode.OFF:
        return memories.get(request.memory, make=True) if request.match is None else memories.existing(request.memory)
    if request.text is not None:
        return Memory(None, memories.new_chat(), None)
    writes = None if request.mode is Mode.WRITE else NONE
    is_silent = NONE in (writes, memories.default_write)
    known = [
        memory for memory in memories.private() if request.mode is Mode.READ or (memory.chat.write == NONE) == is_silent
    ]
    found = _find_private(known, request, think_end)
    if found is not None:
        memories.used(found)
        return found
    if request.continues is not None:
        raise RefusedError(404, "turn_not_found", f"there is no turn {request.continues}")
    if not request.goes_on:
        return Memory(None, memories.new_chat(), None)
    return memories.new_private(writes)


def adds_turn(request: ReplyRequest, memory: Memory) -> bool:
    """Whether the turn of a request is added to its memory. A private memory that writes nothing has its chat."""
    if request.text is not None:
        return False
    return request.mode is Mode.WRITE or (memory.name is None and request.goes_on and memory.chat.write == NONE)


def _find_private(memories: Sequence[Memory], request: ReplyRequest, think_end: str | None) -> Memory | None:
    """The private memory that knows most of the messages of a request; None if none knows any.

    Several may know as much: chats that began with the same words. Then it is one that ends there, so that nothing of
    another chat is taken back; else one in which the same message comes next, whose reply is asked for again; else the
    first one.
    """
    if request.continues is not None:
        name = request.continues
        return next((memory for memory in memories if _has_turn(memory, name, think_end)), None)
    question = asked(request.messages)
    shown = question.earlier
    if not shown:
        return None
    if question.begun:
        # The reply that is to go on tells chats apart too.
        shown = (*shown, Exchange(question.new, {"role": "assistant", "content": question.begun}))
    best, best_fitness = None, (0, 0)
    for memory in memories:
        place = find_place(memory.chat.turns, shown, think_end, following=question.new)
        if place is None:
            continue
        fitness = place.turns, _fitness(memory, place, question.new)
        if fitness > best_fitness:
            best, best_fitness = memory, fitness
        if fitness == (len(shown), _ENDS_THERE):
            # No other one can know more, and to compare messages takes time.
            break
    return best


def _fitness(memory: Memory, place: Place, following: Sequence[Message]) -> int:
    """How well a chat fits to go on with messages after a place: the larger, the better."""
    rest = said_turns(memory.chat.turns, place.conversation)[place.turns :]
    if not rest:
        return _ENDS_THERE
    return 1 if are_same_messages(rest[0].messages, following) else 0


def _has_turn(memory: Memory, name: str, think_end: str | None) -> bool:
    return name in turn_ids(memory.chat.turns, think_end) or memory.readers.knows(name)
