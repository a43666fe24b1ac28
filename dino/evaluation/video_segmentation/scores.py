"""Score paired label maps: each object of a DAVIS sequence, each class of a driving run.

Shapes: L, all labels of a byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino.data.label_maps import ScoredFrame, read_label_map
from dino.errors import DataError
from dino.evaluation.video_segmentation.davis import ALL_LABELS, VOID, drop_void
from dino.evaluation.video_segmentation.metrics import (
    Measure,
    average,
    compute_iou,
    count_labels,
    measure_boundary,
    summarize,
)
from dino.evaluation.video_segmentation.pairs import read_labels


@dataclass(frozen=True, kw_only=True)
class ObjectScore:
    """Region similarity J and boundary measure F of one object, or their means over several."""

    region: Measure
    boundary: Measure

    def named(self) -> dict[str, float]:
        """Return the figures under the names of davis2017-evaluation."""
        figures = {"J&F-Mean": (self.region.mean + self.boundary.mean) / 2}
        for letter, measure in (("J", self.region), ("F", self.boundary)):
            figures |= {
                f"{letter}-Mean": measure.mean,
                f"{letter}-Recall": measure.recall,
                f"{letter}-Decay": measure.decay,
            }
        return figures


def average_objects(scores: Sequence[ObjectScore]) -> ObjectScore:
    """Average over objects with equal weights."""
    return ObjectScore(
        region=average([score.region for score in scores]),
        boundary=average([score.boundary for score in scores]),
    )


def find_objects(annotation: Path) -> tuple[int, ...]:
    """Return the object labels of a DAVIS sequence: those that its first annotation shows.

    davis2017-evaluation takes 1 to the highest, which is the same for consecutive labels. Void
    (255) as the only label is the object, as in DAVIS 2016.

    Raises:
        DataError: The annotation cannot be read or has no object.
    """
    shown = np.unique(drop_void(read_label_map(annotation).labels))
    objects = tuple(shown[shown > 0].tolist())
    if not objects:
        raise DataError(
            f"{annotation} has no object: all its labels are 0, background",
            remedy="the first label map of a sequence must show its objects",
        )
    return objects


def score_sequence(objects: Sequence[int], frames: Iterable[ScoredFrame]) -> list[ObjectScore]:
    """Score every object of a DAVIS sequence.

    Other true labels, void (255) and objects that appear later, are background. This is the
    semi-supervised task of davis2017-evaluation, which passes no void to its measures.

    Raises:
        DataError: A label map cannot be read, a prediction has a label that is not an object, or
            masks of DAVIS 2016 are mixed with labels of DAVIS 2017.
    """
    regions, boundaries = [], []
    for frame in frames:
        truth = read_labels(frame.truth, {0, VOID} if objects == (VOID,) else ALL_LABELS)
        predicted = read_labels(frame.prediction, {0, *objects})
        ious = compute_iou(count_labels(truth, predicted, len(ALL_LABELS)))
        regions.append(ious[list(objects)])
        boundaries.append(
            [measure_boundary(truth == label, predicted == label) for label in objects]
        )
    by_frame = np.nan_to_num(regions, nan=1.0)  # an object absent in both is correct
    return [
        ObjectScore(region=summarize(region), boundary=summarize(boundary))
        for region, boundary in zip(by_frame.T, np.array(boundaries).T, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """Pixel counts of one or several driving runs.

    Attributes:
        frames: Number of counted frames.
        counts: (L, L) int64 pixels by true label (row) and predicted label (column).
        classes: The labels that are classes, without the ignored one.
        copied: Number of frames with a prediction equal to the true labels in every pixel.
    """

    frames: int
    counts: NDArray[np.int64]
    classes: tuple[int, ...]
    copied: int

    def iou(self) -> dict[int, float]:
        """Return the IoU of each class that occurs, true or predicted."""
        ious = compute_iou(self.counts)
        return {label: float(ious[label]) for label in self.classes if not np.isnan(ious[label])}

    def mean_iou(self) -> float:
        """Return the mean over the classes that occur; nan without any."""
        return float(np.mean(list(self.iou().values()) or [np.nan]))

    def accuracy(self) -> float:
        """Return the share of pixels with the correct label; nan without counted pixels."""
        return float(self.counts.trace() / self.counts.sum()) if self.counts.any() else float("nan")


def score_run(frames: Iterable[ScoredFrame], *, num_classes: int, ignored: int | None) -> RunScore:
    """Count the pixels of a driving run.

    Args:
        frames: Frames of the run.
        num_classes: Labels below it are classes.
        ignored: True label whose pixels do not count. It is not a class; predicting it is wrong.

    Raises:
        DataError: A label map cannot be read, or has a label that is neither a class nor ignored.
    """
    known = {*range(num_classes), *(() if ignored is None else (ignored,))}
    counts = np.zeros((len(ALL_LABELS), len(ALL_LABELS)), dtype=np.int64)
    done = copied = 0
    for frame in frames:
        truth, predicted = read_labels(frame.truth, known), read_labels(frame.prediction, known)
        counts += count_labels(truth, predicted, len(ALL_LABELS), ignored)
        done, copied = done + 1, copied + np.array_equal(truth, predicted)
    classes = tuple(label for label in range(num_classes) if label != ignored)
    return RunScore(frames=done, counts=counts, classes=classes, copied=copied)


def add_runs(scores: Sequence[RunScore]) -> RunScore:
    """Merge several runs into one with equal weight for each pixel."""
    counts = np.sum([score.counts for score in scores], axis=0)
    frames, copied = (
        sum(getattr(score, name) for score in scores) for name in ("frames", "copied")
    )
    return RunScore(frames=frames, counts=counts, classes=scores[0].classes, copied=copied)
