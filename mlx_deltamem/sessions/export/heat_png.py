"""Heat maps of states as one PNG file, written without a library for images."""

import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_WHITE = np.array([247, 247, 247], float)
_BLUE = np.array([33, 102, 172], float)
_RED = np.array([178, 24, 43], float)
# The side of a tile is about this many pixels; the gap between tiles is in pixels.
_TILE, _GAP = 64, 4


def states_png(states: Sequence[npt.NDArray[np.float64]]) -> bytes:
    """Draw states as tiles: blue is negative, red is positive. The largest number of a tile has the full colour.

    Args:
        states: Matrices of finite numbers.
    """
    return _png(_image(states))


def _image(states: Sequence[npt.NDArray[np.float64]]) -> Pixels:
    if not states:
        return np.full((1, 1, 3), 247, np.uint8)
    tiles = [_tile(state) for state in states]
    height, width = max(len(tile) for tile in tiles) + _GAP, max(tile.shape[1] for tile in tiles) + _GAP
    columns = math.ceil(math.sqrt(len(tiles)))
    image = np.full((math.ceil(len(tiles) / columns) * height + _GAP, columns * width + _GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = _GAP + index // columns * height, _GAP + index % columns * width
        image[top : top + len(tile), left : left + tile.shape[1]] = tile
    return image


def _tile(state: npt.NDArray[np.float64]) -> Pixels:
    """The pixels of one state. Its largest number has the full colour."""
    share = (state / (np.abs(state).max(initial=0.0) or 1.0))[..., None]
    colours = np.where(share < 0, _WHITE + (_WHITE - _BLUE) * share, _WHITE + (_RED - _WHITE) * share)
    pixels: Pixels = np.rint(colours).astype(np.uint8)
    size = max(1, _TILE // max(state.shape))
    return np.repeat(np.repeat(pixels, size, axis=0), size, axis=1)


def _png(image: Pixels) -> bytes:
    """A PNG file (ISO/IEC 15948) with 8 bits for each of the three colours."""
    height, width, _ = image.shape
    # Each line begins with the number of its filter: 0, none.
    lines = b"".join(b"\0" + line.tobytes() for line in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
