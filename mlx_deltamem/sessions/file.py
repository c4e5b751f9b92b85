"""Chats as files: one `.safetensors`, which is a prompt cache file of mlx-lm with the chat in it.

Its cache entries are the keys and values (where they were asked for), the memory, and an `ArraysCache` of the chat's
own arrays; the texts are JSON in the metadata.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from mlx_deltamem._version import __version__
from mlx_deltamem.adapters.fingerprint import update_with_arrays
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.files.atomic import locked, new_file, one_line, remove_unfinished, user_path
from mlx_deltamem.sessions.stored import READABLE_VERSIONS, StoredChat, cache_entries, describe, stored_chat

SUFFIX = ".safetensors"


def write_chat(path: Path, chat: StoredChat, expected: str | None) -> str:
    """Write a chat, whole or not at all; only its owner may read the file.

    Args:
        path: The file to make or replace.
        chat: The chat.
        expected: The id of the file that may be replaced; None: there must be no file.

    Returns:
        The new file's id.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The file is not the expected one: someone else has saved there.
        OSError: It cannot be written; what was there is still there.
    """
    check_place(path)
    with locked(path.parent):
        if path.exists():
            _check_replaceable(path, expected)
        remove_unfinished(path)
        file_id = uuid.uuid4().hex
        entries = cache_entries(chat)
        metadata = {"session": json.dumps(describe(chat, file_id), ensure_ascii=False)}
        metadata["checksum"] = _checksum(metadata["session"], entries)
        with new_file(path, mode=0o600) as temporary:
            try:
                save_prompt_cache(str(temporary), entries, metadata)
            except RuntimeError as error:
                raise OSError(f"{path} could not be written ({error}); is the disk full?") from None
    return file_id


def check_place(path: Path) -> None:
    """Raise FileNotFoundError, PermissionError or ValueError where no session can be saved."""
    if path.suffix != SUFFIX:
        raise ValueError(f"{path} does not end in {SUFFIX}; name a session file so")
    folder = user_path(path).resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to save a session in")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder {folder} is read-only; name a session file elsewhere")


def read_chat(path: Path) -> tuple[StoredChat, str]:
    """Read a chat.

    Returns:
        The chat and the file's id.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no session, damaged, altered, or of a newer format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no session file {path}")
    try:
        metadata = _metadata(path)
        description = json.loads(metadata["session"])
        version = description["format_version"]
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no session ({one_line(error)}); expected a file that a chat saved") from None
    if type(version) is not int or version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise ValueError(f"{path} is of session format {version}; this mlx_deltamem {__version__} reads {readable}")
    try:
        entries = load_prompt_cache(str(path))
        if _checksum(metadata["session"], entries) != metadata["checksum"]:
            raise ValueError("its checksum is wrong")
        file_id = description["file_id"]
        if not isinstance(file_id, str):
            raise ValueError("its file_id is no text")
        return stored_chat(description, entries), file_id
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or was altered ({one_line(error)}); use a copy of it") from None


def _check_replaceable(path: Path, expected: str | None) -> None:
    found = _file_id(path)
    if found is None:
        raise ValueError(f"{path} is there already and is no session; name another file")
    if found != expected:
        raise ValueError(
            f"{path} was saved by someone else ({found}, expected {expected or 'no file'}); "
            "save to another name, or load that file and go on from it"
        )


def _checksum(session: str, entries: PromptCache) -> str:
    digest = hashlib.sha256(session.encode())
    values = dict(tree_flatten([entry.state for entry in entries]))
    update_with_arrays(digest, {name: value for name, value in values.items() if isinstance(value, mx.array)})
    digest.update(repr([item for item in values.items() if not isinstance(item[1], mx.array)]).encode())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    """The texts of a session file, none of its arrays being read."""
    _, metadata = mx.load(str(path), return_metadata=True)
    # mlx-lm numbers what it writes: 0 is what it was given.
    return {name.removeprefix("0."): value for name, value in metadata.items() if name.startswith("0.")}


def _file_id(path: Path) -> str | None:
    try:
        return json.loads(_metadata(path)["session"])["file_id"]
    except (RuntimeError, ValueError, KeyError, TypeError):
        return None
