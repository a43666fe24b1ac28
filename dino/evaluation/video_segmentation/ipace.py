"""Driving data: a run, or a folder of runs, with labels at regular frames.

RUN/image/*.jpg         frames, in the order of the numbers in their names
RUN/segmentation/*.png  label maps of some or all frames, by the same names
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dino.data.listing import is_hidden
from dino.errors import DataError
from dino.evaluation.video_segmentation.davis import ALL_LABELS, Clip, check_clips, list_frames

IMAGES, LABELS = "image", "segmentation"

# Colors of the driving fork's 27 labels. Label 26 means none. The rest of the palette is gray.
DRIVING_COLORS = (
    *(
        (220, 20, 60),
        (255, 0, 0),
        (165, 42, 42),
        (0, 0, 142),
        (0, 0, 142),
        (0, 60, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
    *(
        (220, 220, 0),
        (250, 170, 30),
        (128, 64, 128),
        (244, 35, 232),
        (196, 196, 196),
        (250, 170, 160),
    ),
    *(
        (170, 170, 170),
        (140, 140, 200),
        (255, 255, 255),
        (128, 64, 255),
        (70, 70, 70),
        (197, 231, 158),
    ),
    *(
        (190, 153, 153),
        (255, 255, 128),
        (107, 142, 35),
        (64, 170, 64),
        (70, 130, 180),
        (78, 99, 171),
        (0, 0, 0),
    ),
)
DRIVING_PALETTE = bytes(
    level
    for label in ALL_LABELS
    for level in (DRIVING_COLORS[label] if label < len(DRIVING_COLORS) else (label,) * 3)
)


def open_runs(data_path: str | None, interval: int) -> list[Clip]:
    """List the runs, each cut into clips that begin with true labels.

    Args:
        data_path: A folder that holds `image` and `segmentation`, or a folder of such folders.
        interval: Frames per clip. The last clip of a run may be shorter.

    Raises:
        DataError: There is no run, a run has no frames, the first frame of a clip has no label map,
            or sizes differ.
    """
    remedy = f"name a run, which holds {IMAGES} and {LABELS}, or a folder of runs"
    if not data_path:
        raise DataError(f"`data_path` is missing: {remedy}")
    root = Path(data_path)
    if not root.is_dir():
        raise DataError(f"`data_path` {root} does not exist: {remedy}", value=root)
    runs = find_runs(root)
    if not runs:
        raise DataError(f"`data_path` {root} holds no run: {remedy}", value=root)
    return check_clips(clip for name, run in runs.items() for clip in _cut_run(name, run, interval))


def find_runs(root: Path) -> dict[str, Path]:
    """Find the runs in a folder by name, or the folder itself. Symlinks keep their own names."""
    if _is_run(root):
        return {root.resolve().name: root}
    folders = (folder for folder in sorted(root.iterdir()) if not is_hidden(folder.name))
    return {folder.name: folder for folder in folders if _is_run(folder)}


def _is_run(folder: Path) -> bool:
    return (folder / IMAGES).is_dir() or (folder / LABELS).is_dir()


def _cut_run(name: str, run: Path, interval: int) -> Iterator[Clip]:
    frames = list_frames(run / IMAGES)
    for start in range(0, len(frames), interval):
        labels = run / LABELS / f"{frames[start].stem}.png"
        clip_frames = frames[start : start + interval]
        yield Clip(name=name, frames=clip_frames, labels=labels, palette=DRIVING_PALETTE)
