"""A video is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dino.errors import OptionError
from dino.visualization.video import open_video


def frames_of(count: int) -> list[np.ndarray]:
    """Each frame of one gray level, with a red left half."""
    frames = [np.full((48, 64, 3), 40 * number, np.uint8) for number in range(count)]
    for frame in frames:
        frame[:, :32] = (220, 20, 20)
    return frames


def test_frames_come_back_in_order_and_colour(tmp_path: Path) -> None:
    frames = frames_of(5)
    with open_video(tmp_path / "a.mp4", width=64, height=48, fps=12.5) as add:
        for frame in frames:
            add(frame)
    video = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == 12.5
    for frame in frames:
        found, read = video.read()
        assert found and abs(read[:, :, ::-1].astype(int) - frame).mean() < 12
    assert not video.read()[0]


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        open_video(tmp_path / "a.mp4", width=64, height=48, fps=10) as add,
    ):
        add(frames_of(1)[0])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OptionError, match=r"none/a\.mp4 cannot be written"),
        open_video(tmp_path / "none" / "a.mp4", width=64, height=48, fps=10),
    ):
        pass
