"""Videos of CLS attention averaged over the heads (the original's video_generation.py).

Frames stream from the decoder through the device to the encoder, so memory does not depend on their
number.
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
from dino.runtime.folder_lock import hold_folder
from dino.runtime.metrics import check_target, write_result
from dino.runtime.ownership import check_own
from dino.runtime.progress import Progress
from dino.visualization.attention import AttentionReader, check_size, open_attention
from dino.visualization.attention_maps import keep_mass
from dino.visualization.config import AttentionVideoConfig
from dino.visualization.frame_source import FrameSource, open_frames
from dino.visualization.pictures import (
    INFERNO,
    Pixels,
    color,
    draw_heat,
    save_picture,
    to_picture,
    upsample_nearest,
)
from dino.visualization.sheets import add_title, describe_map, name_maps
from dino.visualization.video import write_video

logger = logging.getLogger(__name__)

BATCH = 4  # frames per device batch; at 480p and patch size 8, each has 6,421 tokens
FRAMES, ATTENTION = "frames", "attention"  # folder names of the original
PROGRESS_EVERY = 20  # frames between two progress lines


def generate_video(config: AttentionVideoConfig, run: Run) -> Path:
    """Write `video.mp4` (or avi) to the output path and return its path.

    Also writes each map alone, `attention/attn-NAME.jpg`, and, if the input is a video,
    its frames, `frames/NAME.jpg`. Frames of an earlier run are removed. One process does all the
    work.

    Raises:
        DinoError: Wrong weights, an architecture without attention maps, missing or unreadable
            frames, or an output path that is not writable.
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
    with hold_folder(config.video.output_path, first=True):
        check_own(_list_outputs(target, source, config.video.video_only), "output_path")
        return _write(pictures, source, config, target)


def _list_outputs(target: Path, source: FrameSource, video_only: bool) -> list[Path]:
    """The existing files that the command may replace or remove."""
    maps = [] if video_only else [*(target.parent / ATTENTION).glob("attn-*.jpg")]
    frames = source.path.is_file() and not video_only
    return [target, *maps, *((target.parent / FRAMES).glob("frame-*.jpg") if frames else ())]


def _write(
    pictures: Iterator[Pixels], source: FrameSource, config: AttentionVideoConfig, target: Path
) -> Path:
    """Write the video, log its facts and write `json`."""
    rate = config.video.fps or source.rate or chosen(config.video, "fps")
    progress = Progress(source.count, f"frames of {source.path.name}")
    with write_video(target, rate=rate) as writer, contextlib.closing(progress):
        for picture in pictures:
            writer.write(picture)
            if writer.count % PROGRESS_EVERY == 0 or writer.count == source.count:
                progress.advance(writer.count)
    result = {"video": str(target), "frames": writer.count, "size": writer.size, "fps": rate}
    logger.info(
        "video: %(video)s, %(frames)d frames of %(size)s pixels (height, width)"
        " at %(fps)g frames/s",
        result,
    )
    write_result(config.report.json, result)
    return target


def _check(config: AttentionVideoConfig, target: Path) -> None:
    """Reject invalid combinations before anything is loaded or written."""
    video = config.video
    if video.input_path is None:
        raise DataError("`input_path` is missing", remedy="give a video file or a folder of frames")
    source = Path(video.input_path)
    check_size("`resize`", video.resize)
    unused = [
        name
        for group, name in ((video, "resize"), (config.mask, "threshold"))
        if getattr(group, name) is not None
    ]
    if video.video_only and unused:
        raise OptionError(
            "`video_only` makes a video of unchanged pictures",
            remedy=f"leave out `{unused[0]}`",
        )
    if video.video_only and source.is_file():
        raise OptionError(
            f"`video_only` needs a folder of pictures (got the file {source})",
            remedy="give their folder as `input_path`",
        )
    if source.resolve() == target.resolve():
        raise OptionError(
            f"`input_path` {source} would be overwritten by the video",
            value=source,
            remedy="choose another `output_path`",
        )
    if not video.video_only and source.resolve() == (target.parent / ATTENTION).resolve():
        raise OptionError(
            f"`input_path` {source} is the folder that the attention maps are written to",
            value=source,
            remedy="add `video_only` to make a video of it",
        )


def _draw_attention(
    source: FrameSource, reader: AttentionReader, config: AttentionVideoConfig, output: Path
) -> Iterator[Pixels]:
    """Yield each frame under its smooth map, with a title; write the map alone, a block a patch.

    The map goes to `output`/attention. Frames of the video are LINE pixels higher than (H, W, 3).
    """
    folder = make_output_folder(str(output / ATTENTION), "`output_path`")
    size = min(BATCH, source.count or BATCH)
    views, written = _read_views(source, reader, config.video.resize, output), set[str]()
    while batch := list(itertools.islice(views, size)):
        # Compiling devices would need another graph for an incomplete last batch, so pad it.
        pixels = F.pad(
            torch.stack([view for _, view in batch]), (*(0, 0) * 3, 0, size - len(batch))
        )
        for (name, view), heads in zip(batch, reader.read_maps(pixels), strict=False):
            if config.mask.threshold is not None:
                heads = heads * keep_mass(heads, config.mask.threshold)
            values = heads.mean(dim=0).numpy()
            picture = upsample_nearest(color(values, INFERNO), reader.patch_size)
            written.add(f"attn-{name}.jpg")
            save_picture(folder / f"attn-{name}.jpg", picture)
            title = f"{name}  {name_maps(len(heads))[-1]}  {describe_map(values)}"
            yield add_title(draw_heat(to_picture(view), values), title)
    _remove_stale(folder, "attn-*.jpg", written)


def _read_views(
    source: FrameSource, reader: AttentionReader, size: tuple[int, ...] | None, output: Path
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and views (C, H, W) uint8 of one size; save a video's frames in `frames`."""
    folder = (
        make_output_folder(str(output / FRAMES), "`output_path`") if source.path.is_file() else None
    )
    first, written = None, set[str]()
    for name, frame in source.read(reader.in_chans, reader.pixel_range):
        if folder is not None:
            written.add(f"{name}.jpg")
            save_picture(folder / f"{name}.jpg", to_picture(frame))
        view = reader.cut(frame, size, f"{source.path}, {name}")
        first = first or view.shape
        if view.shape != first:
            sizes = [" x ".join(map(str, shape[1:])) for shape in (view.shape, first)]
            raise DataError(
                f"{source.path}: {name} is {sizes[0]}, but the frames before it are {sizes[1]}",
                remedy="set `resize` H W",
            )
        yield name, view
    if folder is not None:
        _remove_stale(folder, "frame-*.jpg", written)


def _remove_stale(folder: Path, pattern: str, written: set[str]) -> None:
    """Remove pictures of an earlier, longer run, which `video_only` would otherwise append."""
    for path in folder.glob(pattern):
        if path.name not in written:
            path.unlink()
