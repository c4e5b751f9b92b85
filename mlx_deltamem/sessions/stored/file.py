"""Read and write session files, with a checksum, and without overwriting a file that someone else saved."""

import hashlib
import json
import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_lm_cache

from mlx_deltamem._version import __version__
from mlx_deltamem.adapters.fingerprint import update_with_arrays
from mlx_deltamem.adapters.untrusted import shown
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.files.atomic import (
    check_file_name,
    locked,
    new_file,
    one_line,
    remove_unfinished,
    resolved,
    written_by_mlx,
)
from mlx_deltamem.files.jsonl import parsed_json
from mlx_deltamem.files.safetensors import SafetensorsHeader, check_safetensors
from mlx_deltamem.sessions.stored.chat import READABLE_VERSIONS, StoredChat, cache_entries, description
from mlx_deltamem.sessions.stored.decode import ChatTexts, decode, decode_texts

SUFFIX = ".safetensors"
_ERRORS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError)
_MOST_SHOWN = 300
# MLX makes a list of 1001 items of the single name "entries.1000". A chat has less than a thousand arrays.
_MOST_ITEMS, _DEEPEST_NAME = 50_000, 20

_load_prompt_cache = cast(Callable[[str], PromptCache], mlx_lm_cache.load_prompt_cache)


def write_chat(path: Path, chat: StoredChat, expected: str | None) -> str:
    """Write a session file, whole or not at all. Only its owner may read it.

    Args:
        path: The file to make or replace.
        chat: The chat.
        expected: The id of the file that may be replaced; None: no file may be there.

    Returns:
        The id of the new file.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The name has another ending; another file is there: someone else has saved it; or the chat
            could not be read again. An existing file is left unchanged.
        OSError: The file cannot be written. An existing file is left unchanged.
    """
    check_place(path)
    with locked(path.parent):
        if path.exists():
            _check_replaceable(path, expected)
        remove_unfinished(path)
        file_id = uuid.uuid4().hex
        entries = cache_entries(chat)
        metadata = {"session": json.dumps(description(chat, file_id), ensure_ascii=False)}
        metadata["checksum"] = _checksum(metadata["session"], entries)
        with new_file(path, mode=0o600) as temporary:
            with written_by_mlx(path):
                mlx_lm_cache.save_prompt_cache(str(temporary), entries, metadata)
            _check_readable(path, temporary)
    return file_id


def check_place(path: Path) -> None:
    """Check that a session can be saved under a name.

    Raises:
        ValueError: The name does not end in `.safetensors`, has nothing before that, or is not UTF-8.
        FileNotFoundError: The folder does not exist.
        PermissionError: The folder cannot be written to.
    """
    check_file_name(path)
    if path.name == SUFFIX:
        raise ValueError(f"{path} has no name before {SUFFIX}; name a session file like chat{SUFFIX}")
    if path.suffix != SUFFIX:
        raise ValueError(f"{path} does not end in {SUFFIX}; name a session file so")
    folder = resolved(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to save a session in")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder {folder} is read-only; name a session file elsewhere")


def read_chat(path: Path) -> tuple[StoredChat, str]:
    """Read a session file.

    Returns:
        The chat and the file's id.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a session file, it is damaged or altered, or its format is newer.
    """
    metadata, session = _read_session(path)
    try:
        entries = _load_prompt_cache(str(path))
        if _checksum(metadata["session"], entries) != metadata["checksum"]:
            raise ValueError("its checksum is wrong")
        file_id = session["file_id"]
        if not isinstance(file_id, str):
            raise ValueError("its file_id is not text")
        return decode(session, entries), file_id
    except _ERRORS as error:
        raise ValueError(f"{path} is damaged or was altered ({_reason(error)}); use a copy of it") from None


def read_texts(path: Path) -> ChatTexts:
    """Read the texts of a session file. No array is read, and the checksum is not checked.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a session file, or its format is newer, or its texts were altered.
    """
    _, session = _read_session(path)
    try:
        return decode_texts(session)
    except _ERRORS as error:
        raise ValueError(f"{path} is damaged or was altered ({_reason(error)}); use a copy of it") from None


def delete_chat(path: Path, expected: str | None) -> None:
    """Delete a session file. There may be none.

    Args:
        path: The file.
        expected: The id of the file that may be deleted.

    Raises:
        ValueError: Another file is there: someone else has saved it.
        OSError: The file cannot be deleted.
    """
    if not path.parent.is_dir():
        return
    with locked(path.parent):
        if path.exists():
            _check_replaceable(path, expected)
        path.unlink(missing_ok=True)


def _read_session(path: Path) -> tuple[dict[str, str], dict[str, object]]:
    """The texts in the metadata of a session file, and the JSON object among them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a session file, or its format is newer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no session file {path}")
    try:
        metadata = _metadata(path)
        session = _description(metadata)
        version = session["format_version"]
    except _ERRORS as error:
        raise ValueError(f"{path} is not a session ({_reason(error)}); expected a file that a chat saved") from None
    if type(version) is not int or version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        found = shown(str(version))
        raise ValueError(f"{path} is of session format {found}; this mlx_deltamem {__version__} reads {readable}")
    return metadata, session


def _check_readable(path: Path, written: Path) -> None:
    """Check that the reader takes what was written, before it replaces a file that the reader takes.

    Raises:
        ValueError: It does not.
    """
    try:
        _description(_metadata(written))
    except _ERRORS as error:
        reason = _reason(error).replace(str(written), path.name)
        raise ValueError(
            f"{path} was not saved, because it could not be loaded again ({reason}); expected a chat within the limits "
            "of session files: take its last turns back, or go on in another chat"
        ) from None


def _check_replaceable(path: Path, expected: str | None) -> None:
    found = _file_id(path)
    if found is None:
        raise ValueError(f"{path} is there already and is not a session; name another file")
    if found != expected:
        raise ValueError(
            f"{path} was saved by someone else ({found}, expected {expected or 'no file'}); "
            "save to another name, or load that file and go on from it"
        )


def _checksum(session: str, entries: PromptCache) -> str:
    """SHA-256 over the JSON, all arrays and all other values of the cache entries."""
    digest = hashlib.sha256(session.encode())
    values: dict[str, object] = dict(cast(list[tuple[str, object]], tree_flatten([entry.state for entry in entries])))
    update_with_arrays(digest, {name: value for name, value in values.items() if isinstance(value, mx.array)})
    digest.update(repr([item for item in values.items() if not isinstance(item[1], mx.array)]).encode())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    """The texts of a session file. No array is read.

    Raises:
        ValueError, OSError: It is no whole safetensors file, or mlx-lm's reader must not see its names.
    """
    header = check_safetensors(path)
    _check_names(header)
    # mlx-lm numbers the groups of its metadata; group 0 is what `save_prompt_cache` was given.
    return {name.removeprefix("0."): value for name, value in header.metadata.items() if name.startswith("0.")}


def _check_names(header: SafetensorsHeader) -> None:
    """Check the names that MLX turns into nested lists: it fills up all places before the highest one."""
    for names in (header.tensors, header.metadata):
        if any(name.count(".") > _DEEPEST_NAME for name in names):
            raise ValueError(f"its names have more than {_DEEPEST_NAME} parts")
        if sum(_list_lengths(names)) > _MOST_ITEMS:
            raise ValueError(f"its names describe lists of more than {_MOST_ITEMS:,} items")


def _list_lengths(names: Iterable[str]) -> Iterable[int]:
    lengths: dict[str, int] = defaultdict(int)
    for name in names:
        place = 0
        for part in name.split("."):
            # As MLX reads it: int() also accepts "+5", "1_000" and "5 ".
            with suppress(ValueError):
                lengths[name[:place]] = max(lengths[name[:place]], int(part))
            place += len(part) + 1
    return lengths.values()


def _description(metadata: Mapping[str, str]) -> dict[str, object]:
    """The JSON object of a session file.

    Raises:
        KeyError, ValueError: There is none.
    """
    session, problem = parsed_json(metadata["session"].encode())
    if problem or not isinstance(session, dict):
        raise ValueError(f"its session is {problem or 'no JSON object'}")
    return cast("dict[str, object]", session)


def _reason(error: Exception) -> str:
    return shown(one_line(error), _MOST_SHOWN)


def _file_id(path: Path) -> str | None:
    try:
        found = _description(_metadata(path))["file_id"]
    except _ERRORS:
        return None
    return found if isinstance(found, str) else None
