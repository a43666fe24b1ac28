"""Label maps on disk: which predicted frame belongs to which true one, in the two layouts that are scored.

    davis    ROOT/ImageSets/2017/val.txt, ROOT/Annotations/480p/SEQ/*.png, ROOT/JPEGImages/480p/SEQ/*.jpg; OUT/SEQ/*.png
    driving  ROOT/RUN/image/*.jpg, ROOT/RUN/segmentation/*.png, or ROOT is one RUN; OUT/RUN/*.png

All that can be wrong with names and sizes is found before the first frame is scored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino.data.davis import RESOLUTION, SPLIT
from dino.data.label_maps import read_label_map, read_size
from dino.errors import DataError

DAVIS, DRIVING = "davis", "driving"
RUN_LAYOUT = "RUN/image and RUN/segmentation"


@dataclass(frozen=True, kw_only=True)
class ScoredFrame:
    """The files of one frame.

    Attributes:
        number: Place among all frames of the clip, from 0, scored or not.
        image: The picture that was segmented; None where the data set came without pictures.
        truth: True labels.
        prediction: Predicted labels.
    """

    number: int
    image: Path | None
    truth: Path
    prediction: Path


@dataclass(frozen=True, kw_only=True)
class ScoredClip:
    """A DAVIS sequence or a driving run.

    Attributes:
        name: Of the sequence or run.
        first: Its first true label map.
        frames: Those to score, in order.
        unlabelled: Frames of a run that have no true labels, and so cannot be scored.
    """

    name: str
    first: Path
    frames: tuple[ScoredFrame, ...]
    unlabelled: int = 0


def recognise_layout(root: Path) -> str:
    """Tell `davis` from `driving` by the folders of a data set.

    Raises:
        DataError: It is neither, or could be both.
    """
    found = [DAVIS] * (root / "Annotations").is_dir() + [DRIVING] * bool(_find_runs(root))
    if not found:
        raise DataError(f"--dataset_path {root} has neither Annotations (DAVIS 2017) nor {RUN_LAYOUT} (driving runs)")
    if len(found) == 2:
        raise DataError(f"--dataset_path {root} has both Annotations and driving runs; say which with --layout")
    return found[0]


def list_clips(layout: str, root: Path, predictions: Path) -> list[ScoredClip]:
    """Pair the true label maps of a data set with the predicted ones.

    davis: the sequences of the val split, without their first frame, which is given, and their last, as the benchmark's
    semi-supervised task has it. driving: every frame that has labels.

    Raises:
        DataError: A folder or a frame is missing or superfluous, or sizes differ; the text names it.
    """
    if layout == DAVIS:
        return [_list_sequence(root, name, predictions / name) for name in _read_split(root)]
    runs = _find_runs(root)
    if not runs:
        raise DataError(f"--dataset_path {root} has no {RUN_LAYOUT}")
    return [_list_run(run, _predictions_of(run, root, predictions)) for run in runs]


def list_unscored(clips: Sequence[ScoredClip], predictions: Path) -> list[str]:
    """Folders of predictions that belong to no clip, by name."""
    scored = {clip.frames[0].prediction.parent.name for clip in clips}
    return sorted({path.parent.name for path in predictions.glob("*/*.png")} - scored)


def read_labels(path: Path, known: Collection[int]) -> NDArray[np.uint8]:
    """Read a label map: (H, W) uint8, a pixel's palette index or gray level.

    Raises:
        DataError: The file cannot be read, is no label map, or has a label that is not `known`.
    """
    labels = read_label_map(path).labels
    strange = sorted(set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()) - set(known))
    if strange:
        raise DataError(f"{path} has the labels {', '.join(map(str, strange[:5]))}; known are {_describe(known)}")
    return labels


def _read_split(root: Path) -> list[str]:
    path = root / SPLIT
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, the list of sequences, cannot be read: {error}") from error
    if not names:
        raise DataError(f"{path} names no sequence")
    if len(set(names)) < len(names):
        raise DataError(f"{path} names a sequence twice")
    return names


def _list_sequence(root: Path, name: str, predictions: Path) -> ScoredClip:
    truths = _list_files(root / "Annotations" / RESOLUTION / name, ".png")
    if len(truths) < 3:
        raise DataError(f"{truths[0].parent} has {len(truths)} frames; first and last are not scored, so 3 are needed")
    images = {path.stem: path for path in (root / "JPEGImages" / RESOLUTION / name).glob("*.jpg")}
    frames = _pair(truths[1:-1], {path.stem: n for n, path in enumerate(truths)}, images, predictions)
    return ScoredClip(name=name, first=truths[0], frames=frames)


def _find_runs(root: Path) -> list[Path]:
    parts = ("image", "segmentation")
    if any((root / part).is_dir() for part in parts):
        return [root]
    return sorted({folder.parent for part in parts for folder in root.glob(f"*/{part}") if folder.is_dir()})


def _predictions_of(run: Path, root: Path, predictions: Path) -> Path:
    """OUT/RUN; for a single run also OUT itself."""
    folder = predictions / run.resolve().name
    return predictions if run == root and not folder.is_dir() else folder


def _list_run(run: Path, predictions: Path) -> ScoredClip:
    images = {path.stem: path for path in _list_files(run / "image", ".jpg")}
    truths = _list_files(run / "segmentation", ".png")
    frames = _pair(truths, {stem: n for n, stem in enumerate(images)}, images, predictions)
    unlabelled = len(images) - len(frames)
    return ScoredClip(name=run.resolve().name, first=truths[0], frames=frames, unlabelled=unlabelled)


def _list_files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist")
    files = sorted(folder.glob(f"*{ending}"))
    if not files:
        raise DataError(f"{folder} holds no frame (looked for *{ending})")
    return files


def _pair(
    truths: Sequence[Path], numbers: Mapping[str, int], images: Mapping[str, Path], predictions: Path
) -> tuple[ScoredFrame, ...]:
    """Frames of the true label maps; `numbers` has every frame of the clip by the stem of its files."""
    found = {path.stem: path for path in _list_files(predictions, ".png")}
    for path in (*truths, *found.values()):
        if path.stem not in numbers:
            raise DataError(f"{path} belongs to no frame of its clip")
    missing = next((path for path in truths if path.stem not in found), None)
    if missing:
        raise DataError(f"{predictions / missing.name} is missing, the prediction for {missing}")
    frames = tuple(
        ScoredFrame(number=numbers[path.stem], image=images.get(path.stem), truth=path, prediction=found[path.stem])
        for path in truths
    )
    for frame in frames:
        _check_sizes(frame)
    return frames


def _check_sizes(frame: ScoredFrame) -> None:
    height, width = read_size(frame.truth)
    for other in (frame.prediction, frame.image):
        if other and (found := read_size(other)) != (height, width):
            raise DataError(f"{other} is {found[1]}x{found[0]}, {frame.truth} {width}x{height}")


def _describe(known: Collection[int]) -> str:
    """`0 to 26 and 255` of a range with a gap."""
    ordered = sorted(known)
    least, most = ordered[0], next(n for n in ordered if n + 1 not in known)
    return f"{least} to {most}" + "".join(f" and {n}" for n in ordered if n > most)
