"""An evaluation in several ranks: the questions are dealt out, and the records come together in rank 0."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from threading import Lock
from typing import Any, Protocol, TypeVar, cast

from mlx_deltamem.evaluation.records import MeasuresRow, Record
from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.ranks.world import World

T = TypeVar("T")
# The task, the condition, the seed and the id of a question.
Key = tuple[str, str, int, str]


class Rows(Protocol):
    """A place for the rows of a run."""

    def add(self, rows: Iterable[Any]) -> None: ...


class Dealt:
    """The part of a run that one rank does.

    Args:
        world: The ranks.
        is_spread: Whether the ranks hold one model together. They then ask all questions together, and nothing is
            dealt out.
    """

    def __init__(self, world: World, is_spread: bool = False):
        self.world = world
        self._is_spread = is_spread
        self._failure: OSError | None = None
        self._lock = Lock()

    @property
    def is_dealt(self) -> bool:
        """Whether the questions are dealt out."""
        return not (self.world.is_alone or self._is_spread)

    def share_done(self, keys: Collection[Key]) -> set[Key]:
        """Get the keys of the questions that have a record in rank 0."""
        shared = self.world.share(cast(Json, [list(key) for key in keys]))
        return {cast(Key, tuple(key)) for key in cast("list[list[Json]]", shared)}

    def part(self, batches: Sequence[T]) -> list[T]:
        """The batches of this rank: neighbours, because they often share a history that is read once."""
        if not self.is_dealt:
            return list(batches)
        count, rank, size = len(batches), self.world.rank, self.world.size
        return list(batches[count * rank // size : count * (rank + 1) // size])

    def take(self, places: Mapping[str, Rows], added: Callable[[Record], None]) -> None:
        """Let the rows of the other ranks go to places of rank 0. `added` is called with each record among them."""

        def take(value: Json) -> None:
            name, rows = cast("tuple[str, list[Record]]", value)
            try:
                with self._lock:
                    places[name].add(rows)
            except OSError as error:
                self._failure = error
            if name == RECORDS:
                for row in rows:
                    added(row)

        for connection in self.world.connections.values():
            connection.take_rows(take)

    def add(self, place: Rows, rows: Sequence[Record] | Sequence[MeasuresRow]) -> None:
        """Add rows to a place of this rank, while others add to it.

        Raises:
            OSError: It cannot be written, or rows of another rank could not be written.
        """
        with self._lock:
            place.add(rows)
        self.check()

    def check(self) -> None:
        """Raise the error of rows of another rank that could not be written."""
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Wait until all ranks have asked their questions, and rank 0 has their rows.

        Raises:
            OSError: Rows of another rank could not be written.
        """
        self.world.collect(None)
        self.check()


RECORDS, MEASURES = "records", "measures"


class SentRows:
    """The rows of a rank that has no file: they go to rank 0.

    Args:
        dealt: The part of the run that the rank does.
        name: The name of the place there.
    """

    def __init__(self, dealt: Dealt, name: str):
        self._dealt = dealt
        self._name = name

    def add(self, rows: Iterable[Any]) -> None:
        """Send rows. In ranks that hold one model together, rank 0 has the same rows."""
        if self._dealt.is_dealt:
            self._dealt.world.connections[0].send_rows(cast(Json, [self._name, list(rows)]))
