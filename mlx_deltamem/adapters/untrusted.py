"""Checks that the readers of other programs' files share.

Such a file may be damaged or hostile. The readers check every size in it before they allocate memory, and refuse the
file with an error of one line.
"""

from collections.abc import Iterator
from contextlib import contextmanager

# The largest size of one dimension of an mlx array.
MAX_SIZE = 2**31 - 1


class RefusedError(ValueError):
    """The reason why a file is refused, without the file's name; the reader's public function adds the name."""


@contextmanager
def damage_in(part: str) -> Iterator[None]:
    """Turn every error in the block into a RefusedError which says that `part` of the file is damaged."""
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:  # zipfile, numpy and pickletools do not document all errors that damaged input causes
        raise RefusedError(f"{part} is truncated or damaged ({shown(str(error))}); get the file again") from error


def shown(text: str) -> str:
    """Escape and shorten text from a file, so that it fits into an error of one line."""
    return repr(text)[1:-1][:100]
