"""Read the JSON files of a model, with errors that name the file."""

import codecs
import json
from pathlib import Path

from mlx_deltamem.files.jsonl import LARGEST_FILE
from mlx_deltamem.files.regular import read_file

_POINTER = b"version https://git-lfs"


def read_json_object(path: Path) -> dict[str, object]:
    """Read a file that holds one JSON object.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else. The error names the file.
        OSError: It cannot be read.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _damaged(
            path, f"is not JSON ({error.msg}, line {error.lineno})" if text.strip() else "is empty"
        ) from None
    except (ValueError, RecursionError):
        raise _damaged(path, "is not JSON that can be read (lists in lists, or a number of too many digits)") from None
    if not isinstance(value, dict):
        raise _damaged(path, f"holds a {_kind(value)}")
    return value


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder, a pointer of Git LFS, larger than `LARGEST_FILE`, or not UTF-8 without a byte order
            mark.
        OSError: It cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected a text file")
    check_not_pointer(path)
    content = read_file(path, LARGEST_FILE)
    if content.startswith(codecs.BOM_UTF8):
        raise ValueError(f"{path} begins with a byte order mark; expected UTF-8 without one: save it so")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); expected UTF-8 text: save it so") from None


def check_not_pointer(path: Path) -> None:
    """Check that a file is not a pointer of Git LFS, which stands for the file in a clone without LFS.

    Raises:
        ValueError: It is one.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path} is a pointer of Git LFS; expected the file itself: run `git lfs pull` there")


def _kind(value: object) -> str:
    return {list: "list", str: "text", bool: "boolean", int: "number", float: "number"}.get(type(value), "null")


def _damaged(path: Path, problem: str) -> ValueError:
    return ValueError(f"{path} is damaged; expected a JSON object, but it {problem}: use a complete copy")
