"""Pair predicted label maps with the true ones on disk, in the two layouts that are scored.

    davis    ROOT/ImageSets/2017/val.txt, ROOT/Annotations/480p/SEQ/*.png,
             ROOT/JPEGImages/480p/SEQ/*.jpg; OUT/SEQ/*.png
    driving  ROOT/RUN/image/*.jpg, ROOT/RUN/segmentation/*.png, or ROOT is one RUN; OUT/RUN/*.png

All names and sizes are checked before the first frame is scored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino.data.label_maps import ScoredClip, ScoredFrame, read_label_map
from dino.errors import DataError
from dino.evaluation.video_segmentation.davis import (
    DAVIS_PALETTE,
    check_sizes,
    index_images,
    list_frames,
    list_truths,
    read_split,
)
from dino.evaluation.video_segmentation.ipace import DRIVING_PALETTE, IMAGES, LABELS, find_runs

DAVIS, DRIVING = "davis", "driving"
RUN_LAYOUT = f"RUN/{IMAGES} and RUN/{LABELS}"


def recognize_layout(root: Path) -> str:
    """Distinguish `davis` from `driving` by the folders of a data set.

    Raises:
        DataError: The folders fit neither layout, or both.
    """
    layouts = [DAVIS] * (root / "Annotations").is_dir() + [DRIVING] * bool(find_runs(root))
    if not layouts:
        raise DataError(
            f"`dataset_path` {root} has neither Annotations (DAVIS 2017) nor {RUN_LAYOUT} "
            "(driving runs)",
            value=root,
        )
    if len(layouts) == 2:
        raise DataError(
            f"`dataset_path` {root} has both Annotations and driving runs",
            value=root,
            remedy="choose with `layout`",
        )
    return layouts[0]


def list_clips(layout: str, root: Path, predictions: Path) -> list[ScoredClip]:
    """Pair the true label maps of a data set with the predicted ones.

    davis: the sequences of the val split, without their first frame, which is the input, and their
    last, as in the benchmark's semi-supervised task. driving: every frame with labels.

    Raises:
        DataError: A folder or a frame is missing or unexpected, or sizes differ. The text names it.
    """
    if layout == DAVIS:
        return [_list_sequence(root, name, predictions / name) for name in read_split(root)]
    runs = find_runs(root)
    if not runs:
        raise DataError(f"`dataset_path` {root} has no {RUN_LAYOUT}", value=root)
    return [
        _list_run(name, run, _predictions_of(name, run == root, predictions))
        for name, run in runs.items()
    ]


def list_unscored(clips: Sequence[ScoredClip], predictions: Path) -> list[str]:
    """List the folders of predictions without a clip, by name."""
    scored = {clip.frames[0].prediction.parent.name for clip in clips}
    return sorted({path.parent.name for path in predictions.glob("*/*.png")} - scored)


def read_labels(path: Path, known: Collection[int]) -> NDArray[np.uint8]:
    """Read a label map: (H, W) uint8, a pixel's palette index or gray level.

    Raises:
        DataError: The file cannot be read, is not a label map, or has a label that is not `known`.
    """
    labels = read_label_map(path).labels
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    unknown = sorted(set(present) - set(known))
    if unknown:
        raise DataError(
            f"{path} must hold labels {_describe(known)} (got {', '.join(map(str, unknown[:5]))})"
        )
    return labels


def _list_sequence(root: Path, name: str, predictions: Path) -> ScoredClip:
    truths = list_truths(root, name)
    numbers = {path.stem: n for n, path in enumerate(truths)}
    frames = _pair(truths[1:-1], numbers, index_images(root, name), predictions)
    return ScoredClip(name=name, first=truths[0], frames=frames, palette=DAVIS_PALETTE)


def _predictions_of(name: str, alone: bool, predictions: Path) -> Path:
    """Return OUT/RUN, or OUT itself for a single run without that folder."""
    folder = predictions / name
    return predictions if alone and not folder.is_dir() else folder


def _list_run(name: str, run: Path, predictions: Path) -> ScoredClip:
    images = {path.stem: path for path in list_frames(run / IMAGES)}
    truths = list_frames(run / LABELS, ".png")
    frames = _pair(truths, {stem: n for n, stem in enumerate(images)}, images, predictions)
    unlabelled = len(images) - len(frames)
    return ScoredClip(
        name=name, first=truths[0], frames=frames, palette=DRIVING_PALETTE, unlabelled=unlabelled
    )


def _pair(
    truths: Sequence[Path],
    numbers: Mapping[str, int],
    images: Mapping[str, Path],
    predictions: Path,
) -> tuple[ScoredFrame, ...]:
    """Pair true label maps with predictions. `numbers` holds each frame's number by file stem."""
    predicted = {path.stem: path for path in list_frames(predictions, ".png")}
    for path in (*truths, *predicted.values()):
        if path.stem not in numbers:
            raise DataError(f"{path} matches no frame of its clip")
    missing = next((path for path in truths if path.stem not in predicted), None)
    if missing:
        raise DataError(f"{predictions / missing.name} is missing, the prediction for {missing}")
    frames = tuple(
        ScoredFrame(
            number=numbers[path.stem],
            image=images.get(path.stem),
            truth=path,
            prediction=predicted[path.stem],
        )
        for path in truths
    )
    for frame in frames:
        check_sizes(frame.truth, [path for path in (frame.prediction, frame.image) if path])
    return frames


def _describe(known: Collection[int]) -> str:
    """Describe ranges with gaps, such as `0 to 26 and 255`."""
    ordered = sorted(known)
    firsts, lasts = ([n for n in ordered if n + step not in known] for step in (-1, 1))
    return " and ".join(
        str(first) if first == last else f"{first} to {last}"
        for first, last in zip(firsts, lasts, strict=True)
    )
