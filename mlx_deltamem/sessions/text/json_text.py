"""JSON values of a chat, within the depth that a session file can hold: its reader refuses what is nested deeper."""

import json

from mlx_deltamem.files.jsonl import excess

# The lists and objects of a session file around the arguments of a call, around a tool, and around a template option.
AROUND_ARGUMENTS, AROUND_TOOL, AROUND_OPTION = 8, 3, 2


def json_text(value: object, around: int = 0) -> str:
    """Encode a value as JSON.

    Args:
        value: The value.
        around: The number of lists and objects that a file will put around it.

    Raises:
        ValueError, TypeError, RecursionError: JSON cannot hold the value, the text is not UTF-8, or the reader of JSON
            files would refuse it: it is nested too deeply, or has too many parts.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if problem := excess(text.encode(), around=around):
        raise ValueError(f"it is {problem}")
    return text
