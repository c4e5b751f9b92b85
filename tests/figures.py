"""Checks that all texts in a figure can be read."""

from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """All texts that a figure draws."""
    drawn: dict[int, Text] = {}
    original = Text.draw

    def noting(self: Text, renderer: object, *args: object, **kwargs: object) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn[id(self)] = self
        original(self, renderer, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", noting)
        figure.draw_without_rendering()
    return list(drawn.values())


def assert_readable(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Check that no text is too small, cut off, or written over another one.

    Returns:
        The texts.
    """
    texts = drawn_texts(figure, monkeypatch)
    assert min(text.get_fontsize() for text in texts) >= 7
    extents = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, extent in extents:
        assert _inside(extent, figure.bbox), f"{text!r} is cut off"
    for (one, its), (other, others) in combinations(extents, 2):
        assert not _overlap(its, others), f"{one!r} and {other!r} overlap"
    return [text for text, _ in extents]


def _inside(inner: Bbox, outer: Bbox) -> bool:
    return inner.x0 >= outer.x0 and inner.y0 >= outer.y0 and inner.x1 <= outer.x1 and inner.y1 <= outer.y1


def _overlap(one: Bbox, other: Bbox) -> bool:
    # An extent has some empty room around the letters; one point (1/72 inch) is not an overlap.
    pixel = 1.0
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > pixel and down > pixel
