"""Writing videos, one frame at a time.

PyAV encodes: its wheel includes ffmpeg with an H.264 encoder. OpenCV's writes only MPEG-4 part 2,
which browsers do not play.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from dino.errors import DataError, OptionError
from dino.files import MARK, atomic_write
from dino.visualization.pictures import Pixels

# Encoders by extension, best first: not every ffmpeg has x264. The original wrote MPEG-4 into both.
ENCODERS = {".mp4": ("libx264", "libopenh264", "mpeg4"), ".avi": ("mpeg4",)}
# Constant quality. x264: 18 of 0 to 51 is visually near lossless. MPEG-4: scale 3 of 1 to 31, in
# ffmpeg's unit of 118.
QUALITY = {"libx264": {"crf": "18"}, "mpeg4": {"flags": "+qscale", "global_quality": str(3 * 118)}}
LARGEST_TICK = 65535  # MPEG-4 counts the ticks of a second in 16 bits


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
