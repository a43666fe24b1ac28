"""From paired label maps to scores: of each object of a DAVIS sequence, of each class of a driving run.

Shapes: L all labels of a byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino.data.label_maps import ScoredFrame
from dino.errors import DataError
from dino.evaluation.video_segmentation.davis import ALL_LABELS, VOID
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
        """The figures under the names of davis2017-evaluation."""
        figures = {"J&F-Mean": (self.region.mean + self.boundary.mean) / 2}
        for letter, measure in (("J", self.region), ("F", self.boundary)):
            figures |= {
                f"{letter}-Mean": measure.mean,
                f"{letter}-Recall": measure.recall,
                f"{letter}-Decay": measure.decay,
            }
        return figures


def average_objects(scores: Sequence[ObjectScore]) -> ObjectScore:
    """The mean over objects, each counting alike."""
    return ObjectScore(
        region=average([score.region for score in scores]),
        boundary=average([score.boundary for score in scores]),
    )


def find_objects(annotation: Path) -> range:
    """Labels of the objects of a DAVIS sequence: 1 to the highest of its first annotation.

    Raises:
        DataError: The annotation cannot be read or has no object.
    """
    first = read_labels(annotation, ALL_LABELS)
    objects = range(1, int(first[first != VOID].max(initial=0)) + 1)
    if not objects:
        raise DataError(
            f"{annotation} has no object (0 is background, {VOID} void)",
            remedy="wants labels of DAVIS 2017",
        )
    return objects


def score_sequence(objects: range, frames: Iterable[ScoredFrame]) -> list[ObjectScore]:
    """Score every object of a DAVIS sequence.

    Other true labels, void (255) and objects that come later, are background, as in the semi-supervised task of
    davis2017-evaluation, which hands its measures no void.

    Raises:
        DataError: A label map cannot be read, or a prediction has a label that is no object.
    """
    regions, boundaries = [], []
    for frame in frames:
        truth, predicted = (
            read_labels(frame.truth, ALL_LABELS),
            read_labels(frame.prediction, range(len(objects) + 1)),
        )
        regions.append(
            compute_iou(count_labels(truth, predicted, len(ALL_LABELS)))[1 : len(objects) + 1]
        )
        boundaries.append(
            [measure_boundary(truth == label, predicted == label) for label in objects]
        )
    found = np.nan_to_num(regions, nan=1.0)  # nothing there and nothing predicted is right
    return [
        ObjectScore(region=summarize(region), boundary=summarize(boundary))
        for region, boundary in zip(found.T, np.array(boundaries).T, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """How the pixels of a driving run, or of several, were labeled.

    Attributes:
        frames: Frames counted.
        counts: (L, L) int64 pixels by true label (row) and predicted label (column).
        classes: The labels that are classes, without the ignored one.
        copied: Frames whose prediction equals the true labels in every pixel.
    """

    frames: int
    counts: NDArray[np.int64]
    classes: tuple[int, ...]
    copied: int

    def iou(self) -> dict[int, float]:
        """Intersection over union of each class that occurs, true or predicted."""
        found = compute_iou(self.counts)
        return {label: float(found[label]) for label in self.classes if not np.isnan(found[label])}

    def mean_iou(self) -> float:
        """The mean over the classes that occur; nan where none does."""
        return float(np.mean(list(self.iou().values()) or [np.nan]))

    def accuracy(self) -> float:
        """The share of pixels with the right label; nan where no pixel counts."""
        return float(self.counts.trace() / self.counts.sum()) if self.counts.any() else float("nan")


def score_run(frames: Iterable[ScoredFrame], *, num_classes: int, ignored: int | None) -> RunScore:
    """Count the pixels of a driving run.

    Args:
        frames: Of the run.
        num_classes: Labels below it are classes.
        ignored: Pixels of this true label do not count; it is no class, and where it is predicted it is wrong.

    Raises:
        DataError: A label map cannot be read, or has a label that is neither a class nor the ignored one.
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
    """Several runs as one: each pixel counts alike."""
    counts = np.sum([score.counts for score in scores], axis=0)
    frames, copied = (
        sum(getattr(score, name) for score in scores) for name in ("frames", "copied")
    )
    return RunScore(frames=frames, counts=counts, classes=scores[0].classes, copied=copied)
