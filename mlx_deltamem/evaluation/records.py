"""Files of JSON lines that are written as a run goes on, and read again where it is to go on after it was killed."""

import json
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, object]


class JsonLines:
    """A file that rows are added to.

    A row that a killed process wrote in part is dropped.

    Args:
        path: The file; what is in it is read.

    Attributes:
        rows: What is in it.

    Raises:
        ValueError: A row that is not the last one is damaged.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: Path):
        self._path = path
        self.rows: list[Row] = []
        if path.exists():
            self._read()

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows; they are in the file when this returns, whatever becomes of the process."""
        rows = list(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self._path.open("ab") as file:
            file.write(text.encode())
        self.rows += rows

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{self._path} line {number} is damaged ({error}); remove the file") from None
            if not isinstance(row, dict):
                raise ValueError(f"{self._path} line {number} is damaged (no object); remove the file")
            self.rows.append(row)
        if whole < len(content):
            with self._path.open("r+b") as file:
                file.truncate(whole)
