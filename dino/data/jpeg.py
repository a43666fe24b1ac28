"""JPEGs by OpenCV, with Pillow's levels in two thirds of the time; JPEGs that lack data."""

from __future__ import annotations

import re

import cv2
import numpy as np

SCAN, END = b"\xff\xda", b"\xff\xd9"
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # ends a scan
FILLER = bytes(range(1, 255))  # more data for a scan; any that contains no marker
GRAY = 128  # what decoders fill in where there are no data


def read_jpeg(content: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 as stored; None for files that Pillow has to read or reject."""
    # OpenCV fills the missing parts of cut files with gray.
    complete = content.endswith(END) or content.rfind(END) > content.rfind(SCAN)
    return _decode(content, cv2.IMREAD_COLOR_RGB) if complete else None


def check_header(content: bytes, width: int, height: int) -> None:
    """Reject a file with less than a bit for each block of 8 x 8 pixels, the least there can be.

    Raises:
        ValueError: The text includes the size that the header claims.
    """
    if 8 * len(content) < -(-width // 8) * -(-height // 8):
        raise ValueError(
            f"its header claims {width} x {height} pixels, which do not fit into"
            f" its {len(content)} bytes"
        )


def check_data(content: bytes, pixels: np.ndarray) -> None:
    """Reject a file whose data end before its pixels (H, W, C) uint8 do.

    Decoders fill in gray, and only warn. A picture may well end in gray, but more data do not
    change it if it is complete.

    Raises:
        ValueError: The data end too early.
    """
    end = MARKER.search(content, content.rfind(SCAN) + len(SCAN))
    if end is None or (pixels[-1, -1] != GRAY).any():
        return
    longer = content[: end.start()] + FILLER + content[end.start() :]
    plain, more = (_decode(data, cv2.IMREAD_GRAYSCALE) for data in (content, longer))
    if plain is not None and (more is None or not np.array_equal(plain, more)):
        raise ValueError("its data end before the picture does")


def _decode(content: bytes, colors: int) -> np.ndarray | None:
    encoded = np.frombuffer(content, dtype=np.uint8)
    try:
        return cv2.imdecode(encoded, colors | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
