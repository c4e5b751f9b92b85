"""The folder for temporary files, which MLX, matplotlib and Python take from the environment."""

import os
import tempfile
import warnings

# The order is that of C++'s `temp_directory_path`, with which MLX finds the folder for what it compiles.
_NAMES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")


def ensure_temporary_folder() -> None:
    """Make sure that the environment names a folder in which files can be made; if not, name another, with a warning.

    Raises:
        FileNotFoundError: There is no such folder on this machine.
    """
    name = next((name for name in _NAMES if os.environ.get(name)), None)
    if name is None or _is_usable(os.environ[name]):
        return
    # Python has perhaps kept the folder that the environment named.
    tempfile.tempdir = None
    given, found = os.environ[name], tempfile.gettempdir()
    os.environ[name] = found
    warnings.warn(f"{name} is {given}, in which no file can be made; {found} is used", stacklevel=2)


def _is_usable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
