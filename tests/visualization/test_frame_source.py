"""Frames in: order, number, the way up, and files that are whole or refused in one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dino.errors import DataError
from dino.visualization import frame_source
from dino.visualization.frame_source import open_frames
from tests.videos import make_frame, make_video, read_all


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


def test_a_playlist_is_no_video(tmp_path: Path) -> None:
    """It could name any file of this machine, or an address."""
    video = make_video(tmp_path / "v.mp4")
    path = tmp_path / "v.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n")
    with pytest.raises(DataError, match=r"v\.m3u8 cannot be read as a video"):
        open_frames(path)


def test_notes_of_a_video_may_be_no_text(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"\xff\xfe\xfd\xfc"))
    assert len(read_all(open_frames(path))) == 5


def test_frames_that_claim_too_many_pixels_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "v.mp4")
    monkeypatch.setattr(frame_source, "LARGEST_FRAME", 64 * 48)
    assert len(read_all(open_frames(path))) == 5
    monkeypatch.setattr(frame_source, "LARGEST_FRAME", 64 * 48 - 1)
    with pytest.raises(DataError, match=r"must have at most 3071 pixels \(got 64x48\)"):
        open_frames(path)
