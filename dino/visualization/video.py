"""Reading frames from a video or a folder, and writing videos, one frame at a time.

PyAV decodes and encodes. Its wheel includes ffmpeg with an H.264 encoder, and its errors are
exceptions. OpenCV's wheel writes only MPEG-4 part 2, which browsers do not play, and reads a
damaged video as if it were complete.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import SupportsBytes, cast

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.video.stream import VideoStream
from torch import Tensor

from dino.data.decode import EXTENSIONS, read_image
from dino.data.frames import list_pictures
from dino.errors import DataError, OptionError
from dino.files import MARK, atomic_write
from dino.visualization.pictures import Pixels

logger = logging.getLogger(__name__)

LAYOUTS = {1: "gray", 3: "rgb24"}  # ffmpeg's pixel formats by number of channels
# Encoders by extension, best first: not every ffmpeg has x264. The original wrote MPEG-4 into both.
ENCODERS = {".mp4": ("libx264", "libopenh264", "mpeg4"), ".avi": ("mpeg4",)}
# Constant quality. x264: 18 of 0 to 51 is visually near lossless. MPEG-4: scale 3 of 1 to 31, in
# ffmpeg's unit of 118.
QUALITY = {"libx264": {"crf": "18"}, "mpeg4": {"flags": "+qscale", "global_quality": str(3 * 118)}}
# The element of a Matroska file that contains everything after its first few bytes.
SEGMENT = bytes.fromhex("18538067")
SLANT = 0.01  # of a matrix that turns by a multiple of 90 degrees, relative to its scale
LARGEST_TICK = 65535  # MPEG-4 counts the ticks of a second in 16 bits
REPAIR = "download it again, or recover the intact part with `ffmpeg -i OLD NEW`"


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """A source of frames.

    Attributes:
        path: The file or folder.
        count: Number of frames according to a video's header; 0 if unknown.
        rate: Frames per second of a video, on average if it varies; None for a folder.
        read: Number of channels C -> name (without extension) and pixels (C, H, W) uint8 of each
            frame, from the first on. Raises DataError at a frame that cannot be decoded. Videos
            have 1 channel (gray) or 3.
    """

    path: Path
    count: int
    rate: float | None
    read: Callable[[int], Iterator[tuple[str, Tensor]]]


def open_frames(path: Path) -> FrameSource:
    """Inspect a video file, or list a folder of frames in the order of the numbers in their names.

    Args:
        path: The setting `input_path`.

    Raises:
        DataError: The path does not exist, has no frames, or is not a video.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise DataError(
            f"`input_path` {path} does not exist",
            value=path,
            remedy="give a video file or a folder of frames",
        )
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(
                    f"`input_path` {path} has no video stream ({container.format.long_name})",
                    value=path,
                )
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            seconds = (container.duration or 0) / av.time_base
            promised = _count_promised(stream)
            readable = next(container.decode(stream), None) is not None
    except av.FFmpegError as error:
        raise DataError(
            f"`input_path` {path} cannot be read as a video: {error.strerror}", value=path
        ) from error
    if not readable:
        raise DataError(f"`input_path` {path} is a video without frames", value=path)
    if "matroska" in container.format.name and _count_bytes_promised(path) > path.stat().st_size:
        raise DataError(
            f"`input_path` {path} is truncated: it is shorter than its header says",
            value=path,
            remedy=REPAIR,
        )
    return FrameSource(
        path=path,
        count=promised or round(seconds * (rate or 0)),
        rate=float(rate) if rate else None,
        read=functools.partial(_decode, path, promised),
    )


def _count_promised(stream: VideoStream) -> int:
    """Number of packets according to a video's header; 0 if unknown.

    The header of a trimmed mp4 counts all packets, but its index lacks the trimmed ones; PyAV
    exposes the index since release 17. An avi's index is no help: ffmpeg rebuilds it from the file.
    """
    indexed = (
        len(getattr(stream, "index_entries", ())) if "mp4" in stream.container.format.name else 0
    )
    return min(stream.frames, indexed or stream.frames)


def _count_bytes_promised(path: Path) -> int:
    """Size of a Matroska file (mkv, webm) by its header; 0 for a live recording (RFC 8794)."""
    with path.open("rb") as file:
        head = file.read(4096)
    start = head.find(SEGMENT) + len(SEGMENT)
    # Bytes of the size: the number of leading zeros of its first byte, plus one.
    width = 9 - head[start].bit_length()
    size, unknown = int.from_bytes(head[start : start + width], "big"), (1 << 7 * width) - 1
    return 0 if size & unknown == unknown else start + width + (size & unknown)


def _open_folder(folder: Path) -> FrameSource:
    paths = list_pictures(folder)
    if not paths:
        raise DataError(
            f"`input_path` {folder} holds no frame (looked for {' '.join(EXTENSIONS)})",
            value=folder,
        )
    for one, other in itertools.pairwise(paths):  # equal names are adjacent in this order
        if one.stem == other.stem:
            raise DataError(
                f"`input_path` {folder}: {one.name} and {other.name} would both be"
                f" frame {one.stem}",
                value=folder,
            )

    def read(channels: int) -> Iterator[tuple[str, Tensor]]:
        for path in paths:
            yield path.stem, read_image(path, channels)

    return FrameSource(path=folder, count=len(paths), rate=None, read=read)


def _decode(path: Path, promised: int, channels: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the frames of a video; `promised` is the header's packet count, 0 if unknown."""
    if channels not in LAYOUTS:
        raise DataError(
            f"`input_path` {path}: a video cannot have the {channels} channels of this backbone",
            value=path,
            remedy="give a folder of .npy frames",
        )
    packets, done = 0, 0
    try:
        with av.open(str(path)) as container:
            # Single-threaded, because ffmpeg's frame threads lose errors.
            for packet in container.demux(video=0):
                # A packet is corrupt if the file ends inside it.
                packets += packet.size > 0 and not packet.is_corrupt
                for frame in packet.decode():
                    pixels = _turn_upright(_read_pixels(frame, channels), frame, path)
                    yield f"frame-{done:04}", torch.from_numpy(pixels.copy()).permute(2, 0, 1)
                    done += 1
    except av.FFmpegError as error:
        raise DataError(
            f"`input_path` {path} is damaged after frame {done}: {error.strerror}",
            value=path,
            remedy=REPAIR,
        ) from error
    if packets < promised:
        raise DataError(
            f"`input_path` {path} is truncated: it has {packets} of {promised} frames",
            value=path,
            remedy=REPAIR,
        )


def _read_pixels(frame: av.VideoFrame, channels: int) -> Pixels:
    """(H, W, C) uint8, as stored."""
    pixels = cast(Pixels, frame.to_ndarray(format=LAYOUTS[channels]))  # 8 bits in both layouts
    return pixels.reshape(frame.height, frame.width, channels)


def _turn_upright(pixels: Pixels, frame: av.VideoFrame, path: Path) -> Pixels:
    """Turn and mirror pixels (H, W, C) as the video's metadata says; phones rely on that.

    Raises:
        DataError: They need another turn than by a multiple of 90 degrees.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    # 3 x 3 int32. The pixel at x, y is shown at x * a + y * c, x * b + y * d; the scale is not
    # applied. Some programs write zeros for "as stored".
    numbers = np.frombuffer(bytes(cast(SupportsBytes, data)), np.int32) if data else np.zeros(9)
    a, b, c, d = numbers[[0, 1, 3, 4]].astype(np.float64)
    if not numbers.any():
        return pixels
    if max(abs(b), abs(c)) > SLANT * min(abs(a), abs(d)):  # rows become columns
        pixels = pixels.swapaxes(0, 1)
        a, b, c, d = c, d, a, b
    if max(abs(b), abs(c)) > SLANT * min(abs(a), abs(d)):
        angle = math.degrees(math.atan2(numbers[1], numbers[0]))
        raise DataError(
            f"`input_path` {path} must be shown turned by a multiple of 90 degrees"
            f" (got {angle:.0f})",
            value=path,
            remedy="`ffmpeg -i OLD NEW` turns the pixels themselves",
        )
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class VideoWriter:
    """Appends frames to a video that `write_video` opens and closes."""

    def __init__(self, container: OutputContainer, path: Path, rate: float) -> None:
        """Add the stream; the first frame determines its size."""
        self.container, self.path, self.count = container, path, 0
        self.size: tuple[int, int] | None = None
        encoder = next(name for name in ENCODERS[path.suffix] if name in av.codecs_available)
        # 29.97 is 30000/1001, not 2997/100.
        exact = Fraction(rate).limit_denominator(max(1, min(1001, int(LARGEST_TICK / rate))))
        stream = container.add_stream(encoder, rate=exact, options=QUALITY.get(encoder, {}))
        assert isinstance(stream, VideoStream)
        self.stream = stream
        # Every player supports this format. It halves the color resolution, so sides are even.
        self.stream.pix_fmt = "yuv420p"

    def write(self, frame: Pixels) -> None:
        """Append a frame (H, W, 3) uint8 RGB; the last row or column of an odd side is repeated.

        Raises:
            DataError: The frame's size differs from the first frame's.
        """
        height, width = frame.shape[:2]
        if self.size is None:
            self.size = height, width
            self.stream.height, self.stream.width = height + height % 2, width + width % 2
        if self.size != (height, width):
            first = " x ".join(map(str, self.size))
            raise DataError(
                f"{self.path}: frame {self.count + 1} is {height} x {width},"
                f" but those before it are {first}"
            )
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        self.count += 1

    def finish(self) -> None:
        """Write what the encoder still buffers.

        Raises:
            DataError: There were no frames.
        """
        if not self.count:
            raise DataError(f"{self.path}: there are no frames to make a video of")
        self.container.mux(self.stream.encode(None))


@contextlib.contextmanager
def write_video(path: Path, *, rate: float) -> Iterator[VideoWriter]:
    """Write a video frame by frame; the file appears atomically at the end of the block.

    Args:
        path: A file in an existing folder; .mp4 (H.264) or .avi (MPEG-4).
        rate: Frames per second, above 0.

    Raises:
        OptionError: The extension is unsupported, or the file cannot be written.
        DataError: No frame was written.
    """
    if path.suffix not in ENCODERS:
        raise OptionError(f"a video's name must end with {' or '.join(ENCODERS)} (got {path})")
    # The index of an mp4 goes to the front, so that it plays while downloading.
    options = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with atomic_write(path, "") as temporary:
        try:
            with av.open(str(temporary), "w", format=path.suffix[1:], options=options) as container:
                container.metadata["comment"] = MARK
                writer = VideoWriter(container, path, rate)
                yield writer
                writer.finish()
        except av.FFmpegError as error:
            raise OptionError(f"{path} cannot be written: {error.strerror}") from error
