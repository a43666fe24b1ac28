"""Scores of clips: the benchmark's figures on real sequences; the rules for void, objects and
ignored labels."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dino.data.label_maps import ScoredClip
from dino.errors import DataError
from dino.evaluation.video_segmentation.pairs import list_clips
from dino.evaluation.video_segmentation.scores import (
    ObjectScore,
    RunScore,
    add_runs,
    average_objects,
    find_objects,
    score_run,
    score_sequence,
)
from tests.label_folders import make_davis, make_predictions, make_runs

EMPTY = np.zeros((20, 30), np.uint8)


def place(*objects: tuple[int, int], label_of_rest: int = 0) -> np.ndarray:
    """A label map with a 6 x 6 square of each (label, left edge)."""
    labels = np.full_like(EMPTY, label_of_rest)
    for label, left in objects:
        labels[5:11, left : left + 6] = label
    return labels


def sequence(folder: Path, truth: list[np.ndarray], predicted: list[np.ndarray]) -> ScoredClip:
    root = make_davis(folder / "davis", {"cat": truth})
    return list_clips("davis", root, make_predictions(folder / "out", {"cat": predicted}))[0]


def run(folder: Path, truth: list[np.ndarray], predicted: list[np.ndarray]) -> ScoredClip:
    root = make_runs(folder / "runs", {"run": truth})
    return list_clips("driving", root, make_predictions(folder / "out", {"run": predicted}))[0]


def score_clip(clip: ScoredClip) -> list[ObjectScore]:
    return score_sequence(find_objects(clip.first), clip.frames)


def score_driving(clip: ScoredClip, *, num_classes: int, ignored: int | None) -> RunScore:
    return score_run(clip.frames, num_classes=num_classes, ignored=ignored)


def read_pair(truth: Path, prediction: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.array(Image.open(truth)), np.array(Image.open(prediction))


def boundary_by_distances(truth: np.ndarray, predicted: np.ndarray) -> float:
    """F with OpenCV's exact distance transform, of boundaries taken as blocks of four that are not
    alike."""
    distances, edges = [], []
    for mask in (truth, predicted):
        padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        blocks = np.stack([padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]])
        edges.append(blocks.any(axis=0) & ~blocks.all(axis=0))
        distances.append(
            cv2.distanceTransform((~edges[-1]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        )
    radius = np.ceil(0.008 * np.linalg.norm(truth.shape)) + 1e-3
    precision = (distances[0][edges[1]] <= radius).mean()
    recall = (distances[1][edges[0]] <= radius).mean()
    return 2 * precision * recall / (precision + recall)


def test_real_sequences_score_as_the_benchmark_and_as_an_independent_statement(
    shared_data: Path,
) -> None:
    clips = list_clips("davis", shared_data / "davis", shared_data / "davis_results" / "osvos")
    with (shared_data / "davis_results" / "expected_osvos.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        expected = {row[0]: row[1:] for row in csv.reader(file)}
    found = []
    for clip in clips:
        for number, score in enumerate(score_clip(clip), 1):
            assert [f"{score.region.mean:.6f}", f"{score.boundary.mean:.6f}"] == expected[
                f"{clip.name}_{number}"
            ]
            assert (score.region.mean, score.boundary.mean) == pytest.approx(
                score_independently(clip, number)
            )
            found.append(score)
    total = average_objects(found).named()
    assert len(found) == 5
    assert f"{total['J&F-Mean']:.6f}" == expected["GLOBAL J&F-Mean"][0]
    for letter, column in (("J", 0), ("F", 1)):
        names = [f"{letter}-{figure}" for figure in ("Mean", "Recall", "Decay")]
        assert (
            " ".join(f"{total[name]:.6f}" for name in names)
            == expected[f"GLOBAL {' '.join(names)}"][column]
        )


def score_independently(clip: ScoredClip, number: int) -> tuple[float, float]:
    """Mean J and F of an object, from sets of pixels and distances."""
    regions, boundaries = [], []
    for frame in clip.frames:
        truth, predicted = (labels == number for labels in read_pair(frame.truth, frame.prediction))
        regions.append((truth & predicted).sum() / (truth | predicted).sum())
        boundaries.append(boundary_by_distances(truth, predicted))
    return float(np.mean(regions)), float(np.mean(boundaries))


def test_a_data_set_predicted_by_itself_scores_1(shared_data: Path) -> None:
    root = shared_data / "davis_synth"
    for clip in list_clips("davis", root, root / "Annotations" / "480p"):
        scores = score_clip(clip)
        assert len(scores) == 2
        assert average_objects(scores).named() == {
            **{name: 1.0 for name in ("J&F-Mean", "J-Mean", "J-Recall", "F-Mean", "F-Recall")},
            **{name: 0.0 for name in ("J-Decay", "F-Decay")},
        }


def test_first_and_last_frame_do_not_count(tmp_path: Path) -> None:
    right, wrong = place((1, 2)), place((1, 20))
    assert (
        score_clip(sequence(tmp_path, [right] * 4, [wrong, right, right, wrong]))[0].region.mean
        == 1.0
    )


def test_an_object_that_is_neither_there_nor_predicted_scores_1(tmp_path: Path) -> None:
    both, first = place((1, 2), (2, 20)), place((1, 2))
    scores = score_clip(sequence(tmp_path, [both, first, first, both], [both, first, both, both]))
    assert [score.region.mean for score in scores] == [1.0, 0.5]
    assert [score.boundary.mean for score in scores] == [1.0, 0.5]


def test_void_pixels_are_background(tmp_path: Path) -> None:
    truth, predicted = place((1, 2), (255, 8)), place((1, 2), (1, 8))
    found = score_clip(sequence(tmp_path, [truth] * 3, [predicted] * 3))
    assert found[0].region.mean == pytest.approx((truth == 1).sum() / (predicted == 1).sum())


def test_objects_that_come_later_are_background(tmp_path: Path) -> None:
    first, later = place((1, 2)), place((1, 2), (2, 20))
    scores = score_clip(sequence(tmp_path, [first, later, later, later], [first] * 4))
    assert [score.region.mean for score in scores] == [1.0]


def test_a_predicted_object_beyond_those_of_the_first_frame_is_an_error(tmp_path: Path) -> None:
    clip = sequence(tmp_path, [place((1, 2))] * 3, [place((2, 2))] * 3)
    with pytest.raises(DataError, match=r"cat/00001\.png must hold labels 0 to 1 \(got 2\)"):
        score_clip(clip)


def test_a_first_annotation_without_an_object_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cat/00000\.png has no object"):
        score_clip(sequence(tmp_path, [EMPTY] * 3, [EMPTY] * 3))


def test_labels_with_gaps_score_as_the_same_objects_numbered_without(tmp_path: Path) -> None:
    """And a predicted label in between is an error, as one beyond is."""
    truth, predicted = ((1, 2), (200, 20)), ((1, 4), (200, 23))
    gaps = sequence(tmp_path / "gaps", [place(*truth)] * 4, [place(*predicted)] * 4)
    renumbered = [
        place(*((label % 199 + label // 200, left) for label, left in clip))
        for clip in (truth, predicted)
    ]
    none = sequence(tmp_path / "none", [renumbered[0]] * 4, [renumbered[1]] * 4)
    assert find_objects(gaps.first) == (1, 200) and find_objects(none.first) == (1, 2)
    assert score_clip(gaps) == score_clip(none)
    assert [score.region.mean for score in score_clip(gaps)] == [24 / 48, 18 / 54]
    with pytest.raises(DataError, match=r"must hold labels 0 to 1 and 200 \(got 2\)"):
        score_clip(sequence(tmp_path / "wrong", [place(*truth)] * 3, [place((2, 2))] * 3))


def test_masks_of_0_and_255_are_one_object(tmp_path: Path) -> None:
    masks, labels = ([place((label, left)) for left in (2, 4)] for label in (255, 1))
    found = sequence(tmp_path / "2016", [masks[0]] * 4, [masks[1]] * 4)
    expected = sequence(tmp_path / "2017", [labels[0]] * 4, [labels[1]] * 4)
    assert score_clip(found) == score_clip(expected) != []
    mixed = sequence(tmp_path / "mixed", [masks[0], *labels, *labels], [masks[0]] * 5)
    with pytest.raises(DataError, match=r"00001\.png must hold labels 0 and 255 \(got 1\)"):
        score_clip(mixed)


def test_classes_of_a_run_are_counted_over_all_frames(tmp_path: Path) -> None:
    truth, shifted = place((3, 2), label_of_rest=1), place((3, 5), label_of_rest=1)
    score = score_driving(run(tmp_path, [truth] * 2, [truth, shifted]), num_classes=4, ignored=None)
    hit, union = 36 + 18, 36 + 54
    rest_hit, rest_union = 564 + 546, 564 + 582
    assert score.iou() == pytest.approx({1: rest_hit / rest_union, 3: hit / union})
    assert score.mean_iou() == pytest.approx((hit / union + rest_hit / rest_union) / 2)
    assert score.accuracy() == pytest.approx((1200 - 36) / 1200)
    assert score.frames == 2


@pytest.mark.parametrize("ignored", [1, 255])
def test_the_ignored_label_is_no_class_and_its_pixels_do_not_count(
    tmp_path: Path, ignored: int
) -> None:
    truth = place((3, 2), (ignored, 8), label_of_rest=2)
    predicted = place((3, 2), (3, 8), (ignored, 20), label_of_rest=2)
    score = score_driving(run(tmp_path, [truth], [predicted]), num_classes=4, ignored=ignored)
    rest = 600 - 72
    assert score.iou() == pytest.approx({2: (rest - 36) / rest, 3: 1.0})
    assert score.accuracy() == pytest.approx((600 - 36 - 36) / (600 - 36))


def test_a_run_of_ignored_pixels_has_no_figure(tmp_path: Path) -> None:
    score = score_driving(run(tmp_path, [EMPTY], [EMPTY]), num_classes=4, ignored=0)
    assert score.iou() == {} and math.isnan(score.mean_iou()) and math.isnan(score.accuracy())


@pytest.mark.parametrize(
    ("truth", "predicted", "file"),
    [(4, 1, "segmentation"), (1, 4, "run"), (255, 1, "segmentation")],
)
def test_a_label_that_is_no_class_is_an_error_that_names_the_file(
    tmp_path: Path, truth: int, predicted: int, file: str
) -> None:
    clip = run(tmp_path, [place((truth, 2))], [place((predicted, 2))])
    with pytest.raises(
        DataError, match=rf"{file}/00000\.png must hold labels 0 to 3 \(got (4|255)\)$"
    ):
        score_driving(clip, num_classes=4, ignored=None)


def test_runs_add_up_pixel_by_pixel(tmp_path: Path) -> None:
    truth, empty = place((1, 2)), EMPTY
    scores = [
        score_driving(
            run(tmp_path / name, [truth] * frames, [predicted] * frames),
            num_classes=2,
            ignored=None,
        )
        for name, frames, predicted in (("good", 3, truth), ("bad", 1, empty))
    ]
    assert add_runs(scores).iou() == pytest.approx({0: (3 * 564 + 564) / (3 * 564 + 600), 1: 3 / 4})
    assert add_runs(scores).frames == 4
