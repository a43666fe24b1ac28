"""J, F and intersection over union against plain statements of their definitions."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.evaluation.video_segmentation.metrics import (
    Measure,
    average,
    compute_iou,
    count_labels,
    dilate,
    find_boundary,
    measure_boundary,
    summarize,
)


def draw_mask(seed: int, height: int, width: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < share


def draw_blob(seed: int, height: int, width: int) -> np.ndarray:
    """A few overlapping ellipses."""
    rng, blob = np.random.default_rng(seed), np.zeros((height, width), np.uint8)
    for _ in range(4):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(width // 3)), int(rng.integers(height // 3)))
        cv2.ellipse(blob, center, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return blob.astype(bool)


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    """A pixel is on the boundary where it, its right, lower and lower right neighbors are not all
    alike."""
    height, width = mask.shape
    boundary = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            block = mask[y : y + 2, x : x + 2]
            boundary[y, x] = block.any() and not block.all()
    return boundary


def plain_measure(truth: np.ndarray, predicted: np.ndarray) -> float:
    """F by the distances between all pairs of boundary pixels."""
    tolerance = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    ours, theirs = (np.argwhere(plain_boundary(mask)) for mask in (predicted, truth))
    if not len(ours) and not len(theirs):
        return 1.0
    if not len(ours) or not len(theirs):
        return 0.0
    near = ((ours[:, None] - theirs[None]) ** 2).sum(axis=2) <= tolerance**2
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


SIZES = st.integers(1, 24)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    height=SIZES,
    width=SIZES,
    share=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
)
def test_the_boundary_is_where_a_block_of_four_differs(
    seed: int, height: int, width: int, share: float
) -> None:
    mask = draw_mask(seed, height, width, share)
    assert np.array_equal(find_boundary(mask), plain_boundary(mask))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), height=SIZES, width=SIZES, radius=st.integers(0, 30))
def test_dilation_reaches_every_pixel_within_the_radius_and_no_other(
    seed: int, height: int, width: int, radius: int
) -> None:
    mask = draw_mask(seed, height, width, 0.02)
    points, set_pixels = np.argwhere(np.ones_like(mask)), np.argwhere(mask)
    distances = ((points[:, None] - set_pixels[None]) ** 2).sum(axis=2)
    assert np.array_equal(
        dilate(mask, radius), (distances <= radius**2).any(axis=1).reshape(mask.shape)
    )


@settings(max_examples=25)
@given(
    seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    height=st.integers(5, 150),
    width=st.integers(5, 150),
)
def test_the_boundary_measure_is_that_of_all_pairs(
    seeds: tuple[int, int], height: int, width: int
) -> None:
    truth, predicted = draw_blob(seeds[0], height, width), draw_blob(seeds[1], height, width)
    assert measure_boundary(truth, predicted) == pytest.approx(
        plain_measure(truth, predicted), abs=1e-12
    )


@pytest.mark.parametrize(
    ("truth", "predicted", "value"),
    [
        ("empty", "empty", 1.0),
        ("full", "full", 1.0),
        ("empty", "full", 1.0),
        ("blob", "empty", 0.0),
        ("empty", "blob", 0.0),
    ],
)
def test_without_a_boundary_on_either_side_f_is_1_and_on_one_side_0(
    truth: str, predicted: str, value: float
) -> None:
    masks = {
        "empty": np.zeros((20, 30), bool),
        "full": np.ones((20, 30), bool),
        "blob": np.eye(20, 30) > 0,
    }
    assert (
        measure_boundary(masks[truth], masks[predicted])
        == value
        == plain_measure(masks[truth], masks[predicted])
    )


def test_boundaries_further_apart_than_the_tolerance_do_not_match() -> None:
    masks = np.zeros((3, 300, 400), bool)  # diagonal 500, so 4 pixels
    for mask, left in zip(masks, (100, 104, 105), strict=True):
        mask[:, left:] = True
    assert measure_boundary(masks[0], masks[1]) == 1.0
    assert measure_boundary(masks[0], masks[2]) == 0.0


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    labels=st.integers(1, 6),
    ignored=st.none() | st.integers(0, 7),
    size=st.tuples(SIZES, SIZES),
)
def test_counts_and_iou_are_those_of_sets_of_pixels(
    seed: int, labels: int, ignored: int | None, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, labels, (2, *size)).astype(np.uint8)
    counts = count_labels(truth, predicted, labels, ignored)
    valid = np.ones(size, bool) if ignored is None else truth != ignored
    assert counts.sum() == valid.sum()
    for label, iou in enumerate(compute_iou(counts)):
        ours, theirs = (predicted == label) & valid, (truth == label) & valid
        assert counts[label, label] == (ours & theirs).sum()
        expected = (
            (ours & theirs).sum() / (ours | theirs).sum() if (ours | theirs).any() else np.nan
        )
        assert iou == pytest.approx(expected, nan_ok=True)


def plain_bins(values: list[float]) -> tuple[list[float], list[float]]:
    """First and last of the four bins; n frames numbered from 1 are cut at 1, 1 + (n-1)/4, ..., n,
    rounded."""
    cuts = [math.floor(1 + (len(values) - 1) * quarter / 4 + 0.5) for quarter in range(5)]
    return values[cuts[0] - 1 : cuts[1]], values[cuts[3] - 1 : cuts[4]]


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7, 38, 48, 255, 256, 257, 1000])
def test_mean_recall_and_decay(frames: int) -> None:
    values = np.random.default_rng(frames).random(frames)
    values[0] = 0.5  # not above the threshold
    first, last = plain_bins(values.tolist())
    found = summarize(values)
    assert found.mean == pytest.approx(sum(values) / frames)
    assert found.recall == pytest.approx(sum(value > 0.5 for value in values) / frames)
    assert found.decay == pytest.approx(sum(first) / len(first) - sum(last) / len(last), abs=1e-12)


def test_an_average_takes_each_figure_alone() -> None:
    measures = [Measure(mean=1.0, recall=0.5, decay=0.0), Measure(mean=0.0, recall=1.0, decay=-0.5)]
    assert average(measures) == Measure(mean=0.5, recall=0.75, decay=-0.25)
