"""A video of what the CLS token attends to, averaged over the heads (the original's video_generation.py).

Frames stream from the decoder through the device to the encoder: memory does not depend on their number.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.config import chosen
from dino.errors import DataError, OptionError
from dino.runtime.context import Run, make_output_folder
from dino.runtime.metrics import check_target, write_result
from dino.runtime.progress import Progress
from dino.visualization.attention import AttentionReader, check_size, keep_mass, open_attention
from dino.visualization.config import AttentionVideoConfig
from dino.visualization.pictures import (
    INFERNO,
    Pixels,
    color,
    save_picture,
    to_picture,
    upsample_nearest,
)
from dino.visualization.video import FrameSource, open_frames, write_video

logger = logging.getLogger(__name__)

BATCH = 4  # frames that a device sees at a time; of 480p at patch size 8 each has 6,421 tokens
FRAMES, ATTENTION = "frames", "attention"  # folders, named as the original does
PROGRESS_EVERY = 20  # frames between two progress lines


def generate_video(config: AttentionVideoConfig, run: Run) -> Path:
    """Write `video.mp4` (or avi) to the output path; gives its path.

    Beside it stand `attention/attn-NAME.jpg`, the frames of the video, and, where the input is a video,
    `frames/NAME.jpg`, its frames as they are; those of an earlier run go. One process does all the work.

    Raises:
        DinoError: Wrong weights, an architecture without maps, missing or unreadable frames, no place to write to.
    """
    target = Path(config.video.output_path) / f"video.{config.video.video_format}"
    if not run.processes.is_rank_zero:
        return target
    _check(config, target)
    source = open_frames(Path(config.video.input_path or ""))
    make_output_folder(config.video.output_path, "`output_path`")
    check_target(config.report.json)
    if config.video.video_only:
        pictures: Iterator[Pixels] = (to_picture(frame) for _, frame in source.read(3))
    else:
        pictures = _draw_attention(source, open_attention(config, run), config, target.parent)
    rate = config.video.fps or source.rate or chosen(config.video, "fps")
    progress = Progress(source.count, f"frames of {source.path.name}")
    with write_video(target, rate=rate) as writer, contextlib.closing(progress):
        for picture in pictures:
            writer.write(picture)
            if writer.count % PROGRESS_EVERY == 0 or writer.count == source.count:
                progress.advance(writer.count)
    found = {"video": str(target), "frames": writer.count, "size": writer.size, "fps": rate}
    logger.info(
        "video: %(video)s, %(frames)d frames of %(size)s pixels (height, width) at %(fps)g frames/s",
        found,
    )
    write_result(config.report.json, found)
    return target


def _check(config: AttentionVideoConfig, target: Path) -> None:
    """Refuse what cannot be meant, before anything is loaded or written."""
    video = config.video
    if video.input_path is None:
        raise DataError("`input_path` is missing", remedy="give a video file or a folder of frames")
    given = Path(video.input_path)
    check_size("`resize`", video.resize)
    unused = [
        name
        for group, name in ((video, "resize"), (config.mask, "threshold"))
        if getattr(group, name) is not None
    ]
    if video.video_only and unused:
        raise OptionError(
            "`video_only` makes a video of pictures as they are",
            remedy=f"`{unused[0]}` cannot change them",
        )
    if video.video_only and given.is_file():
        raise OptionError(
            "`video_only` makes a video of a folder of pictures",
            remedy=f"`input_path` {given} is a file",
        )
    if given.resolve() == target.resolve():
        raise OptionError(
            f"`input_path` {given} would be overwritten by the video",
            value=given,
            remedy="name another `output_path`",
        )
    if not video.video_only and given.resolve() == (target.parent / ATTENTION).resolve():
        raise OptionError(
            f"`input_path` {given} is where the attention goes",
            value=given,
            remedy="add `video_only` to make a video of it",
        )


def _draw_attention(
    source: FrameSource, reader: AttentionReader, config: AttentionVideoConfig, output: Path
) -> Iterator[Pixels]:
    """Each frame's map in colors, (H, W, 3), written to `output`/attention before it is given."""
    folder = make_output_folder(str(output / ATTENTION), "`output_path`")
    size = min(BATCH, source.count or BATCH)
    views, written = _read_views(source, reader, config.video.resize, output), set[str]()
    while batch := list(itertools.islice(views, size)):
        # A last batch that is not full would be another graph for devices that compile, so it is filled up.
        pixels = F.pad(
            torch.stack([view for _, view in batch]), (*(0, 0) * 3, 0, size - len(batch))
        )
        for (name, _), heads in zip(batch, reader.read_maps(pixels), strict=False):
            if config.mask.threshold is not None:
                heads = heads * keep_mass(heads, config.mask.threshold)
            picture = upsample_nearest(color(heads.mean(dim=0).numpy(), INFERNO), reader.patch_size)
            written.add(f"attn-{name}.jpg")
            save_picture(folder / f"attn-{name}.jpg", picture)
            yield picture
    _remove_stale(folder, "attn-*.jpg", written)


def _read_views(
    source: FrameSource, reader: AttentionReader, size: tuple[int, ...] | None, output: Path
) -> Iterator[tuple[str, Tensor]]:
    """Each frame's name and view (C, H, W) uint8, all of one size; a video's frames are written to `output`/frames."""
    folder = (
        make_output_folder(str(output / FRAMES), "`output_path`") if source.path.is_file() else None
    )
    first, written = None, set[str]()
    for name, frame in source.read(reader.in_chans):
        if folder is not None:
            written.add(f"{name}.jpg")
            save_picture(folder / f"{name}.jpg", to_picture(frame))
        view = reader.cut(frame, size, f"{source.path}, {name}")
        first = first or view.shape
        if view.shape != first:
            sizes = [" x ".join(map(str, shape[1:])) for shape in (view.shape, first)]
            raise DataError(
                f"{source.path}: {name} is {sizes[0]}, the frames before it {sizes[1]}",
                remedy="give `resize` H W",
            )
        yield name, view
    if folder is not None:
        _remove_stale(folder, "frame-*.jpg", written)


def _remove_stale(folder: Path, pattern: str, written: set[str]) -> None:
    """Remove the pictures of an earlier, longer run, which `video_only` would append to these."""
    for path in folder.glob(pattern):
        if path.name not in written:
            path.unlink()
