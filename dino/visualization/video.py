"""Frames to a video file, one at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dino.errors import OptionError

CODEC = "mp4v"  # MPEG-4 part 2, the one that OpenCV's packages encode without further software


@contextlib.contextmanager
def open_video(target: Path, *, width: int, height: int, fps: float) -> Iterator[Callable[[NDArray[np.uint8]], object]]:
    """Give a function that takes the next frame, (height, width, 3) uint8 RGB; the file appears, whole, at the end.

    Raises:
        OptionError: The file cannot be written.
    """
    temporary = target.with_name(f".{target.name}.tmp{target.suffix}")
    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*CODEC), fps, (width, height))
    try:
        if not writer.isOpened():
            raise OptionError(f"{target} cannot be written as a {CODEC} video")
        yield lambda frame: writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        os.replace(temporary, target)
    finally:
        writer.release()
        temporary.unlink(missing_ok=True)
