"""Text that a terminal can show: control characters and characters of other encodings are written as `\\x1b`."""

import json
import re
from pathlib import Path

# C0, DEL and C1 move the cursor or begin commands to the terminal. The next ones reorder the text around them. Lone
# surrogates stand for bytes that are not text. The last ones begin a new line.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f\ud800-\udfff\u2028\u2029]")
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


def printable(text: str, keep: str = "\t\n", encoding: str = "utf-8") -> str:
    """Return a text in which characters that a terminal would act on are shown, as `\\x1b` or `\\u202e`.

    They are the control characters C0, DEL and C1, the characters that reorder text (Unicode's Bidi_Control), the
    separators of lines and paragraphs, and lone surrogates.

    Args:
        text: Any text: of a file, of a model, or of an error.
        keep: Control characters to leave as they are.
        encoding: The encoding of the terminal. Characters that it lacks are shown as `\\u03b4`.
    """
    shown = _HIDDEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)
    return shown if shown.isascii() else shown.encode(encoding, "backslashreplace").decode(encoding)


def on_one_line(text: object) -> str:
    """Return the text of an error or a warning on one line, without characters that a terminal would act on."""
    text = _of_system(text) if isinstance(text, OSError) else str(text)
    return printable(_LINE_BREAK.sub(" ", text).strip(), keep="")


def _of_system(error: OSError) -> str:
    """The text of an error of the system: the file and what is wrong with it, instead of Python's number and reason."""
    name, other = error.filename, error.filename2
    if not isinstance(name, str) or not isinstance(other, str | None) or not error.strerror:
        return str(error)
    if isinstance(error, FileNotFoundError) and other is None:
        folder = Path(name).parent
        if not folder.is_dir():
            return f"there is no folder {folder}; make it, or name another one"
        return f"there is no file {name}; check the name"
    names = name if other is None else f"{name} to {other}"
    return f"{names}: {error.strerror[:1].lower()}{error.strerror[1:]}"


def json_document(document: object) -> str:
    """Encode a document as JSON in ASCII, without control characters.

    Raises:
        ValueError: A number is not finite.
    """
    # JSON allows DEL in a text.
    return json.dumps(document, allow_nan=False).replace("\x7f", "\\u007f")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
