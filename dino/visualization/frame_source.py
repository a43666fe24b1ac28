"""Reading frames from a video or a folder, one frame at a time.

PyAV decodes: its wheel includes ffmpeg, and its errors are exceptions. OpenCV reads a damaged video
as if it were complete.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsBytes, cast

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

from dino.data.decode import EXTENSIONS, read_image
from dino.data.frames import list_pictures
from dino.data.levels import PixelRange
from dino.errors import DataError
from dino.visualization.pictures import Pixels

LAYOUTS = {1: "gray", 3: "rgb24"}  # ffmpeg's pixel formats by number of channels
# The element of a Matroska file that contains everything after its first few bytes.
SEGMENT = bytes.fromhex("18538067")
LARGEST_FRAME = 1 << 26  # pixels, eight times those of 4K; headers may claim any number
SLANT = 0.01  # of a matrix that turns by a multiple of 90 degrees, relative to its scale
REPAIR = "download it again, or recover the intact part with `ffmpeg -i OLD NEW`"


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """A source of frames.

    Attributes:
        path: The file or folder.
        count: Number of frames according to a video's header; 0 if unknown.
        rate: Frames per second of a video, on average if it varies; None for a folder.
        read: Number of channels C, and optionally a range of pixels -> name (without extension)
            and pixels (C, H, W) uint8 of each frame, from the first on. Raises DataError at a frame
            that cannot be decoded. Videos have 1 channel (gray) or 3.
    """

    path: Path
    count: int
    rate: float | None
    read: Callable[..., Iterator[tuple[str, Tensor]]]


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
        with _open_video(path) as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            seconds = (container.duration or 0) / av.time_base
            promised = _count_promised(stream)
            readable = next(container.decode(stream), None) is not None
    except (av.FFmpegError, OSError) as error:
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


@contextlib.contextmanager
def _open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video and its first video stream; no other file or address that it names is opened.

    Raises:
        DataError: It has no video stream, or its frames are too large.
        FFmpegError, OSError: It cannot be read.
    """
    options = {"protocol_whitelist": "none"}  # a playlist could name any file or address
    with (
        path.open("rb") as file,
        av.open(file, options=options, metadata_errors="replace") as container,
    ):
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.codec_context is None:
            what = "has no video stream" if stream is None else "needs a decoder that ffmpeg lacks"
            raise DataError(
                f"`input_path` {path} {what} ({container.format.long_name})", value=path
            )
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > LARGEST_FRAME:
            raise DataError(
                f"frames of `input_path` {path} must have at most {LARGEST_FRAME} pixels"
                f" (got {width}x{height})",
                value=path,
            )
        stream.codec_context.options = {"max_pixels": str(LARGEST_FRAME)}  # of every frame
        yield container, stream


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
    if start < len(SEGMENT) or start + 8 > len(head):
        return 0
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

    def read(channels: int, pixel_range: PixelRange | None = None) -> Iterator[tuple[str, Tensor]]:
        for path in paths:
            yield path.stem, read_image(path, channels, pixel_range=pixel_range)

    return FrameSource(path=folder, count=len(paths), rate=None, read=read)


def _decode(path: Path, promised: int, channels: int, *_: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the frames of a video; `promised` is the header's packet count, 0 if unknown."""
    if channels not in LAYOUTS:
        raise DataError(
            f"`input_path` {path}: a video cannot have the {channels} channels of this backbone",
            value=path,
            remedy="give a folder of .npy frames",
        )
    packets, done = 0, 0
    try:
        with _open_video(path) as (container, stream):
            # Single-threaded, because ffmpeg's frame threads lose errors.
            for packet in container.demux(stream):
                # A packet is corrupt if the file ends inside it.
                packets += packet.size > 0 and not packet.is_corrupt
                for frame in packet.decode():
                    pixels = _turn_upright(_read_pixels(frame, channels), frame, path)
                    yield f"frame-{done:04}", torch.from_numpy(pixels.copy()).permute(2, 0, 1)
                    done += 1
    except (av.FFmpegError, OSError) as error:
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
