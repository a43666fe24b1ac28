"""Small videos on disk, and their frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dino.visualization.frame_source import FrameSource
from dino.visualization.video import write_video


def make_frame(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A plain frame whose red tells its index, with a green upper left corner and a blue right
    edge."""
    frame = np.full((height, width, 3), (4 * index, 60, 60), np.uint8)
    frame[: height // 4, : width // 4] = (0, 250, 0)
    frame[:, -width // 8 :] = (0, 0, 250)
    return frame


def make_video(
    path: Path, count: int = 5, *, height: int = 48, width: int = 64, rate: float = 25
) -> Path:
    with write_video(path, rate=rate) as writer:
        for index in range(count):
            writer.write(make_frame(index, height, width))
    return path


def read_all(source: FrameSource, channels: int = 3) -> list[tuple[str, np.ndarray]]:
    return [(name, frame.permute(1, 2, 0).numpy()) for name, frame in source.read(channels)]
