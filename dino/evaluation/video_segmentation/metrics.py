"""Metrics of label maps: J and F of DAVIS 2017, and intersection over union by class.

The definitions are those of the DAVIS benchmark (Perazzi et al. 2016, sections 4.1 and 4.2;
Pont-Tuset et al. 2017), with the constants of its davis2017-evaluation. Pure numpy: arrays in,
numbers out.

Shapes: H, W pixels of a frame, L labels, T frames of a sequence.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# Largest distance of matching boundary pixels, relative to the diagonal (davis2017-evaluation).
BOUNDARY_TOLERANCE = 0.008
RECALL_THRESHOLD = 0.5  # a frame above it counts as found
DECAY_BINS = 4  # decay compares the first quarter of a sequence with the last


def count_labels(
    truth: Labels, predicted: Labels, labels: int, ignored: int | None = None
) -> NDArray[np.int64]:
    """Count pixels by true and predicted label: the confusion matrix of one frame.

    Args:
        truth: (H, W) uint8, values below `labels`.
        predicted: Like `truth`.
        labels: L.
        ignored: True label whose pixels are not counted.

    Returns:
        (L, L) int64, rows by true label, columns by predicted label.
    """
    pairs = truth.astype(np.int32).ravel() * labels + predicted.ravel()
    counts = np.bincount(pairs, minlength=labels * labels).reshape(labels, labels)
    if ignored is not None and ignored < labels:
        counts[ignored] = 0
    return counts


def compute_iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the IoU of every label: (L, L) counts -> (L,), nan for an absent label."""
    hit = counts.diagonal()
    union = counts.sum(axis=0) + counts.sum(axis=1) - hit
    shares: NDArray[np.float64] = np.divide(
        hit, union, out=np.full(len(counts), np.nan), where=union > 0
    )
    return shares


def measure_boundary(truth: Mask, predicted: Mask) -> float:
    """Compute the boundary measure F of one object in one frame.

    F is the harmonic mean of boundary precision and recall. A boundary pixel is a match if the
    other mask has one within ceil(0.008 x diagonal) pixels.

    Args:
        truth: (H, W) bool.
        predicted: (H, W) bool.

    Returns:
        0 to 1. It is 1 if neither mask has a boundary, and 0 if only one has.
    """
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*truth.shape))
    truth, predicted = find_boundary(truth), find_boundary(predicted)
    if not truth.any() or not predicted.any():
        return float(truth.any() == predicted.any())
    box = _bounding_box(truth | predicted)  # there is nothing to match outside
    truth, predicted = truth[box], predicted[box]
    precision = np.count_nonzero(predicted & dilate(truth, radius)) / np.count_nonzero(predicted)
    recall = np.count_nonzero(truth & dilate(predicted, radius)) / np.count_nonzero(truth)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def find_boundary(mask: Mask) -> Mask:
    """Mark pixels that differ from their right, lower or lower right neighbor, (H, W) bool.

    This is seg2bmap of the benchmark. Pixels at the frame's edge have no neighbor outside.
    """
    boundary = np.zeros_like(mask)
    boundary[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def dilate(mask: Mask, radius: int) -> Mask:
    """Mark pixels with a set pixel at most `radius` away: (H, W) bool -> (H, W) bool.

    The disk is processed row by row: at height y it extends sqrt(radius^2 - y^2) to each side.
    """
    height, width = mask.shape
    padded = np.pad(mask, radius)
    # The mask spread sideways by `reach`, which is 0 at first.
    spread = padded[:, radius : radius + width].copy()
    dilated, reach = np.zeros_like(mask), 0
    for y in range(radius, -1, -1):
        while reach < math.isqrt(radius**2 - y**2):
            reach += 1
            spread |= (
                padded[:, radius - reach :][:, :width] | padded[:, radius + reach :][:, :width]
            )
        dilated |= spread[radius - y :][:height] | spread[radius + y :][:height]
    return dilated


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure over the frames of an object: mean, share of frames above 0.5, and decrease."""

    mean: float
    recall: float
    decay: float


def summarize(values: NDArray[np.float64]) -> Measure:
    """Compute mean, recall and decay of values (T,) (Perazzi et al. 2016, section 4.2)."""
    # The ends of the four bins belong to both neighbors. As in davis2017-evaluation, 1e-10 rounds
    # halves up.
    ends = np.round(np.linspace(1, len(values), DECAY_BINS + 1) + 1e-10).astype(np.int64) - 1
    first, last = values[: ends[1] + 1], values[ends[-2] :]
    return Measure(
        mean=float(values.mean()),
        recall=float((values > RECALL_THRESHOLD).mean()),
        decay=float(first.mean() - last.mean()),
    )


def average(measures: list[Measure]) -> Measure:
    """Average each figure over objects."""
    return Measure(
        **{
            name: float(np.mean([getattr(m, name) for m in measures]))
            for name in asdict(measures[0])
        }
    )


def _bounding_box(mask: Mask) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
