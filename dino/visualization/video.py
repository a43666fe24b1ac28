"""Frames from a video file or a folder, and frames to a video file: one at a time, however many there are.

PyAV decodes and encodes (its wheel brings ffmpeg with an H.264 encoder, and its errors are exceptions, where OpenCV's
wheel writes only MPEG-4 part 2, which browsers do not play, and ends a damaged video as if it were whole).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, SupportsBytes, cast

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.video.stream import VideoStream
from torch import Tensor

from dino.data.decode import EXTENSIONS, read_image
from dino.errors import DataError, OptionError
from dino.files import atomic_write
from dino.visualization.pictures import Pixels

logger = logging.getLogger(__name__)

LAYOUTS = {1: "gray", 3: "rgb24"}  # ffmpeg's names of pixel formats, by channels
# Encoders by file extension, the best first: not every build of ffmpeg has x264. The original wrote MPEG-4 into both.
ENCODERS = {".mp4": ("libx264", "libopenh264", "mpeg4"), ".avi": ("mpeg4",)}
# Constant quality. x264: 18 of 0 to 51 is visually near lossless. MPEG-4: scale 3 of 1 to 31, in ffmpeg's unit of 118.
QUALITY = {"libx264": {"crf": "18"}, "mpeg4": {"flags": "+qscale", "global_quality": str(3 * 118)}}
SEGMENT = bytes.fromhex(
    "18538067"
)  # the element of a Matroska file that holds all but its first few bytes
LARGEST_TICK = 65535  # MPEG-4 counts the ticks of a second in 16 bits
REPAIR = "fetch it again, or let `ffmpeg -i OLD NEW` keep what is whole"


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """Where frames come from.

    Attributes:
        path: The file or folder.
        count: Frames, as far as a video's header tells; 0 where it does not.
        rate: Frames a second of a video, its average where they vary; None for a folder.
        read: Number of channels C -> the name (without extension) and the pixels (C, H, W) uint8 of each frame, from
            the first on; raises DataError at a frame that cannot be decoded. A video gives 1 channel (gray) or 3.
    """

    path: Path
    count: int
    rate: float | None
    read: Callable[[int], Iterator[tuple[str, Tensor]]]


def open_frames(path: Path) -> FrameSource:
    """Look at a video file, or list a folder of frames in the order of the numbers in their names.

    Args:
        path: What `input_path` names.

    Raises:
        DataError: Nothing there, no frames in it, or no video.
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
                    f"`input_path` {path} has no pictures in it ({container.format.long_name})",
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
        raise DataError(f"`input_path` {path} is a video without a frame", value=path)
    if "matroska" in container.format.name and _count_bytes_promised(path) > path.stat().st_size:
        raise DataError(
            f"`input_path` {path} was cut off: it is shorter than its header says",
            value=path,
            remedy=f"{REPAIR}",
        )
    return FrameSource(
        path=path,
        count=promised or round(seconds * (rate or 0)),
        rate=float(rate) if rate else None,
        read=functools.partial(_decode, path, promised),
    )


def _count_promised(stream: VideoStream) -> int:
    """Packets that a video's header counts, 0 where it counts none.

    A trimmed mp4 still counts all, and leaves out of its index what was trimmed; PyAV shows the index from release 17.
    The index of an avi tells nothing: ffmpeg makes one of what is there.
    """
    indexed = (
        len(getattr(stream, "index_entries", ())) if "mp4" in stream.container.format.name else 0
    )
    return min(stream.frames, indexed or stream.frames)


def _count_bytes_promised(path: Path) -> int:
    """Size of a Matroska file (mkv, webm) by its header, which counts no frames; 0 of a live recording (RFC 8794)."""
    with path.open("rb") as file:
        head = file.read(4096)
    start = head.find(SEGMENT) + len(SEGMENT)
    width = (
        9 - head[start].bit_length()
    )  # bytes of the size: as many as its first one has leading zeros, and that one
    size, unknown = int.from_bytes(head[start : start + width], "big"), (1 << 7 * width) - 1
    return 0 if size & unknown == unknown else start + width + (size & unknown)


def _open_folder(folder: Path) -> FrameSource:
    paths = sorted(
        (path for path in folder.iterdir() if path.name.lower().endswith(EXTENSIONS)), key=_order
    )
    if not paths:
        raise DataError(
            f"`input_path` {folder} holds no frame (looked for {' '.join(EXTENSIONS)})",
            value=folder,
        )
    for one, other in itertools.pairwise(paths):  # equal names stand side by side in this order
        if one.stem == other.stem:
            raise DataError(
                f"`input_path` {folder}: {one.name} and {other.name} would both be frame {one.stem}",
                value=folder,
            )

    def read(channels: int) -> Iterator[tuple[str, Tensor]]:
        for path in paths:
            yield path.stem, read_image(path, channels)

    return FrameSource(path=folder, count=len(paths), rate=None, read=read)


def _order(path: Path) -> tuple[list[Any], str]:
    """By the numbers in a name and not by their digits: frame-9999 comes before frame-10000."""
    parts = re.split(r"([0-9]+)", path.stem)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _decode(path: Path, promised: int, channels: int) -> Iterator[tuple[str, Tensor]]:
    """The frames of a video; `promised` is the number that its header counts, 0 where it counts none."""
    if channels not in LAYOUTS:
        raise DataError(
            f"`input_path` {path}: this backbone wants {channels} channels",
            value=path,
            remedy="give a folder of .npy frames",
        )
    packets, done = 0, 0
    try:
        with av.open(str(path)) as container:
            # Without threads: ffmpeg's threads for frames lose its errors.
            for packet in container.demux(video=0):
                packets += (
                    packet.size > 0 and not packet.is_corrupt
                )  # a packet is corrupt where the file ends in it
                for frame in packet.decode():
                    yield f"frame-{done:04}", _read_pixels(frame, channels)
                    done += 1
    except av.FFmpegError as error:
        raise DataError(
            f"`input_path` {path} is damaged after frame {done}: {error.strerror}",
            value=path,
            remedy=f"{REPAIR}",
        ) from error
    if packets < promised:
        raise DataError(
            f"`input_path` {path} was cut off: {packets} of its {promised} frames are there",
            value=path,
            remedy=f"{REPAIR}",
        )


def _read_pixels(frame: av.VideoFrame, channels: int) -> Tensor:
    """(C, H, W) uint8, turned as the video says, which phones use."""
    pixels = frame.to_ndarray(format=LAYOUTS[channels]).reshape(frame.height, frame.width, channels)
    return torch.from_numpy(np.rot90(pixels, _count_turns(frame)).copy()).permute(2, 0, 1)


def _count_turns(frame: av.VideoFrame) -> int:
    """Quarter turns, counterclockwise, that bring a frame upright; PyAV gives the angle itself from 14.2 on only."""
    matrix = frame.side_data.get(
        "DISPLAYMATRIX"
    )  # of 3 x 3 int32, the first two its cosine and sine
    if matrix is None:
        return 0
    cosine, sine = np.frombuffer(bytes(cast(SupportsBytes, matrix)), np.int32)[:2].tolist()
    return -round(math.degrees(math.atan2(sine, cosine)) / 90)


class VideoWriter:
    """Appends frames to a video; `write_video` opens and closes it."""

    def __init__(self, container: OutputContainer, path: Path, rate: float) -> None:
        """Add the stream; its size is that of the first frame."""
        self.container, self.path, self.count = container, path, 0
        self.size: tuple[int, int] | None = None
        encoder = next(name for name in ENCODERS[path.suffix] if name in av.codecs_available)
        # 29.97 is 30000/1001, not 2997/100.
        exact = Fraction(rate).limit_denominator(max(1, min(1001, int(LARGEST_TICK / rate))))
        stream = container.add_stream(encoder, rate=exact, options=QUALITY.get(encoder, {}))
        assert isinstance(stream, VideoStream)
        self.stream = stream
        self.stream.pix_fmt = (
            "yuv420p"  # the one that every player shows; it halves colors, so sides are even
        )

    def write(self, frame: Pixels) -> None:
        """Append a frame (H, W, 3) uint8 RGB; an odd side gets one more row or column, a copy of the last.

        Raises:
            DataError: The frame has another size than the first one.
        """
        height, width = frame.shape[:2]
        if self.size is None:
            self.size = height, width
            self.stream.height, self.stream.width = height + height % 2, width + width % 2
        if self.size != (height, width):
            first = " x ".join(map(str, self.size))
            raise DataError(
                f"{self.path}: frame {self.count + 1} is {height} x {width}, those before it {first}"
            )
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        self.count += 1

    def finish(self) -> None:
        """Write what the encoder still holds.

        Raises:
            DataError: There was no frame.
        """
        if not self.count:
            raise DataError(f"{self.path}: there is no frame to make a video of")
        self.container.mux(self.stream.encode(None))


@contextlib.contextmanager
def write_video(path: Path, *, rate: float) -> Iterator[VideoWriter]:
    """Write a video, frame by frame: it appears at the end of the block, whole, or not at all.

    Args:
        path: A file in a folder that exists; .mp4 (H.264) or .avi (MPEG-4).
        rate: Frames a second, above 0.

    Raises:
        OptionError: Another extension, or the file cannot be written.
        DataError: No frame was written.
    """
    if path.suffix not in ENCODERS:
        raise OptionError(
            f"{path} is no name of a video", remedy=f"it must end with {' or '.join(ENCODERS)}"
        )
    # The index of an mp4 goes to its front, so that it plays while it still loads.
    options = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with atomic_write(path, "") as temporary:
        try:
            with av.open(str(temporary), "w", format=path.suffix[1:], options=options) as container:
                writer = VideoWriter(container, path, rate)
                yield writer
                writer.finish()
        except av.FFmpegError as error:
            raise OptionError(f"{path} cannot be written: {error.strerror}") from error
