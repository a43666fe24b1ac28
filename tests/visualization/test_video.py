"""Videos out: order, size, speed, and files that are whole or not there."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dino.errors import DataError, OptionError
from dino.visualization import video
from dino.visualization.frame_source import open_frames
from dino.visualization.video import write_video
from tests.videos import make_frame, make_video, read_all


@pytest.mark.parametrize(("name", "codec"), [("v.mp4", "h264"), ("v.avi", "mpeg4")])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (67, 101), (1, 1)])
def test_frames_come_back_in_order_whatever_their_size(
    tmp_path: Path, name: str, codec: str, height: int, width: int
) -> None:
    path = make_video(tmp_path / name, 12, height=height, width=width)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    source = open_frames(path)
    frames = read_all(source)
    assert source.count == len(frames) == 12 and source.rate == 25
    assert [name for name, _ in frames] == [f"frame-{index:04}" for index in range(12)]
    even = (height + height % 2, width + width % 2)
    assert {frame.shape for _, frame in frames} == {(*even, 3)}
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == codec
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    if height > 1:
        for index, (_, frame) in enumerate(frames):
            middle = frame[height // 2, width // 2].astype(int)
            assert np.abs(middle - (4 * index, 60, 60)).max() <= 12
            assert np.abs(frame[5, 5].astype(int) - (0, 250, 0)).max() <= 24


@pytest.mark.parametrize(
    ("rate", "exact"),
    [
        (30.0, Fraction(30)),
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (0.5, Fraction(1, 2)),
    ],
)
@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])
def test_the_speed_is_kept(tmp_path: Path, name: str, rate: float, exact: Fraction) -> None:
    found = open_frames(make_video(tmp_path / name, rate=rate)).rate
    assert found == pytest.approx(rate, rel=1e-4)
    assert name != "v.mp4" or exact.denominator == 1001 or found == float(exact)


@pytest.mark.parametrize("rate", [0.1, 59.94, 119.88, 1000.0])
@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])
def test_any_speed_that_the_flag_takes_can_be_written(
    tmp_path: Path, name: str, rate: float
) -> None:
    assert len(read_all(open_frames(make_video(tmp_path / name, rate=rate)))) == 5


def test_a_block_that_fails_leaves_no_video_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", 3)
    before = path.read_bytes()
    with pytest.raises(KeyError), write_video(path, rate=25) as writer:
        for index in range(60):
            writer.write(make_frame(index))
        assert len(list(tmp_path.iterdir())) == 2 and path.read_bytes() == before
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"] and path.read_bytes() == before


def test_a_video_without_frames_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="there are no frames to make a video of"),
        write_video(tmp_path / "v.mp4", rate=1),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_frame_of_another_size_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="frame 2 is 10 x 12, but those before it are 12 x 10"),
        write_video(tmp_path / "v.mp4", rate=1) as writer,
    ):
        writer.write(make_frame(0, 12, 10))
        writer.write(make_frame(1, 10, 12))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/v.mp4", "v.mkv"])
def test_a_video_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"cannot be written|must end with \.mp4 or \.avi"):
        make_video(tmp_path / name)


def test_without_x264_the_next_encoder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video.av, "codecs_available", {"mpeg4"})
    path = make_video(tmp_path / "v.mp4")
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
