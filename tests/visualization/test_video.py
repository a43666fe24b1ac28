"""Frames in and frames out: order, number, size, speed, and files that are whole or not there."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dino.errors import DataError, OptionError
from dino.visualization import video
from dino.visualization.video import FrameSource, open_frames, write_video


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


def test_the_shared_video_is_read_whole_and_gray(shared_data: Path) -> None:
    source = open_frames(shared_data / "video" / "car-roundabout_3s_25fps.mp4")
    assert (source.count, source.rate) == (75, 25.0)
    assert sum(1 for _ in source.read(3)) == 75
    _, gray = next(source.read(1))
    assert gray.shape == (1, 480, 854)


def make_turned(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """A frame whose header shows the pixel at x, y at x * a + y * c, x * b + y * d."""
    make_video(path, 1)
    a, b, c, d = (round(number * (1 << 16)) for number in matrix)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # version and flags, times, number, duration, layer, volume
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "turns", "mirrored"),
    [
        ((1, 0, 0, 1), 0, False),
        ((0, 1, -1, 0), 1, False),
        ((-1, 0, 0, -1), 2, False),
        ((0, -1, 1, 0), 3, False),
        ((-1, 0, 0, 1), 0, True),
        ((0, 1, 1, 0), 3, True),
        ((1, 0, 0, -1), 2, True),
        ((0, -1, -1, 0), 1, True),
        ((0, 2.5, -2, 0.001), 1, False),  # a scale is not applied
        ((0, 0, 0, 0), 0, False),
    ],
)
def test_a_turned_or_mirrored_video_is_upright(
    tmp_path: Path, matrix: tuple[float, float, float, float], turns: int, mirrored: bool
) -> None:
    """The header's matrix mirrors from left to right, then turns clockwise by quarters."""
    source = open_frames(make_turned(tmp_path / "v.mp4", matrix))
    (_, frame), (_, gray) = read_all(source)[0], read_all(source, 1)[0]
    expected = make_frame(0)
    expected = np.rot90(expected[:, ::-1] if mirrored else expected, -turns)
    assert frame.shape == expected.shape and gray.shape == (*expected.shape[:2], 1)
    assert np.abs(frame.astype(int) - expected).mean() < 10


@pytest.mark.parametrize("angle", [45, -30, 2])
def test_a_slanted_video_is_named(tmp_path: Path, angle: int) -> None:
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    source = open_frames(make_turned(tmp_path / "v.mp4", (cosine, sine, -sine, cosine)))
    with pytest.raises(
        DataError,
        match=rf"v\.mp4 must be shown turned by a multiple of 90 degrees \(got {angle}\); `ffmpeg",
    ):
        read_all(source)


@pytest.mark.parametrize("cut", ["middle", "last byte", "between packets"])
@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])
def test_a_video_that_was_cut_off_is_an_error(tmp_path: Path, cut: str, name: str) -> None:
    path = make_video(tmp_path / name, 30)
    with av.open(str(path)) as container:
        places = sorted(
            (packet.pos, packet.size) for packet in container.demux(video=0) if packet.size
        )
    end = sum(places[-1])
    length = {
        "middle": (places[0][0] + end) // 2,
        "last byte": end - 1,
        "between packets": sum(places[20]),
    }[cut]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        DataError,
        match=r"v\.\w+ (cannot be read as a video|is damaged after frame"
        r"|is truncated: it has \d+ of 30 frames)",
    ):
        read_all(open_frames(path))


def make_matroska(path: Path, *, sound: float = 0, live: bool = False) -> list[int]:
    """30 frames at 25 frames a second, and seconds of sound; gives where each frame's packet
    ends."""
    with av.open(str(path), "w", options={"live": "1"} if live else {}) as container:
        picture = container.add_stream("libx264" if path.suffix == ".mkv" else "libvpx", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream("libopus", rate=48000) if sound else None
        for index in range(30):
            container.mux(
                picture.encode(av.VideoFrame.from_ndarray(make_frame(index), format="rgb24"))
            )
        container.mux(picture.encode(None))
        for index in range(round(sound * 50)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 960), np.int16), layout="stereo")
            frame.rate, frame.pts = 48000, 960 * index
            container.mux(voice.encode(frame))
        container.mux(voice.encode(None) if voice else [])
    with av.open(str(path)) as container:
        return sorted(
            packet.pos + packet.size for packet in container.demux(video=0) if packet.size
        )


@pytest.mark.parametrize("frames", [1, 15, 26, 28])
@pytest.mark.parametrize("name", ["v.mkv", "v.webm"])
def test_a_matroska_file_that_was_cut_off_is_an_error(
    tmp_path: Path, name: str, frames: int
) -> None:
    ends = make_matroska(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[: ends[frames]])
    with pytest.raises(
        DataError,
        match=rf"{name} is truncated: it is shorter than its header says; download it again",
    ):
        open_frames(tmp_path / name)


@pytest.mark.parametrize("more", [{}, {"sound": 2}, {"live": True}])
@pytest.mark.parametrize("name", ["v.mkv", "v.webm"])
def test_a_whole_matroska_file_is_read(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    make_matroska(tmp_path / name, **more)
    assert len(read_all(open_frames(tmp_path / name))) == 30


def test_a_trimmed_video_is_whole(tmp_path: Path) -> None:
    """An edit list shows 6 of 30 frames; the header still counts 30."""
    path = make_video(tmp_path / "v.mp4", 30)
    content = bytearray(path.read_bytes())
    elst = content.index(b"elst")
    duration = content.index(b"mvhd") + 20
    (scale,) = struct.unpack(">I", content[duration - 4 : duration])
    content[elst + 12 : elst + 16] = struct.pack(">I", scale * 6 // 25)
    path.write_bytes(content)
    source = open_frames(path)
    if not hasattr(av.open(str(path)).streams.video[0], "index_entries"):
        pytest.skip("this PyAV does not show the index")
    assert 6 <= len(read_all(source)) < 30


@pytest.mark.parametrize("name", ["zero_byte.jpg", "text.jpg", "html_404.jpg"])
def test_what_is_no_video_is_one_line(shared_data: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=rf"^`input_path` .*{name} cannot be read as a video: Invalid data"
    ):
        open_frames(shared_data / "broken" / name)


def test_sound_without_pictures_is_one_line(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"sound\.wav has no video stream"):
        open_frames(tmp_path / "sound.wav")


def test_frames_of_a_folder_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    numbers = [10000, 2, 9999, 10, 1]
    for number in numbers:
        Image.new("RGB", (4, 4), (number % 256, 0, 0)).save(tmp_path / f"frame-{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "more").mkdir()
    source = open_frames(tmp_path)
    assert (source.count, source.rate) == (5, None)
    frames = read_all(source)
    assert [name for name, _ in frames] == [f"frame-{number}" for number in sorted(numbers)]
    assert [frame[0, 0, 0] for _, frame in frames] == [number % 256 for number in sorted(numbers)]


def test_two_files_for_one_frame_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"a\.jpg and a\.png would both be frame a$"):
        open_frames(tmp_path)


@pytest.mark.parametrize("name", ["nowhere.mp4", "."])
def test_nothing_there_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=r"does not exist; give a video file|holds no frame \(looked for \.jpg"
    ):
        open_frames(tmp_path / name)


def test_a_video_of_other_channels_is_refused(tmp_path: Path) -> None:
    source = open_frames(make_video(tmp_path / "v.mp4"))
    with pytest.raises(
        DataError,
        match=r"cannot have the 4 channels of this backbone; give a folder of \.npy frames",
    ):
        next(source.read(4))
