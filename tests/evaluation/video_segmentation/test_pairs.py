"""Frames find their predictions in both layouts; whatever does not fit stops with the file's
name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.errors import DataError
from dino.evaluation.video_segmentation.pairs import (
    list_clips,
    list_unscored,
    read_labels,
    recognize_layout,
)
from tests.label_folders import (
    PALETTE,
    make_davis,
    make_predictions,
    make_runs,
    save_image,
    save_labels,
)

LABELS = np.eye(8, 12)
NONE = np.empty(0)


def davis(folder: Path) -> tuple[Path, Path]:
    clips = {"cat": [LABELS] * 4, "dog": [LABELS] * 3}
    return make_davis(folder / "davis", clips), make_predictions(folder / "out", clips)


def driving(folder: Path) -> tuple[Path, Path]:
    root = make_runs(folder / "runs", {"run_a": [LABELS, NONE, LABELS], "run_b": [LABELS]})
    return root, make_predictions(folder / "out", {"run_a": [LABELS] * 3, "run_b": [LABELS]})


MAKE = {"davis": davis, "driving": driving}
BOTH = pytest.mark.parametrize("layout", ["davis", "driving"])


def test_davis_pairs_all_but_the_first_and_the_last_frame(tmp_path: Path) -> None:
    root, out = davis(tmp_path)
    clips = list_clips("davis", root, out)
    assert [clip.name for clip in clips] == ["cat", "dog"]
    assert [frame.number for frame in clips[0].frames] == [1, 2]
    frame = clips[0].frames[0]
    assert (
        frame.truth == root / "Annotations/480p/cat/00001.png"
        and frame.prediction == out / "cat/00001.png"
    )
    assert frame.image == root / "JPEGImages/480p/cat/00001.jpg"
    assert clips[0].first == root / "Annotations/480p/cat/00000.png"


@BOTH
def test_frames_are_paired_and_numbered_by_number(tmp_path: Path, layout: str) -> None:
    frames = [LABELS * 0, LABELS, LABELS * 2, LABELS * 3]
    make = {"davis": make_davis, "driving": make_runs}[layout]
    root, out = (
        make(tmp_path / "data", {"cat": frames}),
        make_predictions(tmp_path / "out", {"cat": frames}),
    )
    for path in [*root.rglob("0*.*"), *out.rglob("0*.*")]:
        path.rename(
            path.with_stem({"00000": "8", "00001": "9", "00002": "10", "00003": "11"}[path.stem])
        )
    (clip,) = list_clips(layout, root, out)
    found = [(frame.number, frame.truth.stem, frame.prediction.stem) for frame in clip.frames]
    everything = [(0, "8", "8"), (1, "9", "9"), (2, "10", "10"), (3, "11", "11")]
    assert found == (everything if layout == "driving" else everything[1:3])
    assert clip.first.stem == "8"


def test_davis_needs_no_pictures_and_no_prediction_of_what_is_not_scored(tmp_path: Path) -> None:
    root = make_davis(tmp_path / "davis", {"cat": [LABELS] * 4}, images=False)
    out = make_predictions(tmp_path / "out", {"cat": [LABELS] * 2}, start=1)
    assert [frame.image for clip in list_clips("davis", root, out) for frame in clip.frames] == [
        None,
        None,
    ]


def test_runs_pair_the_frames_that_have_labels_and_keep_their_place(tmp_path: Path) -> None:
    root, out = driving(tmp_path)
    clips = list_clips("driving", root, out)
    assert {clip.name: [frame.number for frame in clip.frames] for clip in clips} == {
        "run_a": [0, 2],
        "run_b": [0],
    }
    assert [clip.unlabelled for clip in clips] == [1, 0]
    frame = clips[0].frames[1]
    assert (frame.image, frame.truth) == (
        root / "run_a/image/00002.jpg",
        root / "run_a/segmentation/00002.png",
    )
    assert frame.prediction == out / "run_a/00002.png"


@pytest.mark.parametrize("predictions", ["out", "out/run_a"])
def test_one_run_finds_its_predictions_in_its_folder_or_at_once(
    tmp_path: Path, predictions: str
) -> None:
    root, out = driving(tmp_path)
    (clip,) = list_clips("driving", root / "run_a", tmp_path / predictions)
    assert clip.name == "run_a" and clip.frames[0].prediction == out / "run_a/00000.png"


def test_links_to_runs_are_told_apart_by_their_own_names(tmp_path: Path) -> None:
    root, out = driving(tmp_path)
    (root / "run_c").symlink_to(root / "run_b")
    make_predictions(out, {"run_c": [LABELS]})
    clips = list_clips("driving", root, out)
    assert [clip.name for clip in clips] == ["run_a", "run_b", "run_c"]
    assert clips[2].frames[0].prediction == out / "run_c/00000.png"


def test_the_words_image_and_segmentation_may_stand_anywhere_in_the_path(tmp_path: Path) -> None:
    root, out = driving(tmp_path / "image" / "segmentation.jpg")
    assert len(list_clips("driving", root, out)) == 2


@BOTH
def test_the_layout_is_recognized_by_its_folders(tmp_path: Path, layout: str) -> None:
    assert recognize_layout(MAKE[layout](tmp_path)[0]) == layout


def test_one_run_is_recognized(tmp_path: Path) -> None:
    assert recognize_layout(driving(tmp_path)[0] / "run_a") == "driving"


def test_a_folder_of_neither_or_of_both_layouts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has neither Annotations"):
        recognize_layout(tmp_path)
    root = make_runs(davis(tmp_path)[0], {"run": [LABELS]})
    with pytest.raises(DataError, match="`layout`"):
        recognize_layout(root)


def test_shared_data_is_found(shared_data: Path) -> None:
    root = shared_data / "ipace"
    assert (
        recognize_layout(root) == "driving" and recognize_layout(shared_data / "davis") == "davis"
    )
    clips = list_clips("davis", shared_data / "davis", shared_data / "davis_results" / "osvos")
    assert {clip.name: len(clip.frames) for clip in clips} == {
        "blackswan": 48,
        "car-shadow": 38,
        "dog": 58,
        "horsejump-high": 48,
    }


FAULTS: dict[str, tuple[str, Callable[[Path, Path], object], str]] = {
    "prediction missing": (
        "davis",
        lambda root, out: (out / "cat/00002.png").unlink(),
        r"out/cat/00002\.png is missing",
    ),
    "prediction missing of a run": (
        "driving",
        lambda root, out: (out / "run_a/00002.png").unlink(),
        r"out/run_a/00002\.png is missing",
    ),
    "prediction too many": (
        "davis",
        lambda root, out: save_labels(out / "dog/00009.png", LABELS),
        r"out/dog/00009\.png matches no frame",
    ),
    "prediction too many of a run": (
        "driving",
        lambda root, out: save_labels(out / "run_b/00001.png", LABELS),
        r"out/run_b/00001\.png matches no frame",
    ),
    "labels without an image": (
        "driving",
        lambda root, out: (root / "run_a/image/00000.jpg").unlink(),
        r"run_a/segmentation/00000\.png matches no frame",
    ),
    "another size": (
        "driving",
        lambda root, out: save_labels(out / "run_a/00000.png", np.zeros((4, 6))),
        r"out/run_a/00000\.png must have the size of .*run_a/segmentation/00000\.png, 12x8 .*6x4",
    ),
    "another size of the image": (
        "davis",
        lambda root, out: save_image(root / "JPEGImages/480p/cat/00001.jpg", 9, 12),
        r"cat/00001\.jpg must have the size of .*00001\.png, 12x8 pixels \(got 12x9\)",
    ),
    "no prediction at all": (
        "davis",
        lambda root, out: (out / "dog").rename(out / "dogs"),
        r"the folder .*out/dog does not exist",
    ),
    "no frame": (
        "driving",
        lambda root, out: (root / "run_b/segmentation/00000.png").unlink(),
        r"run_b/segmentation holds no frame",
    ),
    "no labels": (
        "driving",
        lambda root, out: (root / "run_b/segmentation").rename(root / "run_b/labels"),
        r"the folder .*run_b/segmentation does not exist",
    ),
    "no list of sequences": (
        "davis",
        lambda root, out: (root / "ImageSets/2017/val.txt").unlink(),
        r"val\.txt, the list of sequences, cannot be read",
    ),
    "an empty list": (
        "davis",
        lambda root, out: (root / "ImageSets/2017/val.txt").write_text("\n"),
        "names no sequence",
    ),
    "a sequence twice": (
        "davis",
        lambda root, out: (root / "ImageSets/2017/val.txt").write_text("cat\ncat\n"),
        "names a sequence twice",
    ),
    "labels missing in the middle": (
        "davis",
        lambda root, out: (root / "Annotations/480p/cat/00001.png").unlink(),
        r"Annotations/480p/cat/00001\.png does not exist; .* true labels of .*cat/00001\.jpg",
    ),
    "two frames": (
        "davis",
        lambda root, out: [
            next(root.glob(f"*/480p/dog/00002.{end}")).unlink() for end in ("png", "jpg")
        ],
        r"dog must hold at least 3 frames \(got 2\)",
    ),
    "a damaged file": (
        "davis",
        lambda root, out: (out / "cat/00001.png").write_bytes(b"no picture"),
        r"out/cat/00001\.png cannot be decoded",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(tmp_path: Path, fault: str) -> None:
    layout, break_it, text = FAULTS[fault]
    root, out = MAKE[layout](tmp_path)
    break_it(root, out)
    with pytest.raises(DataError, match=text):
        list_clips(layout, root, out)


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no RUN/image"):
        list_clips("driving", tmp_path, tmp_path)


def test_predictions_of_nothing_are_listed(tmp_path: Path) -> None:
    root, out = davis(tmp_path)
    assert list_unscored(list_clips("davis", root, out), out) == []
    make_predictions(out, {"bird": [LABELS]})
    assert list_unscored(list_clips("davis", root, out), out) == ["bird"]


@pytest.mark.parametrize("palette", [None, (9, 9, 9, 1, 2, 3), PALETTE])
def test_labels_are_palette_indices_or_gray_levels(
    tmp_path: Path, palette: tuple[int, ...] | None
) -> None:
    path = save_labels(tmp_path / "a.png", LABELS, palette)
    labels = read_labels(path, range(2))
    assert labels.dtype == np.uint8 and np.array_equal(labels, LABELS)


def test_a_bilevel_picture_has_labels_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(LABELS > 0).save(tmp_path / "a.png")
    assert np.array_equal(read_labels(tmp_path / "a.png", range(2)), LABELS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_a_picture_in_color_or_of_16_bits_is_no_label_map(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=rf"a\.png must be an indexed .* label map \(got mode {mode}"
    ):
        read_labels(tmp_path / "a.png", range(256))


def test_an_unknown_label_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = save_labels(tmp_path / "a.png", LABELS * 7)
    with pytest.raises(DataError, match=r"a\.png must hold labels 0 to 3 and 255 \(got 7\)$"):
        read_labels(path, {0, 1, 2, 3, 255})
