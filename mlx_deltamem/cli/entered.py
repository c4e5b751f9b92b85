"""Checks of what a user enters before a chat goes on: texts, and the file of the chat."""

from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.files.atomic import check_file_name, check_new_file, user_path
from mlx_deltamem.files.text import check_text
from mlx_deltamem.ranks.joining import world
from mlx_deltamem.sessions.stored.file import check_place
from mlx_deltamem.sessions.text.token_ids import token_ids

# The first part of a text to tokenise, in characters for each token of the window.
_CHARACTERS = 4


def checked_message(text: str, name: str, longest: int | None, tokenizer: TokenizerWrapper) -> str:
    """Check a text that the model is to read at once.

    Args:
        text: The text.
        name: Its name, for the error.
        longest: The model's window in tokens; None: any length will do.
        tokenizer: The model's tokenizer.

    Returns:
        The text, without a byte order mark.

    Raises:
        ValueError: It has a character that cannot be in a text, or it is longer than the model's window.
    """
    text = check_text(text, name)
    if longest is not None and _is_longer(text, longest, tokenizer):
        raise ValueError(
            f"{name} is more than {longest:,} tokens ({len(text):,} characters); the model's window is {longest:,}: "
            "shorten it"
        )
    return text


def checked_system_prompt(text: str | None) -> str | None:
    """The system prompt of the command line, checked; None if there is none.

    Raises:
        ValueError: It has a character that cannot be in a text.
    """
    return None if text is None else check_text(text, "the system prompt")


def check_session_file(path: Path | None) -> None:
    """Check, before a model is loaded, that a chat can be saved to a file; of several ranks, by rank 0.

    Args:
        path: The file, which may exist; None: there is nothing to check.

    Raises:
        ValueError: The name is not UTF-8 or has another ending, or there is something else than a file.
        OSError: There is no such folder, or it cannot be written.
    """
    if path is not None:
        world().first(lambda: _check_file(user_path(path)))


def _check_file(path: Path) -> None:
    check_file_name(path)
    check_place(path)
    check_new_file(path)


def _is_longer(text: str, longest: int, tokenizer: TokenizerWrapper) -> bool:
    """Whether a text has more tokens than this. Only the beginning of a long text is tokenised.

    The tokens of the beginning are also those of the text, but for the last few, which a cut may change.
    """
    size = _CHARACTERS * longest
    while size < len(text):
        if len(token_ids(tokenizer, text[:size])) > longest + _CHARACTERS:
            return True
        size *= 2
    # No token is shorter than a byte.
    return len(text.encode()) > longest and len(token_ids(tokenizer, text)) > longest
