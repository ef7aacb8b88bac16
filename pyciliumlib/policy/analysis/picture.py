"""A matrix of codes as a small PNG, for notebooks; no library needed.

https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def png(
    codes: npt.NDArray[np.uint8], colours: Sequence[tuple[int, int, int]], scale: int = 1
) -> bytes:
    """A picture with a square of `scale` pixels for each code, in the colour of that place."""
    pixels = codes.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = pixels.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = pixels
    palette = bytes(part for colour in colours for part in colour)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", palette),
            _chunk(b"IDAT", zlib.compress(lines.tobytes())),
            _chunk(b"IEND", b""),
        )
    )


def data_url(
    codes: npt.NDArray[np.uint8], colours: Sequence[tuple[int, int, int]], scale: int = 1
) -> str:
    """The picture as text for an `img`."""
    return f"data:image/png;base64,{base64.b64encode(png(codes, colours, scale)).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
