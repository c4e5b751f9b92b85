"""Parts of a data set that cannot be used: they are left out, counted and told, and the rest is used."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

_SHOWN = 3


@dataclass
class LeftOut:
    """Counts what is left out of a data set.

    Attributes:
        source: The name of the data set: a file, a folder or a repo on the Hub.
        expected: The data that are expected, for the messages.
        problems: What is left out and why. Only the first are kept.
        count: The number of parts left out.
    """

    source: str
    expected: str
    problems: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, problem: str) -> None:
        """Count a part that is left out.

        Args:
            problem: Its place in the data set and the problem, on one line.
        """
        self.count += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(problem)

    def told(self, used: Iterator[T]) -> Iterator[T]:
        """Yield what is used, and warn at the end of what was left out before, also if not all is taken.

        Raises:
            ValueError: Something was left out, and nothing is used.
        """
        count = 0
        try:
            for each in used:
                count += 1
                yield each
        except GeneratorExit:
            self.tell(count)
            raise
        self.tell(count)

    def tell(self, used: int) -> None:
        """Warn of what was left out, if anything was.

        Args:
            used: How many parts of the data set are used.

        Raises:
            ValueError: Something was left out, and nothing is used.
        """
        if not self.count:
            return
        more = f"; and {self.count - len(self.problems):,} more" if self.count > len(self.problems) else ""
        problems = "; ".join(self.problems) + more
        if not used:
            raise ValueError(f"{self.source} has nothing that can be used as {self.expected}: {problems}")
        warnings.warn(
            f"{self.source}: {self.count:,} left out, the rest is used as {self.expected}: {problems}", stacklevel=2
        )
