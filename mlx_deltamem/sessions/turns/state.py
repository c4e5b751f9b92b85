"""The state of a chat: its system prompt and turns, the memory after them, and the text that the model sees."""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.cache import MemoryLayout, PromptCache, make_prompt_cache
from mlx_deltamem.core.spread import whole_numbers, whole_states, world_of
from mlx_deltamem.core.use import attachment_of
from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.text.segments import start_length
from mlx_deltamem.sessions.turns.chat_text import ChatText
from mlx_deltamem.sessions.turns.drift import Drift, changes
from mlx_deltamem.sessions.turns.history import FULL, History
from mlx_deltamem.sessions.turns.restore import RestorePoint, States, go_back, mark
from mlx_deltamem.sessions.turns.snapshot import Snapshot
from mlx_deltamem.sessions.turns.turn import Turn, said_turns

# The number of conversations, beside the one that goes on, whose keys and values are kept.
_MOST_CACHES = 8


class ChatState:
    """The turns of a chat, the memory after the last of them, and a prompt cache.

    The turns are the record of the chat. With history `full`, the cache holds the text of all turns. If there is no
    such cache, or if it cannot be taken back, it is made again by running the turns' tokens. With any other history,
    each turn makes a new cache, in which the visible start and the last tokens are read again.

    This class keeps the data and removes turns. The module `running` runs turns.

    Args:
        model: An attached model.
        template: The chat template.
        system: The system prompt, or None.
        history: How much of the earlier turns the model sees.
        turns: The turns so far.
        states: The memory after them; None: an empty one.

    Attributes:
        turns: The turns so far.
        states: The memory after the last turn. The list is never changed in place.
        memory_set: Whether the user has set the memory after the last turn.
        cache: The prompt cache after the last turn, or during a turn; None if it is not made yet.
        conversation: The name of the conversation that goes on. Change it by `enter`.
        starts: By conversation, the tokens of a visible start that is read in place of the one that the conversation
            began with.
        begun_at: The place before the turn that is running; None if none is running.
        replying: Whether a reply is being generated. Other work that changes the chat is `under_way`.
    """

    def __init__(
        self,
        model: nn.Module,
        template: ChatTemplate,
        system: str | None,
        history: History,
        turns: Sequence[Turn] = (),
        states: States | None = None,
    ):
        self.model = model
        self.template = template
        self.system = system
        self.turns = list(turns)
        self.states = self.no_memory() if states is None else list(states)
        self.memory_set = False
        self.cache: PromptCache | None = None
        self.conversation = turns[-1].conversation if turns else ""
        self.starts: dict[str, tuple[int, ...]] = {}
        self._caches: dict[str, PromptCache] = {}
        self.begun_at: RestorePoint | None = None
        self.replying = False
        self._works = 0
        self._history = history

    @property
    def history(self) -> History:
        """How much of the earlier turns the model sees."""
        return self._history

    @history.setter
    def history(self, history: History) -> None:
        self._history = history
        self.drop_caches()

    @property
    def keeps_text(self) -> bool:
        """Whether the cache holds the text of all turns."""
        return self._history == FULL

    @property
    def has_text(self) -> bool:
        """Whether the cache has the text of all turns now, so that none of it runs before the next one."""
        return self.keeps_text and self.cache is not None

    @property
    def text(self) -> ChatText:
        """The messages of the chat, and their tokens."""
        return ChatText(self.template, self.system, self._history, self.conversation)

    @property
    def writes_tokens(self) -> bool:
        """Whether the adapter writes single tokens rather than means."""
        return attachment_of(self.model).config.memory_write_granularity == "token"

    @property
    def filled_cache(self) -> PromptCache:
        """The prompt cache of the turn that is running.

        Raises:
            RuntimeError: No turn has been run.
        """
        if self.cache is None:
            raise RuntimeError("the chat has no prompt cache; expected one: run a turn first")
        return self.cache

    @property
    def kept_bytes(self) -> int:
        """The bytes of the keys and values that are kept, those of all conversations."""
        caches = [*self._caches.values(), self.cache or ()]
        return sum(entry.nbytes for cache in caches for entry in cache)

    def check_idle(self) -> None:
        """Check that nothing is changing the chat: no reply is being generated, and no text is being read.

        Raises:
            ValueError: Something is.
        """
        if self.replying or self._works:
            raise ValueError(
                "a reply is under way, or the reading of a text; wait for its end, or close the reply first"
            )

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """A context for work that changes the chat. Functions that the work calls, and other threads, find it busy."""
        self._works += 1
        try:
            yield
        finally:
            self._works -= 1

    def enter(self, conversation: str) -> None:
        """Go on with another conversation. The memory and the turns are not changed."""
        if conversation == self.conversation:
            return
        if self.cache is not None and self.keeps_text:
            self._caches[self.conversation] = self.cache
            if len(self._caches) > _MOST_CACHES:
                del self._caches[next(iter(self._caches))]
        self.conversation, self.cache = conversation, self._caches.pop(conversation, None)
        if self.cache is not None:
            self.cache[-1].cache = list(self.states)

    def rename(self, conversation: str, name: str) -> None:
        """Give a conversation another name. The memory does not change."""
        self.turns = [
            replace(turn, conversation=name) if turn.conversation == conversation else turn for turn in self.turns
        ]
        if conversation in self.starts:
            self.starts[name] = self.starts.pop(conversation)
        if conversation in self._caches:
            self._caches[name] = self._caches.pop(conversation)
        if self.conversation == conversation:
            self.conversation = name

    def drop_caches(self) -> None:
        """Free the keys and values. They are made again when they are needed."""
        self.cache, self._caches = None, {}

    def set_start(self, system: str | None, template: ChatTemplate) -> None:
        """Let the conversation that goes on see another system prompt, or other tools, from now on.

        The turns keep what they were read with. So nothing is written again, and a turn that is taken back is taken
        back exactly.

        Args:
            system: The system prompt, or None.
            template: The chat template, with the tools.

        Raises:
            ValueError: The template refuses the system prompt or the tools.
        """
        said = said_turns(self.turns, self.conversation)
        text = ChatText(template, system, self._history, self.conversation)
        before = self.starts.get(self.conversation)
        if said:
            opening = text.opening([], said[0].messages)
            start = tuple(opening.ids[: start_length(opening)])
            begun_with = tuple(said[0].opening.ids[: start_length(said[0].opening)])
            if start != (begun_with if before is None else before):
                self.cache = None
            self.starts.pop(self.conversation, None)
            if start != begun_with:
                self.starts[self.conversation] = start
        self.system, self.template = system, template

    def no_memory(self) -> States:
        """An empty memory."""
        layout: MemoryLayout = self.model.memory_layout
        return [mx.zeros((1, *shape)) for shape in layout.shapes]

    def set_memory(self, states: States) -> None:
        """Go on from this memory. The next turn will record that it was set."""
        self.states, self.memory_set = list(states), True
        if self.cache is not None:
            self.cache[-1].cache = list(states)

    def restore_text(self, text: PromptCache) -> None:
        """Take over the keys and values after the last turn, for example from a file."""
        self.cache = [*text, make_prompt_cache(self.model)[-1]]
        self.cache[-1].cache = list(self.states)

    def anew(self, turns: Sequence[Turn] = ()) -> "ChatState":
        """A chat with the settings of this one, some turns and an empty memory. The same conversation goes on."""
        other = ChatState(self.model, self.template, self.system, self._history, turns)
        other.enter(self.conversation)
        return other

    def fork(self) -> "ChatState":
        """A copy. What happens to one of the two does not change the other."""
        other = ChatState(self.model, self.template, self.system, self._history, self.turns, self.states)
        # Copied arrays share their numbers until one side writes.
        other.cache, other.memory_set = copy.deepcopy(self.cache), self.memory_set
        other.conversation, other.starts = self.conversation, dict(self.starts)
        return other

    def fork_at(self, snapshot: Snapshot) -> "ChatState":
        """A copy as it was at a snapshot. It has the keys and values if the chat is still there and no turn is running.

        A text that is being remembered does not change them before its end.
        """
        if not self.replying and self.begun_at is None and self.snapshot().is_same(snapshot):
            return self.fork()
        other = ChatState(self.model, snapshot.template, snapshot.system, snapshot.history)
        other.restore(snapshot)
        return other

    def here(self) -> RestorePoint:
        """The place in the chat that the cache is at."""
        cache = self.filled_cache
        return RestorePoint(whole_states(self.model, cache[-1].cache), mark(cache))

    def with_place(self, turn: Turn) -> Turn:
        """The turn with the present place of the chat as the place before it."""
        text = mark(self.cache) if self.cache is not None and self.keeps_text else None
        return replace(turn, before=RestorePoint(list(self.states), text), memory_set=self.memory_set)

    def go_to(self, place: RestorePoint | None, exactly: bool = True) -> bool:
        """Take the cache back to a place. The turns are not changed.

        Args:
            place: The place; None: it was not kept.
            exactly: As in `go_back`. Within a turn, the text may be the one that the turn has quantised.

        Returns:
            False if that is not possible; the cache is then unchanged.
        """
        if place is None or self.cache is None or not go_back(self.cache, place.text, exactly):
            return False
        self.cache[-1].cache = list(place.states)
        return True

    def drift_so_far(self, kept: dict[int, float]) -> Drift:
        """The drift of a turn, as far as it is known before the turn has ended: `changed` is empty.

        Args:
            kept: The mean keep gates of the tokens so far, as `KeepGateMeans.means` returns them.
        """
        kept_all = {layer: 1.0 for layer, state in enumerate(self.states) if state.size}
        return Drift(whole_numbers(self.model, kept) or kept_all, {})

    def add(self, turn: Turn, states: States) -> None:
        """Add a turn that has been run, with the memory after it.

        Warns:
            UserWarning: The memory is not finite after the turn.
        """
        if turn.before is None or turn.drift is None:
            raise RuntimeError("the turn has no place before it or no drift; expected both: run it first")
        states = whole_states(self.model, states)
        changed = changes(turn.before.states, states)
        if not all(map(math.isfinite, changed.values())):
            warnings.warn(
                "the memory is not finite after this turn, so that replies mean nothing: undo() goes back to before "
                "it, reset() forgets everything",
                stacklevel=2,
            )
        if self.turns:
            earlier = self.turns[-1].as_earlier()
            self.turns[-1] = earlier if self.keeps_text else replace(earlier, between=None)
        self.turns.append(replace(turn, drift=replace(turn.drift, changed=changed)))
        self.states, self.memory_set, self.begun_at = states, False, None

    def take_off(self, index: int) -> None:
        """Remove turn `index` and all later turns from the list. The memory and the cache are not changed."""
        for turn in self.turns[index:]:
            if turn.conversation != self.conversation:
                self._caches.pop(turn.conversation, None)
        self.memory_set = self.turns[index].memory_set
        self.turns = self.turns[:index]

    @contextmanager
    def turn_or_nothing(self) -> Iterator[None]:
        """A context to run a turn in, `under_way`. After an error before the turn is added, the chat is unchanged."""
        count = len(self.turns)
        with self.under_way():
            try:
                yield
            except BaseException:
                if len(self.turns) == count and not (self.keeps_text and self.go_to(self.begun_at)):
                    self.cache = None
                raise
            finally:
                self.begun_at = None

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """A context to change the chat in, `under_way`. After an error the chat is unchanged.

        Closing a reply early is not an error, unless several ranks hold the model (see `reply_to`).
        """
        before = self.snapshot()
        with self.under_way():
            try:
                yield
            except GeneratorExit:
                if not world_of(self.model).is_alone:
                    self.restore(before)
                raise
            except BaseException:
                self.restore(before)
                raise

    def snapshot(self) -> Snapshot:
        """Everything but the keys and values, to go back to it by `restore`."""
        return Snapshot(
            list(self.turns),
            self.states,
            self.memory_set,
            self.system,
            self.template,
            self.conversation,
            dict(self.starts),
            self._history,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot. The keys and values are made again when they are needed."""
        self.turns, self.states, self.memory_set = list(snapshot.turns), snapshot.states, snapshot.memory_set
        self.system, self.template = snapshot.system, snapshot.template
        self.conversation, self.starts, self._history = snapshot.conversation, snapshot.starts, snapshot.history
        self.begun_at = None
        self.drop_caches()
