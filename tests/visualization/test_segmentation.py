"""Pictures show the truth, the prediction and where they differ."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dino.data.label_maps import ScoredClip, ScoredFrame
from dino.errors import DataError, OptionError
from dino.evaluation.video_segmentation.davis import DAVIS_PALETTE
from dino.evaluation.video_segmentation.ipace import DRIVING_COLORS, DRIVING_PALETTE
from dino.evaluation.video_segmentation.pairs import list_clips
from dino.visualization.segmentation import (
    CAPTION,
    PANEL_WIDTH,
    draw_clips,
    draw_frame,
    read_colors,
)
from tests.label_folders import make_davis, make_predictions, make_runs, save_labels

TRUTH = np.zeros((40, 60), np.uint8)
TRUTH[10:20, 10:30] = 1
PREDICTED = np.zeros_like(TRUTH)
PREDICTED[10:20, 20:40] = 1
IMAGE = np.array((120, 100, 80))  # the color of tests' images

COLORS = np.frombuffer(DAVIS_PALETTE, dtype=np.uint8).reshape(-1, 3)


def make_clip(folder: Path, frames: int = 1) -> ScoredClip:
    root = make_runs(folder / "runs", {"run": [TRUTH] * frames})
    return list_clips(
        "driving", root, make_predictions(folder / "out", {"run": [PREDICTED] * frames})
    )[0]


def panels(picture: np.ndarray) -> list[np.ndarray]:
    return np.split(picture[CAPTION:].astype(int), 4, axis=1)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_four_panels_show_image_truth_prediction_and_error(tmp_path: Path) -> None:
    frame: ScoredFrame = make_clip(tmp_path).frames[0]
    colors = read_colors(frame.truth, DAVIS_PALETTE)
    image, truth, predicted, error = panels(draw_frame(frame, colors, None))
    assert image.shape == (40, 60, 3)
    assert abs(image - IMAGE).max() <= 2
    for panel, labels in ((truth, TRUTH), (predicted, PREDICTED)):
        assert abs(panel - (IMAGE + colors[labels]) / 2).max() <= 2
    wrong = (error == (255, 0, 0)).all(axis=2)
    assert np.array_equal(wrong, TRUTH != PREDICTED)
    assert (error[~wrong] == error[~wrong][:1, :1]).all()


def test_pixels_of_the_ignored_label_are_never_wrong(tmp_path: Path) -> None:
    frame = make_clip(tmp_path).frames[0]
    *_, error = panels(draw_frame(frame, COLORS, 0))
    assert np.array_equal((error == (255, 0, 0)).all(axis=2), (TRUTH == 1) & (PREDICTED == 0))


def test_a_large_frame_is_made_smaller(tmp_path: Path) -> None:
    labels = np.zeros((481, 855), np.uint8)
    root = make_runs(tmp_path / "runs", {"run": [labels]})
    (clip,) = list_clips("driving", root, make_predictions(tmp_path / "out", {"run": [labels]}))
    assert draw_frame(clip.frames[0], COLORS, None).shape == (270 + CAPTION, 4 * PANEL_WIDTH, 3)


def test_a_clip_becomes_pictures_a_sheet_of_eight_and_a_video(tmp_path: Path) -> None:
    clip = make_clip(tmp_path, frames=11)
    target = tmp_path / "pictures"
    target.mkdir()
    draw_clips([clip], target, ignored=None)
    names = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert names == {*(f"run/{n:05}.jpg" for n in range(11)), "run.mp4", "run.png"}
    height, width = 40 + CAPTION, 4 * 60
    assert size_of(target / "run" / "00003.jpg") == (width, height)
    assert size_of(target / "run.png") == (width, 8 * height)
    video = cv2.VideoCapture(str(target / "run.mp4"))
    shapes = []
    while (read := video.read())[0]:
        shapes.append(read[1].shape)
    assert shapes == [(height, width, 3)] * 11


def test_a_short_clip_has_a_short_sheet(tmp_path: Path) -> None:
    draw_clips([make_clip(tmp_path, frames=2)], tmp_path, ignored=None)
    assert size_of(tmp_path / "run.png") == (4 * 60, 2 * (40 + CAPTION))


def test_colors_are_the_files_own_or_the_voc_map(tmp_path: Path) -> None:
    own = read_colors(
        save_labels(tmp_path / "a.png", TRUTH, tuple(range(10, 16)) * 128), DAVIS_PALETTE
    )
    assert own[:3].tolist() == [[10, 11, 12], [13, 14, 15], [10, 11, 12]]
    gray = read_colors(save_labels(tmp_path / "b.png", TRUTH, None), DAVIS_PALETTE)
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
    }
    assert {label: tuple(gray[label].tolist()) for label in known} == known
    assert len({tuple(color) for color in gray.tolist()}) == 256


def test_gray_labels_have_the_colors_of_their_layout(tmp_path: Path) -> None:
    """Runs those that eval_ipace_segmentation.py writes, so that truth and prediction look
    alike."""
    clips = {"clip": [TRUTH] * 3}
    out = make_predictions(tmp_path / "out", clips)
    (run,) = list_clips("driving", make_runs(tmp_path / "runs", clips), out)
    (sequence,) = list_clips("davis", make_davis(tmp_path / "davis", clips), out)
    assert (run.palette, sequence.palette) == (DRIVING_PALETTE, DAVIS_PALETTE)
    save_labels(run.first, TRUTH, None)
    draw_clips([run], tmp_path, ignored=None)
    _, truth, *_ = panels(np.asarray(Image.open(tmp_path / "clip" / "00000.jpg")))
    middle = TRUTH.copy()
    middle[9:21, 9:31], middle[12:18, 12:28] = 9, 1  # JPEG blurs edges
    red = np.array(DRIVING_COLORS[1])
    assert abs(truth[middle == 1] - (IMAGE + red) / 2).max() <= 12


def test_the_colors_of_davis_are_those_of_its_files(shared_data: Path) -> None:
    path = shared_data / "davis/Annotations/480p/dog/00000.png"
    assert np.array_equal(read_colors(path, DAVIS_PALETTE)[:21], COLORS[:21])


@pytest.mark.parametrize("name", ["run.mp4", "run.png", "run/00001.jpg"])
def test_a_users_picture_stays_and_our_own_are_drawn_again(tmp_path: Path, name: str) -> None:
    clip, target = make_clip(tmp_path, frames=2), tmp_path / "pictures"
    for _ in range(2):
        draw_clips([clip], target, ignored=None)
    (target / name).write_text("mine")
    with pytest.raises(OptionError, match=rf"{name} was not written by this .*`pictures`"):
        draw_clips([clip], target, ignored=None)
    assert (target / name).read_text() == "mine"


def test_a_folder_that_is_in_the_way_is_an_error_and_leaves_no_video(tmp_path: Path) -> None:
    clip = make_clip(tmp_path, frames=2)
    target = tmp_path / "pictures"
    (target / "run" / "00001.jpg").mkdir(parents=True)
    with pytest.raises(OptionError, match=r"run/00001\.jpg cannot be written"):
        draw_clips([clip], target, ignored=None)
    assert not list(target.glob("*.mp4")) and not [path for path in target.rglob(".*")]


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    clip = make_clip(tmp_path)
    (tmp_path / "runs/run/image/00000.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"image/00000\.jpg cannot be decoded"):
        draw_clips([clip], tmp_path, ignored=None)
