"""A trace as a page for a browser: one file that loads nothing, in which one can point at tokens and layers."""

import base64
import json
from pathlib import Path

import numpy as np

from mlx_deltamem.files.atomic import new_file
from mlx_deltamem.inspection.trace import Trace, visible
from mlx_deltamem.show.printable import json_document, printable

_TEMPLATE = Path(__file__).with_name("trace_page.html")
_LONGEST_LABEL = 40
# The share of outliers at each end that the colours leave out, as in the figure.
_OUTLIERS = 0.01
_STEPS = 65535


def write_trace_page(trace: Trace, title: str, path: Path) -> None:
    """Write the page of a trace. The file is replaced as a whole or not at all.

    Args:
        trace: The trace of a text.
        title: The title of the page.
        path: The file.

    Raises:
        OSError: The file cannot be written.
    """
    with new_file(path) as temporary:
        temporary.write_text(trace_page(trace, title), encoding="utf-8")


def trace_page(trace: Trace, title: str) -> str:
    """The page of a trace, as HTML."""
    write, write_range = _packed(trace.write)
    keep, keep_range = _packed(trace.keep)
    finite = trace.write[np.isfinite(trace.write)]
    scale = np.quantile(finite, [_OUTLIERS, 1 - _OUTLIERS]).tolist() if finite.size else [0.0, 1.0]
    data = {
        "title": printable(title, ""),
        "tokens": [
            {"text": printable(text), "label": visible(text, token, _LONGEST_LABEL)}
            for text, token in zip(trace.texts, trace.tokens, strict=True)
        ],
        "layers": trace.layers,
        "write": write,
        "writeRange": write_range,
        "keep": keep,
        "keepRange": keep_range,
        "scale": scale,
        "places": trace.places,
        "norms": np.nan_to_num(trace.norms.mean(axis=0), posinf=0.0, neginf=0.0).tolist(),
    }
    # A text in a script: a text of the model must not end it.
    text = json.dumps(json_document(data)).replace("<", "\\u003c").replace(">", "\\u003e")
    return _TEMPLATE.read_text(encoding="utf-8").replace('"DATA"', text, 1)


def _packed(gates: np.ndarray) -> tuple[str, list[float]]:
    """Gates `[L, T]` as base64 of 16-bit numbers, and the gates that 0 and the largest of these stand for."""
    numbers = np.nan_to_num(gates, nan=0.0, posinf=1.0, neginf=0.0).astype(np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    steps = np.round((numbers - low) / ((high - low) or 1.0) * _STEPS).astype("<u2")
    return base64.b64encode(steps.tobytes()).decode("ascii"), [low, high]
