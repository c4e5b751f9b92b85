"""Turn the errors of the Hugging Face Hub and its client into errors of one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The Xet transport raises built-in errors; if the server answered, the message contains the status.
_XET = re.compile(r"^(Data processing|Network|CAS service|Request) error", re.I)
_STATUS = re.compile(r"HTTP status \w+ error \((?P<status>\d{3})\b")
_LOG_IN = "log in with `hf auth login`"
_REFUSALS = {
    401: f"the Hub does not accept the token that came with {{name}} (401); {_LOG_IN}",
    403: "the Hub does not let you do this with {name} (403); use your own USER/NAME and a token that may write",
    404: "the Hub has no {name}, or your token may not see it (404)",
    412: "{name} was changed on the Hub in the meantime (412); try again",
    429: "the Hub received too many requests from here (429); try again {when}",
    500: "the Hub reported an internal error for {name} ({status}); try again {when}",
}


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn each error in a block that reads a repo into one line.

    Args:
        name: The repo as the user named it.

    Raises:
        FileNotFoundError: There is no such repo or revision, or it is not in the cache and the Hub cannot be reached,
            or the name is neither a folder nor a valid repo name.
        ValueError: The Hub refused access, or the download was interrupted.
    """
    try:
        yield
    except HFValidationError:
        raise FileNotFoundError(
            f"{name} is not a folder on this machine and not a valid name of a Hub repo (USER/NAME)"
        ) from None
    except GatedRepoError:
        raise ValueError(f"{name} is gated: accept its terms on the Hub and {_LOG_IN}") from None
    except RevisionNotFoundError:
        raise FileNotFoundError(f"the repo {name} on the Hub has no such revision") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{name} is not a folder on this machine and not a repo on the Hub (if it is private, {_LOG_IN})"
        ) from None
    except LocalEntryNotFoundError as error:
        raise _not_local(name, error) from None
    except RemoteEntryNotFoundError as error:
        # The address ends with the name of the file.
        file = str(error.response.url).partition("?")[0].rpartition("/")[2]
        raise FileNotFoundError(f"the repo {name} on the Hub has no {file}; name another repo") from None
    except HfHubHTTPError as error:
        raise ValueError(_refusal(name, error)) from None
    except (HTTPError, RuntimeError, OSError) as error:
        if not isinstance(error, HTTPError) and _XET.match(str(error)) is None:
            raise
        raise ValueError(f"the download of {name} was interrupted ({first_line(error)}); try again") from None


@contextmanager
def upload_errors(repo: str) -> Iterator[None]:
    """Turn each error in a block that writes to a repo into one line; the client raises errors of many types.

    Raises:
        ValueError: The upload failed.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(_upload_problem(repo, error)) from error


def _not_local(name: str, error: LocalEntryNotFoundError) -> Exception:
    """Return the error for a repo that is not in the cache and was not downloaded."""
    if isinstance(error.__cause__, HfHubHTTPError):
        return ValueError(_refusal(name, error.__cause__))
    if constants.HF_HUB_OFFLINE:
        return FileNotFoundError(
            f"{name} is not a folder on this machine and not complete in the Hub's cache, and HF_HUB_OFFLINE is set; "
            "unset it once to download it"
        )
    return FileNotFoundError(
        f"{name} is not a folder on this machine, and the Hub could not be reached to look for a repo of this name"
    )


def _upload_problem(repo: str, error: Exception) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token for the upload to {repo}; {_LOG_IN}"
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in _chain(error)):
        return f"nothing can be uploaded to {repo} while HF_HUB_OFFLINE is set; unset it"
    if answer := next((cause for cause in _chain(error) if isinstance(cause, HfHubHTTPError)), None):
        return _refusal(repo, answer)
    if found := _STATUS.search(str(error)):
        return _refused(repo, int(found["status"]), first_line(error))
    return f"the upload to {repo} failed ({first_line(error)}); try again"


def _refusal(name: str, error: HfHubHTTPError) -> str:
    wait = error.response.headers.get("Retry-After", "")
    said = error.server_message or first_line(error)
    return _refused(name, error.response.status_code, said, f"in {wait} seconds" if wait.isdigit() else "later")


def _refused(name: str, status: int, said: str, when: str = "later") -> str:
    status_class = 500 if status >= 500 else status
    meaning = _REFUSALS.get(status_class, "the Hub refused {name} ({status}): {said}")
    return meaning.format(name=name, status=status, said=" ".join(said.split()), when=when)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and then its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without the advice and tracebacks that may follow."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
